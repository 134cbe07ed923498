"""``torch.hub`` on this checkout: what it lists, loads and refuses."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import upfeat


@pytest.fixture
def load(repository: Path) -> Any:
    def load(entry: str, **arguments: Any) -> Any:
        return torch.hub.load(str(repository), entry, source="local", **arguments)

    return load


@pytest.fixture
def hubconf(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf", repository / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_entries_are_the_methods_and_two_more(hubconf: ModuleType) -> None:
    # What torch.hub.list takes for entries.
    entries = [n for n in dir(hubconf) if callable(getattr(hubconf, n)) and not n.startswith("_")]
    assert sorted(entries) == sorted([*upfeat.list_upsamplers(), "backbone", "pipeline"])
    assert "pretrained: a tag" in hubconf.jafar.__doc__


@torch.no_grad()
def test_the_only_weights_are_loaded(load: Any) -> None:
    up = load("kin", device="cpu")
    assert not up.training
    reference = upfeat.create_upsampler("kin.upfeat")
    for key, tensor in reference.state_dict().items():
        assert torch.equal(up.state_dict()[key], tensor)


def test_a_tag_names_weights(load: Any) -> None:
    assert load("jafar", pretrained="vit_compact_patch16").trained_for is not None
    with pytest.raises(ValueError, match="jafar has several weights; name one"):
        load("jafar")


def test_random_weights_and_methods_without_any(load: Any) -> None:
    assert load("jafar", pretrained=False, feature_dim=16, qk_dim=32).config["feature_dim"] == 16
    assert load("bilinear").info.name == "bilinear"


@torch.no_grad()
def test_a_pipeline_and_a_backbone(load: Any) -> None:
    out = load("pipeline")(torch.rand(3, 32, 48))
    assert out.high.shape[-2:] == (32, 48)
    assert load("backbone")(torch.rand(1, 3, 32, 48)).shape == (1, 192, 2, 3)


def test_dependencies_are_named_as_they_are_imported(hubconf: ModuleType) -> None:
    assert "torch" in hubconf.dependencies
    for name in hubconf.dependencies:
        assert importlib.util.find_spec(name) is not None, name
