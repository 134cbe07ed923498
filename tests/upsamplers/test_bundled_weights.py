"""Our weights, in the package and beside it: intact, small, described as their records say."""

import re
from importlib import resources
from pathlib import Path

import pytest
import torch

import upfeat
from upfeat.checkpoints import file_sha256
from upfeat.errors import WeightsNotFoundError
from upfeat.upsamplers.registry import get_checkpoint

PACKAGE = Path(str(resources.files("upfeat.upsamplers") / "bundled"))
REPOSITORY = Path(__file__).resolve().parents[2] / "weights"  # not in the wheel
OURS = {
    name: record
    for name in upfeat.list_upsamplers(pretrained=True)
    if (record := get_checkpoint(name)) is not None and record.ours
}
BUNDLED = sorted(name for name, record in OURS.items() if record.bundled)
BESIDE = sorted(OURS.keys() - BUNDLED)


@pytest.mark.parametrize(("folder", "names"), [(PACKAGE, BUNDLED), (REPOSITORY, BESIDE)])
def test_every_file_has_a_record(folder: Path, names: list[str]) -> None:
    assert names
    assert [path.stem for path in sorted(folder.glob("*.safetensors"))] == names


@pytest.mark.parametrize("name", OURS)
def test_file_and_card(name: str) -> None:
    record = OURS[name]
    file = (PACKAGE if record.bundled else REPOSITORY) / record.file.filename
    assert file.stat().st_size < 4_000_000
    assert file_sha256(file) == record.file.sha256
    card = file.with_suffix(".md").read_text()
    for part in ("seed", "hours", "Loss curve", "Licences", "CamVid"):
        assert part in card, part
    assert file.with_suffix(".csv").read_text().startswith("step,loss")


@pytest.mark.parametrize("name", BUNDLED)
@torch.no_grad()
def test_it_loads_without_any_folder_of_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPFEAT_WEIGHTS", raising=False)
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    check_loaded(upfeat.create_upsampler(name))


@pytest.mark.parametrize("name", BESIDE)
@torch.no_grad()
def test_a_file_beside_the_package_is_found_in_the_folder_of_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(REPOSITORY))
    up = upfeat.create_upsampler(name)
    check_loaded(up)
    serves_any = OURS[name].feature_dim is None
    trained_for = None if up.trained_for is None else up.trained_for.name
    assert trained_for == (None if serves_any else OURS[name].backbone)


@pytest.mark.parametrize("name", BESIDE)
def test_a_missing_file_beside_the_package_says_where_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path))
    monkeypatch.delenv("UPFEAT_OFFLINE", raising=False)
    place = f"{name}.safetensors in the folder weights of upfeat's source repository"
    with pytest.raises(WeightsNotFoundError, match=re.escape(place)):
        upfeat.create_upsampler(name)


def check_loaded(up: upfeat.Upsampler) -> None:
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
