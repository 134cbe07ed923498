"""Loading and saving: official layouts, upfeat's own, and every refusal."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import upfeat
from upfeat.checkpoints import write_safetensors
from upfeat.errors import CheckpointError, ForeignFileError, WeightsNotFoundError
from upfeat.upsamplers.registry import get_checkpoint, get_class, needs_feature_dim

SMALL = {"feature_dim": 16, "qk_dim": 32}


@pytest.fixture
def small() -> upfeat.Upsampler:
    return upfeat.create_upsampler("jafar", **SMALL)


def test_records_are_complete() -> None:
    for name in upfeat.list_upsamplers(pretrained=True):
        record = get_checkpoint(name)
        assert record is not None
        assert record.file.repository or record.file.url or record.file.place, name
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
    source = upfeat.create_upsampler("jafar.dinov2_vits14", pretrained=False)
    torch.save(official_layout(source), tmp_path / "jafar.dinov2_vits14.pth")
    loaded = upfeat.create_upsampler("jafar.dinov2_vits14")
    record = get_checkpoint("jafar.dinov2_vits14")
    assert record is not None
    assert loaded.info.image_mean == record.image_mean
    assert not loaded.training
    torch.save(
        official_layout(upfeat.create_upsampler("jafar.dinov2_vitb14", pretrained=False)),
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
    monkeypatch.setattr("upfeat.upsamplers.hub._reachable", lambda *_: True)
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
    with pytest.raises(CheckpointError, match="holds a Bilinear, not a JAFAR"):
        type(small).from_pretrained(tmp_path)


def test_card_names_licences_and_paper(small: upfeat.Upsampler, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    assert "2506.11136" in card
    assert "Apache-2.0" in card
    small.save_pretrained(tmp_path / "b", card="my card")
    assert (tmp_path / "b" / "README.md").read_text().endswith("\n\nmy card")


def test_saving_replaces_what_was_saved_and_nothing_else(
    small: upfeat.Upsampler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small.save_pretrained(tmp_path / "a", card="first")
    small.save_pretrained(tmp_path / "a", card="second")
    card = tmp_path / "a" / "README.md"
    assert card.read_text().endswith("\n\nsecond")
    card.write_text("by hand")
    small.save_pretrained(tmp_path / "a", card="third")
    assert card.read_text() == "by hand"
    assert "README.md was not written by upfeat and is kept" in caplog.text
    for name in ("config.json", "model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ForeignFileError, match=f"{name} is there already"):
            small.save_pretrained(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "mine"


# -- files and configurations of others, and damaged ones ------------------------------------------

LEARNED: dict[str, dict[str, Any]] = {
    "anyup": {"qk_dim": 16},
    "carafe": {"feature_dim": 16, "compressed_channels": 8, "stages": 1},
    "dysample": {"feature_dim": 16, "stages": 1},
    "featup_implicit": {"feature_dim": 16, "pca_dim": 8, "n_freqs": 4},
    "featup_jbu": {"feature_dim": 16},
    "ifa": {"feature_dim": 16},
    "jafar": {"feature_dim": 16, "qk_dim": 16},
    "joint_bilateral_learned": {},
    "kin": {},
    "lift": {"feature_dim": 16},
    "liif": {"feature_dim": 16, "hidden_dim": 24, "num_hidden": 2},
    "loftup": {"feature_dim": 16},
    "naf": {"dim": 32, "heads_rope": 2},
    "pixelup": {"d_enc": 96, "rope_directions": 8, "encoder": "test_convnext"},
    "raysup": {"qk_dim": 32},
    "resfu": {"feature_dim": 16},
    "resize_conv": {"feature_dim": 16},
    "sapa": {"feature_dim": 16, "embedding_dim": 16, "stages": 1},
    "uplift": {"feature_dim": 16},
    "vit_up": {"feature_dim": 24, "num_blocks": 1},
    "wrc": {"feature_dim": 16},
}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    """A state dict of every method that learns."""
    torch.manual_seed(0)
    return {name: upfeat.create_upsampler(name, **kw).state_dict() for name, kw in LEARNED.items()}


def test_every_method_that_learns_is_among_them() -> None:
    for name in set(upfeat.list_upsamplers()) - set(LEARNED):
        width = {"feature_dim": 4} if needs_feature_dim(name) else {}
        assert not upfeat.create_upsampler(name, **width).state_dict(), name


@pytest.mark.parametrize("name", upfeat.list_upsamplers())
def test_a_state_dict_of_another_method_is_refused(
    name: str, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    foreign = {
        "resnet": {"conv1.weight": torch.ones(4, 3, 3, 3), "bn1.weight": torch.ones(4)},
        "scalars": {"conv1.weight": torch.tensor(1.0), "mlp.3.weight": torch.tensor(1.0)},
        "empty": {},
        "lists": {"conv1.weight": [1.0]},
        "numbers": {0: torch.ones(1)},
    }
    for other, state in {**states, **foreign}.items():
        if other != name:
            with pytest.raises(CheckpointError, match=r"state dict|official"):
                upfeat.from_official(name, state)


@pytest.mark.parametrize("name", LEARNED)
def test_damaged_tensors_are_refused_whatever_they_are(
    name: str, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    shapes = [(), (0,), (3, 0, 2), (1, 2, 3, 4, 5)]
    for place, key in enumerate(states[name]):
        for strange in (torch.zeros(shapes[place % len(shapes)]), torch.ones(7), None):
            state = {**states[name], key: strange}
            if strange is not None and strange.shape == states[name][key].shape:
                continue
            with pytest.raises(CheckpointError):
                upfeat.from_official(name, state)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrapped_modules(
    name: str, prefix: str, states: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    own = states[name]
    wrapped = {prefix + key: tensor for key, tensor in own.items()}
    for content in (
        wrapped,
        {"state_dict": wrapped, "epoch": 2},
        {"ema": wrapped},
        {name: wrapped},
    ):
        loaded = upfeat.from_official(name, content).state_dict()
        assert all(torch.equal(loaded[key], own[key]) or own[key].isnan().all() for key in own)
    model = upfeat.create_upsampler(name, **LEARNED[name])
    model.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", wrapped)
    assert upfeat.Upsampler.from_pretrained(tmp_path).state_dict().keys() == own.keys()


def test_a_module_in_the_place_of_its_state_dict(small: upfeat.Upsampler) -> None:
    with pytest.raises(CheckpointError, match=r"got JAFAR; of a module, give module\.state_dict"):
        upfeat.from_official("jafar", small)  # type: ignore[arg-type]


def test_a_callers_mistake_is_the_callers(small: upfeat.Upsampler) -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        upfeat.from_official("jafar", small.state_dict(), no_such_argument=1)
    with pytest.raises(ValueError, match="num_heads"):
        upfeat.from_official("jafar", small.state_dict(), num_heads=5)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": None},
        {"architecture": 3},
        {"architecture": "no_such_method"},
        {"architecture": "jafar.dinov2_vits14x"},
        {"architecture": "naf"},
        {"config": None},
        {"config": []},
        {"config": {"feature_dim": "x"}},
        {"config": {"feature_dim": None}},
        {"config": {"feature_dim": -1}},
        {"config": {"feature_dim": 0}},
        {"config": {"feature_dim": 1.5}},
        {"config": {"feature_dim": 10**12}},
        {"config": {"feature_dim": 16, "qk_dim": 32, "num_heads": 0}},
        {"config": {"feature_dim": 16, "qk_dim": 32, "no_such_argument": 1}},
        {"config": {}},
        {"image_std": [0.0, 1.0, 1.0], "image_mean": [0, 0, 0]},
        {"image_std": [float("nan")] * 3, "image_mean": [0, 0, 0]},
        {"image_std": [1, 1, 1], "image_mean": [0, 0, float("inf")]},
        {"image_std": [1, 1], "image_mean": [0, 0]},
        {"image_std": [-1, 1, 1], "image_mean": [0, 0, 0]},
        {"image_std": "abc", "image_mean": "abc"},
        {"image_std": 0.5, "image_mean": 0.5},
        {"image_std": [1, 1, 1], "image_mean": None},
        {"image_std": {"a": 1, "b": 1, "c": 1}, "image_mean": [0, 0, 0]},
        {"image_std": [True, True, True], "image_mean": [0, 0, 0]},
        {"weights_license": 3},
        {"feature_norm": "no"},
    ],
)
def test_a_damaged_configuration_names_its_file(
    change: dict[str, object], small: upfeat.Upsampler, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        upfeat.Upsampler.from_pretrained(tmp_path)


# -- which backbone the weights belong to ----------------------------------------------------------

COMPACT = "upfeat/vit_compact_patch16"


def mismatches(call: Callable[[], object]) -> list[str]:
    """The warnings about another backbone that a call issues."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if "were trained for" in str(w.message)]


