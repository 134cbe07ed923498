"""PixelUp: goldens of a transcription of its port, its frozen encoder, its limits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError
from upfeat.ops.images import average_areas
from upfeat.upsamplers.pixelup_guide import frozen_encoder
from upfeat.upsamplers.registry import get_checkpoint

TINY = {
    **{"d_enc": 16, "num_heads_encoder": 2, "num_heads_decoder": 2, "rope_directions": 2},
    **{"kernel_size": 3, "smallest_side": 96, "encoder": "test_convnext"},
}


class TestContract(UpsamplerContract):
    name = "pixelup"
    config: ClassVar = TINY
    smallest_grid = (3, 3)


class StandIn(nn.Module):
    """The goldens' encoder: tanh of a 1x1 convolution of average pooling."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.stages = [weights[f"s{level}.weight"].float() for level in range(4)]
        widths = [len(weight) for weight in self.stages]
        self.feature_info = SimpleNamespace(channels=lambda: widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        pooled = [F.avg_pool2d(image, 4 * 2**level) for level in range(4)]
        return [torch.tanh(F.conv2d(*pair)) for pair in zip(pooled, self.stages, strict=True)]


@pytest.mark.parametrize("grad", [False, True], ids=["strips", "plain"])
@pytest.mark.parametrize("case", ["small_output_pooled", "direct_nonint"])
def test_golden(golden_dir: Path, case: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, meta = load_golden(golden_dir / "pixelup" / f"{case}.safetensors")
    stub = {key.removeprefix("stub."): t for key, t in tensors.items() if key.startswith("stub.")}
    monkeypatch.setattr("upfeat.upsamplers.pixelup.frozen_encoder", lambda *_: StandIn(stub))
    model = upfeat.from_official("pixelup", golden_state(tensors), **meta["constructor"])
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    image, features = tensors["input.image"], tensors["input.features"]
    with torch.set_grad_enabled(grad):
        out = model(image, features, meta["output_size"])
    assert max_abs_difference(out, tensors["output"]) <= GOLDEN_ATOL
    multiple = model.multiple(tuple(meta["output_size"]))
    size = tuple(multiple * side for side in meta["output_size"])
    code = model.rope(model.smooth(model.queries(image, size)))
    # On the code's zero rim a rounding of the rotation is amplified by the highest frequency.
    keys = average_areas(code, features.shape[2:])
    torch.testing.assert_close(keys, tensors["keys"], atol=1e-4, rtol=0)
    read = type(model).official_config(golden_state(tensors))
    assert read["d_enc"] == meta["constructor"]["d_enc"]
    assert read["rope_directions"] == meta["constructor"]["rope_directions"]


def test_constants_of_the_paper() -> None:
    model = upfeat.create_upsampler("pixelup", encoder="convnext_tiny.dinov3_lvd1689m")
    assert sum(p.numel() for p in model.parameters()) == 11_073_024  # beside the encoder's
    assert model.smallest_output == 288
    assert [model.multiple((side, 500)) for side in (287, 288, 144, 100)] == [2, 1, 2, 3]
    assert len(model.rope.freqs) == 12
    own = [key for key in model.state_dict() if not key.startswith("encoder.")]
    assert len(own) == 60


@pytest.mark.parametrize(("letter", "depth"), [("s", 27), ("t", 9)])
def test_official_keys(letter: str, depth: int) -> None:
    """The records' files hold the encoder under a prefix, and tensors that nobody needs."""
    record = get_checkpoint(f"pixelup.convnext_{letter}")
    assert record is not None
    state = {
        "smooth.weight": torch.zeros(384, 384, 1, 1),
        "up_s0.conv.weight": torch.zeros(384, 96, 3, 3),
        "rope.freqs": torch.zeros(12),
        "ce.weight": torch.zeros(1),
        f"semantic_encoder.model.stages_2.blocks.{depth - 1}.conv_dw.weight": torch.zeros(1),
    } | {
        f"convnext.model.stages_2.blocks.{block}.conv_dw.weight": torch.zeros(1)
        for block in range(depth - 1)
    }
    cls = type(upfeat.create_upsampler("pixelup", **TINY))
    assert cls.official_config(state) == {
        "d_enc": 384,
        "rope_directions": 16,
        "encoder": record.config["encoder"].partition(".")[0],
    }
    assert "ce.weight" not in cls.convert_official(state)


# -- the frozen encoder --------------------------------------------------------------------------


def test_the_encoder_is_frozen_and_saved() -> None:
    model = upfeat.create_upsampler("pixelup", **TINY).train()
    assert not any(key.startswith("encoder.") for key, _ in model.named_parameters())
    assert any(key.startswith("encoder.") for key in model.state_dict())
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    stages = model.encoder(image.detach())
    assert not any(stage.requires_grad for stage in stages)


def test_the_encoder_takes_weights_of_timm(tmp_path: Path) -> None:
    other: Any = frozen_encoder("test_convnext", None)
    plain = {
        key.replace("stem_", "stem.").replace("stages_", "stages."): value.contiguous()
        for key, value in other.state_dict().items()
    }
    plain["head.fc.weight"] = torch.zeros(10, 64)
    save_file(plain, tmp_path / "encoder.safetensors")
    model = upfeat.create_upsampler(
        "pixelup", **TINY, encoder_weights=str(tmp_path / "encoder.safetensors")
    )
    for key, value in other.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], value), key
    assert model.config["encoder_weights"] is None  # its own files hold them
    save_file({"stem.0.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match="wrong"):
        frozen_encoder("test_convnext", str(tmp_path / "wrong.safetensors"))


# -- limits --------------------------------------------------------------------------------------


def test_limits_are_explained() -> None:
    model = upfeat.create_upsampler("pixelup", **TINY)
    image, features = torch.randn(1, 3, 32, 32), torch.randn(1, 8, 6, 6)
    with pytest.raises(ValueError, match="has 2 columns"):
        model(image, features[..., :2])
    for wrong, message in (
        ({"d_enc": 20}, "divisible"),
        ({"d_enc": 8, "rope_directions": 2}, "larger"),
        ({"kernel_size": 5}, "smallest_side of at least 160"),
        ({"encoder": "resnet18"}, "stages of strides"),
    ):
        with pytest.raises(ValueError, match=message):
            upfeat.create_upsampler("pixelup", **{**TINY, **wrong})


@torch.no_grad()
def test_smaller_outputs_are_averages_of_larger_ones() -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("pixelup", **TINY).eval()
    image, features = torch.randn(1, 3, 48, 48), torch.randn(1, 4, 4, 5)
    small, large = model(image, features, (20, 24)), model(image, features, (60, 72))
    assert max_abs_difference(small, F.avg_pool2d(large, 3)) < 1e-6
    fewer = model(image, torch.randn(1, 4, 60, 70), (20, 24))  # the features are finer than 60 x 72
    assert torch.isfinite(fewer).all()
