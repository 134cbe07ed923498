"""Loading and saving: official layouts, upfeat's own, and every refusal."""

import json
from pathlib import Path

import pytest
import torch

import upfeat
from upfeat.errors import CheckpointError, WeightsNotFoundError
from upfeat.upsamplers.registry import get_checkpoint, get_class

SMALL = {"feature_dim": 16, "qk_dim": 32}


@pytest.fixture
def small() -> upfeat.Upsampler:
    return upfeat.create_upsampler("jafar", **SMALL)


def test_records_are_complete() -> None:
    for name in upfeat.list_upsamplers(pretrained=True):
        record = get_checkpoint(name)
        assert record is not None
        assert record.file.repository or record.file.url or record.bundled, name
        fields = ["backbone", "training_data", "code_license", "weights_license"]
        if get_class(name).info.paper is not None:
            fields.append("paper")
        for field in fields:
            assert getattr(record, field), f"{name}: {field} is empty"
        assert (record.image_mean is None) == (record.image_std is None)


def test_a_record_loads_from_the_weights_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    source = upfeat.create_upsampler("jafar.dinov2_vits14")
    torch.save(official_layout(source), tmp_path / "jafar.dinov2_vits14.pth")
    loaded = upfeat.create_upsampler("jafar.dinov2_vits14", pretrained=True)
    record = get_checkpoint("jafar.dinov2_vits14")
    assert record is not None
    assert loaded.info.image_mean == record.image_mean
    assert not loaded.training
    torch.save(
        official_layout(upfeat.create_upsampler("jafar.dinov2_vitb14")),
        tmp_path / "jafar.dinov2_vits14.pth",
    )
    with pytest.raises(CheckpointError, match="another backbone"):
        upfeat.create_upsampler("jafar.dinov2_vits14", pretrained=True)


def official_layout(model: upfeat.Upsampler) -> dict[str, torch.Tensor]:
    """A state dict that the method's own ``convert_official`` takes."""
    return model.state_dict()


def test_wrong_keys_and_shapes_are_named(small: upfeat.Upsampler) -> None:
    state = small.state_dict()
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="unexpected"):
        upfeat.from_official("jafar", state | {"no_such_module.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="missing"):
        upfeat.from_official("jafar", {k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match=r"not a jafar state dict|holds no tensors"):
        upfeat.from_official("jafar", {"conv.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="no official weight files"):
        upfeat.from_official("bilinear", {"conv.weight": torch.ones(1)})


def test_nested_state_dicts(small: upfeat.Upsampler, tmp_path: Path) -> None:
    torch.save({"jafar": small.state_dict(), "epoch": 1}, tmp_path / "a.pth")
    loaded = upfeat.from_official("jafar", tmp_path / "a.pth")
    for key, tensor in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no config\.json"):
        upfeat.Upsampler.from_pretrained(tmp_path)


def test_unreachable_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFoundError, match="neither a folder nor a reachable"):
        upfeat.Upsampler.from_pretrained("someone/something-that-is-not-cached")


def test_hub_id_goes_through_huggingface_hub(
    small: upfeat.Upsampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.save_pretrained(tmp_path)
    asked = {}

    def snapshot(repository: str, **arguments: object) -> str:
        asked.update(arguments, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = upfeat.Upsampler.from_pretrained("someone/model", revision="v1")
    assert loaded.config == small.config
    assert asked["repository"] == "someone/model"
    assert asked["revision"] == "v1"


def test_a_foreign_or_broken_config(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match="not a configuration of upfeat"):
        upfeat.Upsampler.from_pretrained(tmp_path)
    config["config"]["feature_dim"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected"):
        upfeat.Upsampler.from_pretrained(tmp_path)


def test_a_class_refuses_another_method(small: upfeat.Upsampler, tmp_path: Path) -> None:
    upfeat.create_upsampler("bilinear").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a Bilinear, not a Jafar"):
        type(small).from_pretrained(tmp_path)


def test_card_names_licences_and_paper(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert "2506.11136" in card
    assert "Apache-2.0" in card
    small.save_pretrained(tmp_path / "b", card="my card")
    assert (tmp_path / "b" / "README.md").read_text() == "my card"