def test_a_folder_names_its_backbone_with_layer_and_normalisation(tmp_path: Path) -> None:
    backbone = upfeat.create_backbone(COMPACT, weights="random", layer=3)
    source = upfeat.create_upsampler("jafar", feature_dim=192, qk_dim=16)
    source.save_pretrained(tmp_path, backbone=backbone)
    told = json.loads((tmp_path / "config.json").read_text())["backbone"]
    assert told == {
        "name": COMPACT,
        "layer": 3,
        "norm": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    assert COMPACT in (tmp_path / "README.md").read_text()
    loaded = upfeat.Upsampler.from_pretrained(tmp_path)
    assert mismatches(lambda: upfeat.Pipeline(backbone, loaded)) == []
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["backbone"] == told


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("timm/vit_tiny_patch16_224", {"depth": 1}, (COMPACT, "timm/vit_tiny_patch16_224")),
        (COMPACT, {"layer": 2}, ("layer 4", "layer 2")),
        (COMPACT, {"norm": False}, ("norm True", "norm False")),
    ],
)
def test_weights_of_another_backbone_are_warned_of_once(
    tmp_path: Path, spec: str, options: dict[str, Any], words: tuple[str, str]
) -> None:
    right = upfeat.create_backbone(COMPACT, weights="random")
    wrong = upfeat.create_backbone(spec, weights="random", **options)
    source = upfeat.create_upsampler("jafar", feature_dim=192, qk_dim=16)
    source.save_pretrained(tmp_path, backbone=right)
    loaded = upfeat.Upsampler.from_pretrained(tmp_path)
    found = mismatches(lambda: [upfeat.Pipeline(wrong, loaded) for _ in range(3)])
    assert len(found) == 1
    assert all(word in found[0] for word in words)
    assert mismatches(lambda: upfeat.Pipeline(right, loaded)) == []


