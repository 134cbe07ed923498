"""Names: listing, creating, close matches, refusals."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import upfeat
from upfeat.errors import UnknownNameError, WeightsNotFoundError
from upfeat.upsamplers import UpsamplerInfo, registry
from upfeat.upsamplers.interpolation import Bilinear
from upfeat.upsamplers.registry import get_checkpoint


def test_wildcards_and_order() -> None:
    names = upfeat.list_upsamplers()
    assert names == sorted(names)
    assert {"nearest", "bilinear", "bicubic", "jafar", "loftup"} <= set(names)
    assert upfeat.list_upsamplers("b*ic*") == ["bicubic"]
    assert upfeat.list_upsamplers("no-such*") == []


def test_every_file_that_registers_a_method_is_found() -> None:
    folder = Path(registry.__file__).parent
    pattern = re.compile(r'^@register_upsampler\(\s*"(\w+)"', re.MULTILINE)
    written = [name for file in folder.glob("*.py") for name in pattern.findall(file.read_text())]
    assert upfeat.list_upsamplers() == sorted(written)


def test_pretrained_lists_tags_only() -> None:
    tags = upfeat.list_upsamplers(pretrained=True)
    assert all(tag.count(".") == 1 for tag in tags)
    assert "jafar.dinov2_vits14" in tags
    assert upfeat.list_upsamplers("loftup.*", pretrained=True)
    assert not upfeat.list_upsamplers("bilinear*", pretrained=True)


@pytest.mark.parametrize("name", ["jafr", "bilinea", "JAFAR"])
def test_unknown_name_lists_close_matches(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown upsampler .*Known: anyup, area, bicubic"):
        upfeat.create_upsampler(name)


def test_unknown_tag() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'jafar.dinov2_vits14"):
        upfeat.create_upsampler("jafar.dinov2_vits1", pretrained=True)
    with pytest.raises(UnknownNameError, match="none are published"):
        upfeat.create_upsampler("bilinear", pretrained=True)


def test_pretrained_without_tag_says_which_tags_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"jafar\.dinov2_vitb14"):
        upfeat.create_upsampler("jafar", pretrained=True)


def test_tag_without_pretrained_has_the_records_sizes() -> None:
    assert (
        upfeat.create_upsampler("jafar.dinov2_vitb14", pretrained=False).config["feature_dim"]
        == 768
    )


def test_a_miss_names_all_four_places(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path))
    with pytest.raises(WeightsNotFoundError) as caught:
        upfeat.create_upsampler("jafar.dinov2_vits14", pretrained=True)
    message = str(caught.value)
    for part in ("explicit file", "$UPFEAT_WEIGHTS", "local cache", "the hub", "UPFEAT_OFFLINE"):
        assert part in message


def test_explicit_file_that_is_absent() -> None:
    with pytest.raises(WeightsNotFoundError, match="no file at"):
        upfeat.create_upsampler("jafar.dinov2_vits14", weights="no-such-file.pth")


def test_registering_twice_or_wrongly_is_refused() -> None:
    with pytest.raises(ValueError, match="registered already"):
        registry.register_upsampler("bilinear")
    with pytest.raises(ValueError, match="lower-case"):
        registry.register_upsampler("a.b")
    with pytest.raises(ValueError, match="expected 'other'"):
        registry.register_upsampler("other")(Bilinear)


def test_a_users_own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    monkeypatch.setattr(registry, "_CHECKPOINTS", dict(registry._CHECKPOINTS))

    @registry.register_upsampler("mine")
    class Mine(Bilinear):
        info = UpsamplerInfo(name="mine", summary="A user's method.")

    assert "mine" in upfeat.list_upsamplers()
    assert isinstance(upfeat.create_upsampler("mine"), Mine)


def test_a_tag_loads_its_weights_and_random_ones_are_asked_for_aloud() -> None:
    loaded = upfeat.create_upsampler("kin.upfeat")
    again = upfeat.create_upsampler("kin.upfeat", pretrained=True)
    assert not loaded.training
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True)
    )
    random = upfeat.create_upsampler("kin.upfeat", pretrained=False)
    assert random.training
    assert random.trained_for is None
    assert not all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), random.parameters(), strict=True)
    )
    assert upfeat.create_upsampler("jafar", feature_dim=16).training
    with pytest.raises(ValueError, match="pretrained=False"):
        upfeat.create_upsampler("kin.upfeat", pretrained=False, weights="a.pth")


@pytest.mark.parametrize("name", upfeat.list_upsamplers(pretrained=True))
def test_a_tag_whose_weights_are_not_here_says_where_it_looked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = get_checkpoint(name)
    if record is not None and record.bundled:
        assert not upfeat.create_upsampler(name).training
        return
    for variable in ("UPFEAT_WEIGHTS", "UPFEAT_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    with pytest.raises(WeightsNotFoundError, match="looked in four places") as caught:
        upfeat.create_upsampler(name)
    assert name in str(caught.value)


def test_a_bare_name_has_random_weights_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"'kin'\) has random weights.*kin\.upfeat"):
        bare = upfeat.create_upsampler("kin")
    assert bare.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meant = upfeat.create_upsampler("kin", pretrained=False)
        loaded = upfeat.create_upsampler("kin.upfeat")
        upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8)  # said by its arguments
        upfeat.create_upsampler("bilinear")
        upfeat.load_upsampler("kin", 8, allow_random=True)
    assert meant.training
    assert not loaded.training
    weights, random = (next(up.parameters()) for up in (loaded, meant))
    assert not torch.equal(weights, random)
    with pytest.raises(ValueError, match=r"which has random weights, or name published ones: jafa"):
        upfeat.create_upsampler("jafar")


def test_device_and_dtype_are_taken_wherever_something_is_loaded(tmp_path: Path) -> None:
    wanted = {"device": "meta", "dtype": torch.bfloat16}
    upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8).save_pretrained(tmp_path)
    state = upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=32).state_dict()
    made = [
        upfeat.create_upsampler("kin.upfeat", **wanted),
        upfeat.create_upsampler("jafar", feature_dim=8, **wanted),
        upfeat.from_official("jafar", state, num_heads=4, **wanted),
        upfeat.Upsampler.from_pretrained(tmp_path, **wanted),
        upfeat.load_upsampler("kin.upfeat", 8, **wanted),
        upfeat.load_upsampler(tmp_path, 8, **wanted),
        upfeat.create_backbone("upfeat/vit_compact_patch16", **wanted),
    ]
    for module in made:
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    pipe = upfeat.Pipeline("upfeat/vit_compact_patch16", "kin.upfeat", dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.upsampler.parameters()} == {torch.bfloat16}
