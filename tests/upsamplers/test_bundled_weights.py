"""The weights of the package: there, intact, small, described, and what their records say."""

from importlib import resources
from pathlib import Path

import pytest
import torch

import upfeat
from upfeat.checkpoints import file_sha256
from upfeat.upsamplers.registry import get_checkpoint

FOLDER = Path(str(resources.files("upfeat.upsamplers") / "bundled"))
NAMES = sorted(
    name
    for name in upfeat.list_upsamplers(pretrained=True)
    if getattr(get_checkpoint(name), "bundled", False)
)


def test_every_file_has_a_record() -> None:
    assert NAMES
    assert [path.stem for path in sorted(FOLDER.glob("*.safetensors"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_and_card(name: str) -> None:
    record = get_checkpoint(name)
    assert record is not None
    file = FOLDER / record.file.filename
    assert file.stat().st_size < 4_000_000
    assert file_sha256(file) == record.file.sha256
    card = file.with_suffix(".md").read_text()
    for part in ("seed", "hours", "Loss curve", "Licences", "CamVid"):
        assert part in card, part
    assert file.with_suffix(".csv").read_text().startswith("step,loss")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_loads_without_any_folder_of_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPFEAT_WEIGHTS", raising=False)
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    up = upfeat.create_upsampler(name)
    assert not up.training
    assert {parameter.dtype for parameter in up.parameters()} == {torch.float32}
    width = up.config.get("feature_dim", 20)
    out = up(torch.randn(1, 3, 48, 64), torch.randn(1, width, 3, 4))
    assert out.shape == (1, width, 48, 64)
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_the_default_keeps_to_the_sides_of_an_edge() -> None:
    """Half the image is dark, half is bright, the features follow; the border lies inside cells."""
    up = upfeat.create_upsampler("kin.upfeat")
    image = torch.full((1, 3, 96, 160), -1.5)
    image[..., 72:] = 1.5
    side = (image[:, :1] > 0).float()
    cells = torch.nn.functional.avg_pool2d(side, 16)
    features = torch.cat([cells, 1 - cells], dim=1)
    bilinear = torch.nn.functional.interpolate(cells, (96, 160), mode="bilinear")
    out = up(image, features, values=cells)
    assert (out - side).abs().mean() < 0.5 * (bilinear - side).abs().mean()