def test_a_tags_weights_know_their_backbone(tmp_path: Path) -> None:
    other = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    right = upfeat.create_backbone(COMPACT)
    up = upfeat.create_upsampler("jafar.vit_compact_patch16")
    assert len(mismatches(lambda: upfeat.Pipeline(other, up))) == 1
    assert mismatches(lambda: upfeat.Pipeline(right, up)) == []
    for same in (upfeat.large_image(right, 2), upfeat.strided(right, 8)):
        assert mismatches(lambda same=same: upfeat.Pipeline(same, up)) == []
    up.save_pretrained(tmp_path)
    saved = upfeat.Upsampler.from_pretrained(tmp_path)
    assert len(mismatches(lambda: upfeat.Pipeline(other, saved))) == 1


def test_whoever_normalises_for_another_backbone_is_warned() -> None:
    other = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    up = upfeat.create_upsampler("jafar.vit_compact_patch16")
    image = torch.rand(1, 3, 32, 32)
    assert len(mismatches(lambda: [up.prepare(image, other) for _ in range(2)])) == 1
    up = upfeat.create_upsampler("jafar.vit_compact_patch16")
    pipe = upfeat.Pipeline(other)
    assert len(mismatches(lambda: [pipe.with_upsampler(up) for _ in range(2)])) == 1


def test_another_backbone_is_warned_of_at_loading_unless_it_is_meant() -> None:
    other = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    tag = "jafar.vit_compact_patch16"
    assert len(mismatches(lambda: upfeat.load_upsampler(tag, other))) == 1
    loaded = upfeat.load_upsampler(tag, other, any_backbone=True)
    assert mismatches(lambda: upfeat.Pipeline(other, loaded)) == []
    assert mismatches(lambda: upfeat.load_upsampler(tag, other, any_backbone=True)) == []


@pytest.mark.parametrize("name", ["kin.upfeat", "bilinear", "joint_bilateral", "anyup", "naf"])
def test_what_serves_any_backbone_is_never_warned_of(name: str, tmp_path: Path) -> None:
    one = upfeat.create_backbone(COMPACT, weights="random")
    other = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    upfeat.create_upsampler(name).save_pretrained(tmp_path, backbone=one)
    assert json.loads((tmp_path / "config.json").read_text())["backbone"] is None
    loaded = upfeat.Upsampler.from_pretrained(tmp_path)
    assert mismatches(lambda: upfeat.Pipeline(other, loaded)) == []


def test_random_weights_and_unnamed_functions_are_not_warned_of() -> None:
    up = upfeat.create_upsampler("jafar.vit_compact_patch16", pretrained=False)
    other = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    assert mismatches(lambda: upfeat.Pipeline(other, up)) == []
    function = upfeat.CallableBackbone(torch.nn.Conv2d(3, 192, 16, 16), 192, 16)
    loaded = upfeat.create_upsampler("jafar.vit_compact_patch16")
    assert mismatches(lambda: upfeat.Pipeline(function, loaded)) == []


@pytest.mark.parametrize(
    "backbone",
    [
        3, "timm/x", [], {}, {"name": 3}, {"name": "a", "layer": "x"}, {"name": "a", "strange": 1},
        {"name": "a", "image_mean": [0, 0, 0], "image_std": [0, 0, 0]},
    ],
)  # fmt: skip
def test_a_damaged_record_of_the_backbone_names_its_file(
    backbone: object, small: upfeat.Upsampler, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "backbone": backbone}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        upfeat.Upsampler.from_pretrained(tmp_path)
    del config["backbone"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert upfeat.Upsampler.from_pretrained(tmp_path).trained_for is None
