"""Images that nobody normalised: noticed once, and never where they were."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import upfeat
from upfeat.layers.raw_images import expect_raw_images
from upfeat.ops.images import normalize, raw_scale

ENCODER = "upfeat/vit_compact_patch16"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


def noticed(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if "not normalised" in str(w.message)]


@pytest.fixture
def encoder() -> upfeat.Backbone:
    return upfeat.create_backbone(ENCODER)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colourful picture with dark and bright parts."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    rows, cols = np.mgrid[0:64, 0:96]
    pixels = np.stack([4 * rows % 256, cols * 2, (rows * cols) % 256], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_the_backbone_notices_each_scale_once(encoder: upfeat.Backbone) -> None:
    image = torch.rand(2, 3, 32, 48)
    found = noticed(lambda: [encoder(image) for _ in range(3)])
    assert len(found) == 1
    for word in ("[0, 1]", ENCODER, "prepare(image, backbone)", "0.5"):
        assert word in found[0]
    assert len(noticed(lambda: [encoder(255 * image) for _ in range(2)])) == 1
    assert noticed(lambda: encoder.class_token(image)) == []
    assert len(noticed(lambda: upfeat.create_backbone(ENCODER).class_token(image))) == 1


@pytest.mark.parametrize("call", ["whole", "tiles", "query"])
def test_the_upsampler_notices_where_it_knows_its_normalisation(call: str) -> None:
    up = upfeat.create_upsampler("jafar.vit_compact_patch16")
    features = torch.randn(1, 192, 2, 3)

    def run(image: Tensor) -> object:
        if call == "tiles":
            return list(up.tiles(image, features))
        if call == "query":
            return up.query(image, features, torch.zeros(1, 1, 2))
        return up(image, features)

    image = torch.rand(1, 3, 32, 48)
    assert noticed(lambda: run(normalize(image, *HALF))) == []
    assert len(noticed(lambda: [run(image), run(image)])) == 1
    assert len(noticed(lambda: run(255 * image))) == 1


def test_an_upsampler_without_wishes_of_its_own_says_nothing() -> None:
    up = upfeat.create_upsampler("bilinear")
    assert noticed(lambda: up(torch.rand(1, 3, 16, 16), torch.rand(1, 4, 2, 2))) == []


def test_functions_that_want_raw_images_get_them() -> None:
    identity = upfeat.CallableBackbone(nn.AvgPool2d(8), 3, 8)
    assert noticed(lambda: identity(torch.rand(1, 3, 32, 32))) == []
    assert len(noticed(lambda: identity(255 * torch.rand(1, 3, 32, 32)))) == 1
    bytes_wanted = upfeat.CallableBackbone(nn.AvgPool2d(8), 3, 8, image_std=(1 / 255,) * 3)
    assert noticed(lambda: bytes_wanted(255 * torch.rand(1, 3, 32, 32))) == []


@pytest.mark.parametrize("norm", [IMAGENET, HALF])
@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(1, 3, 16, 16),
        torch.ones(1, 3, 16, 16),
        torch.full((1, 3, 16, 16), 0.5),
        torch.rand(1, 3, 16, 16),
        torch.rand(1, 3, 300, 200) ** 4,
        0.4 + 0.2 * torch.rand(1, 3, 16, 16),
        torch.linspace(0, 1, 48).repeat(3, 1)[None, :, None],
        torch.full((1, 3, 4, 4), torch.nan),
    ],
)
def test_normalised_images_are_not_warned_of(
    image: Tensor, norm: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    assert raw_scale(normalize(image, *norm), *norm) is None


def test_every_photo_of_a_pipeline_is_normalised(encoder: upfeat.Backbone, photo: Path) -> None:
    for name in ("kin.upfeat", "jafar.vit_compact_patch16", "guided_filter"):
        pipe = upfeat.Pipeline(encoder, upfeat.create_upsampler(name))
        assert noticed(lambda pipe=pipe: pipe([str(photo), photo])) == []


def test_nothing_is_looked_at_while_torch_compiles_exports_or_transforms() -> None:
    up = upfeat.create_upsampler("jafar.vit_compact_patch16")
    image, features = torch.rand(1, 3, 32, 32), torch.randn(1, 192, 2, 2)
    assert noticed(lambda: torch.export.export(up, (image, features))) == []
    assert noticed(lambda: torch.func.grad(lambda x: up(x, features).sum())(image)) == []


def test_who_means_raw_images_can_say_so(encoder: upfeat.Backbone) -> None:
    expect_raw_images(encoder)
    assert noticed(lambda: encoder(torch.rand(1, 3, 32, 32))) == []


# -- the way without a pipeline --------------------------------------------------------------------


def recipe() -> str:
    """The lines of the README that go from a photo to features without a pipeline."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (block,) = re.findall(r"```python\n(image = .*?)```", readme, flags=re.S)
    return block


@pytest.mark.parametrize("name", ["kin.upfeat", "jafar.vit_compact_patch16", "bilinear"])
def test_the_recipe_of_the_readme_gives_what_the_pipeline_gives(
    name: str, encoder: upfeat.Backbone, photo: Path
) -> None:
    up = upfeat.create_upsampler(name)
    names = {"upfeat": upfeat, "bb": encoder, "up": up, "head": nn.Conv2d(192, 5, 1)}
    lines = recipe().replace("photo.jpg", str(photo)).replace("2048", "64").replace("448", "64")
    with torch.no_grad():
        assert noticed(lambda: exec(lines, names)) == []
    expected = upfeat.Pipeline(encoder, up)(photo, (64, 64))
    torch.testing.assert_close(names["features"][0], expected.low)  # type: ignore[index]
    torch.testing.assert_close(names["sharp"][0], expected.high, atol=1e-5, rtol=1e-4)  # type: ignore[index]
    assert names["logits"].shape == (1, 5, 64, 96)  # type: ignore[union-attr]


def test_prepare_gives_each_what_it_was_trained_with(encoder: upfeat.Backbone) -> None:
    image = torch.rand(1, 3, 32, 32)
    pixels, guidance = upfeat.create_upsampler("kin.upfeat").prepare(image, encoder)
    assert torch.equal(pixels, normalize(image, *HALF))
    assert torch.equal(guidance, normalize(image, *IMAGENET))
    pixels, guidance = upfeat.create_upsampler("bilinear").prepare(image, encoder)
    assert torch.equal(pixels, guidance)


def test_a_normalised_image_can_be_stored_and_changed(tmp_path: Path) -> None:
    image = normalize(torch.rand(1, 3, 8, 8), *IMAGENET)
    torch.save(image, tmp_path / "a.pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True), image)
    back = image * image.new_tensor(IMAGENET[1])[:, None, None]
    back = back + back.new_tensor(IMAGENET[0])[:, None, None]
    assert raw_scale(back.clamp(0, 1), *IMAGENET) == "[0, 1]", (
        "what is made of it is looked at again"
    )


def test_normalisation_compiles_whole() -> None:
    compiled = torch.compile(lambda x: normalize(x, *HALF), fullgraph=True, backend="eager")
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(compiled(image), normalize(image, *HALF))
