from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.tolerances import tolerance
from upfeat.backbones import create_backbone
from upfeat.backbones.positions import resize_positions
from upfeat.backbones.radio_backbone import RadioBackbone, RadioNetwork
from upfeat.errors import CheckpointError, UnknownNameError, UnsupportedError

SMALL = {"dim": 48, "depth": 2, "heads": 12, "side": 8, "prefix": 5}


def network() -> RadioNetwork:
    torch.manual_seed(0)
    return RadioNetwork(**SMALL, hidden=100)  # type: ignore[arg-type]


def written(folder: Path, prefix: str = "radio_model.model.") -> Path:
    """Returns a file as NVIDIA's are, with what lies beside the transformer."""
    state = {f"{prefix}{key}": value for key, value in network().state_dict().items()}
    state["radio_model.input_conditioner.norm_mean"] = torch.zeros(3, 1, 1)
    state["radio_model.summary_idxs"] = torch.tensor([0, 1])
    path = folder / "radio.safetensors"
    save_file(state, path)
    return path


@pytest.mark.parametrize("prefix", ["radio_model.model.", "base_model."])
def test_a_file_gives_the_patch_tokens(tmp_path: Path, prefix: str) -> None:
    """Of a plain computation with timm's blocks: unfolded patches, positions, blocks."""
    backbone = create_backbone("radio/radio_v2.5-b", weights=written(tmp_path, prefix))
    assert (backbone.dim, backbone.patch_size, backbone.name) == (48, 16, "radio/radio_v2.5-b")
    plain = network().eval()
    image = torch.randn(2, 3, 48, 80)
    patches = F.unfold(image, 16, stride=16).mT  # (B, h*w, 3 * 16 * 16)
    cells = plain.patch_generator.embedder(patches)  # type: ignore[operator]
    cells = cells + resize_positions(plain.patch_generator.pos_embed, (3, 5), "cpe", prefix=0)  # type: ignore[arg-type]
    token = plain.patch_generator.cls_token.token.expand(2, -1, -1)  # type: ignore[union-attr]
    expected = plain.blocks(torch.cat([token, cells], 1))[:, 5:]
    features = backbone(image)
    assert features.shape == (2, 48, 3, 5)
    torch.testing.assert_close(features.flatten(2).mT, expected, **tolerance(torch.float32))


def test_normalisation_and_rule_of_positions(tmp_path: Path) -> None:
    path, image = written(tmp_path), torch.randn(1, 3, 48, 80)
    own = create_backbone("radio/radio_v2.5-b", weights=path)
    assert own.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    spec = "radio/radio_v2.5-b(image_norm='imagenet', align_corners=True)"
    loftup = create_backbone(spec, weights=path)
    assert loftup.name == spec
    assert loftup.image_mean == (0.485, 0.456, 0.406)
    assert not torch.equal(own(image), loftup(image))
    square = torch.randn(1, 3, 128, 128)  # the table's own grid
    torch.testing.assert_close(own(square), loftup(square))


REPOSITORY = """
import torch

class Model(torch.nn.Module):
    patch_size = 4

    def __init__(self, version):
        super().__init__()
        self.version, self.inside = version, True
        self.weight = torch.nn.Parameter(torch.ones(1))

    def make_preprocessor_external(self):
        self.inside = False

    def forward(self, image):
        assert not self.inside
        cells = torch.nn.functional.avg_pool2d(image, 4).flatten(2).mT
        return cells.mean(1), torch.cat([cells, 2 * cells], -1)

def radio_model(version, progress=True):
    return Model(version)
"""


def test_the_authors_code_is_run(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(REPOSITORY)
    for options in ({"weights": tmp_path}, {"repository": tmp_path}):
        backbone = create_backbone("radio/radio_v2.5-g", **options)  # type: ignore[arg-type]
        image = torch.randn(1, 3, 8, 12)
        cells = F.avg_pool2d(image, 4)
        torch.testing.assert_close(backbone(image), torch.cat([cells, 2 * cells], 1))
    assert backbone.model.version == "radio_v2.5-g"


WITH_ADAPTORS = """
import torch
from upfeat.backbones.radio_backbone import RadioNetwork

class Adaptor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head_mlp = torch.nn.Linear(48, 7)

    def tokenizer(self, texts):
        codes = [sum(map(ord, text)) for text in texts]
        return torch.tensor([[float(code * k % 97) for k in range(1, 8)] for code in codes])

    def encode_text(self, tokens):
        return tokens - 48  # directions of texts differ, so that no two words tie

class Model(torch.nn.Module):
    patch_size = 16

    def __init__(self, names):
        super().__init__()
        torch.manual_seed(0)
        self.model = RadioNetwork(dim=48, depth=2, heads=12, side=8, prefix=5)
        self.adaptors = torch.nn.ModuleDict({name: Adaptor() for name in names})

    def make_preprocessor_external(self):
        pass

    def forward(self, image):
        tokens = self.model(image)
        output = tokens[:, 0], tokens[:, 5:]
        return {"backbone": output} if self.adaptors else output

def radio_model(version, progress=True, adaptor_names=()):
    return Model(adaptor_names)
"""


def test_an_adaptor_of_the_authors_code(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(WITH_ADAPTORS)
    options = {"repository": tmp_path, "adaptor": "siglip2"}
    backbone = create_backbone("radio/c-radio_v3-b", **options)
    assert isinstance(backbone, RadioBackbone)
    assert backbone.name == "radio/c-radio_v3-b(adaptor='siglip2')"
    assert backbone.last_attention.num_heads == 12
    features = backbone(torch.randn(1, 3, 32, 48))
    assert features.shape == (1, 48, 2, 3)
    language = backbone.language
    assert language is not None
    head = language.adaptor.head_mlp
    expected = F.conv2d(features, head.weight[:, :, None, None], head.bias)  # type: ignore[union-attr, index, arg-type]
    torch.testing.assert_close(language(features), expected, **tolerance(torch.float32))
    assert language.encode_text(["cat", "ox"])[:, 1].tolist() == [-6, 26]
    with pytest.raises(UnsupportedError, match=r"adaptor='siglip2' .*repository=FOLDER"):
        create_backbone("radio/c-radio_v3-b", weights="random", adaptor="siglip2")


def test_what_cannot_be_built_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'radio/radio_v2\.5-b'"):
        create_backbone("radio/radio_v2.5b")
    with pytest.raises(UnsupportedError, match="repository=FOLDER"):
        create_backbone("radio/radio_v2.5-g", weights="random")
    with pytest.raises(FileNotFoundError, match=r"no hubconf\.py in .*NVlabs/RADIO"):
        create_backbone("radio/radio_v2.5-b", weights=tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no RADIO: .*embedder\.weight"):
        create_backbone("radio/radio_v2.5-b", weights=tmp_path / "a.safetensors")
    random = create_backbone("radio/c-radio_v3-b", weights="random", network=SMALL)
    assert random(torch.randn(1, 3, 32, 32)).shape == (1, 48, 2, 2)
    with pytest.raises(UnsupportedError, match="no class token"):
        random.class_token(torch.randn(1, 3, 32, 32))
