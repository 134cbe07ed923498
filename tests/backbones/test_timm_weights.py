from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from upfeat.backbones import create_backbone
from upfeat.backbones.timm_weights import load_timm_weights
from upfeat.checkpoints import write_safetensors
from upfeat.errors import (
    CheckpointError,
    UnknownNameError,
    UnsafeCheckpointError,
    WeightsNotFoundError,
)

NAME = "vit_tiny_patch16_224"
TAG = "augreg_in21k_ft_in1k"
SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 2}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty folders as the second and third place, and a closed fourth."""
    places = {"weights": tmp_path / "weights", "cache": tmp_path / "cache"}
    for variable, place in zip(("UPFEAT_WEIGHTS", "UPFEAT_CACHE"), places.values(), strict=True):
        place.mkdir()
        monkeypatch.setenv(variable, str(place))
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    return places


def small_state(seed: int = 0, **options: object) -> dict[str, Tensor]:
    """Weights of the small network, with its classifier."""
    import timm

    torch.manual_seed(seed)
    return timm.create_model(NAME, **{**SMALL, **options}).state_dict()


def save(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        write_safetensors(path, state)
    else:
        torch.save(state, path)
    return path


def create(spec: str = NAME, weights: object = None) -> torch.nn.Module:
    return create_backbone(f"timm/{spec}", weights, **SMALL)  # type: ignore[arg-type]


def first_weight(backbone: torch.nn.Module) -> Tensor:
    return backbone.get_parameter("model.patch_embed.proj.weight")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_explicit_file(tmp_path: Path, name: str, stored: torch.dtype) -> None:
    state = {key: value.to(stored) for key, value in small_state().items()}
    backbone = create(weights=save(tmp_path / name, state))
    for key, value in backbone.model.state_dict().items():  # type: ignore[union-attr]
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float()), key


def test_file_without_classifier(tmp_path: Path) -> None:
    state = small_state(num_classes=0)
    assert not any(key.startswith("head") for key in state)
    backbone = create(weights=save(tmp_path / "w.safetensors", state))
    assert torch.equal(first_weight(backbone), state["patch_embed.proj.weight"])


@pytest.mark.parametrize("container", ["state_dict", "model", "teacher"])
def test_nested_and_parallel_layouts(tmp_path: Path, container: str) -> None:
    state = small_state()
    nested = {container: {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save(nested, tmp_path / "w.pth")
    backbone = create(weights=tmp_path / "w.pth")
    assert torch.equal(first_weight(backbone), state["patch_embed.proj.weight"])


def test_position_table_of_another_grid_is_resized(tmp_path: Path) -> None:
    state = small_state(img_size=64)
    assert state["pos_embed"].shape[1] == 1 + 4 * 4
    backbone = create(weights=save(tmp_path / "w.safetensors", state))
    table = backbone.model.pos_embed  # type: ignore[union-attr]
    assert table.shape[1] == 1 + 14 * 14
    torch.testing.assert_close(table[:, :1], state["pos_embed"][:, :1])


def test_old_layer_scale_names_of_deit3(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("deit3_small_patch16_224", depth=1).state_dict()
    old = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for key in state}
    assert old != set(state)
    renamed = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in state.items()
    }
    path = save(tmp_path / "w.pth", renamed)
    create_backbone("timm/deit3_small_patch16_224", path, depth=1)


def test_convolutional_network(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    state = timm.create_model("resnet18").state_dict()
    backbone = create_backbone("timm/resnet18", save(tmp_path / "w.safetensors", state), layer=2)
    own = backbone.state_dict()
    assert torch.equal(own["model.layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
    assert not any("fc" in key for key in own)


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9", "caformer_s18", "test_convnext"])
def test_heads_of_several_layers_are_dropped(tmp_path: Path, name: str) -> None:
    import timm

    state = timm.create_model(name).state_dict()
    backbone = create_backbone(f"timm/{name}", save(tmp_path / "w.safetensors", state))
    own = backbone.model.state_dict()  # type: ignore[union-attr]
    assert own.keys() < state.keys()
    assert all("head" in key for key in state.keys() - own.keys())


def test_mismatches_name_the_keys(tmp_path: Path) -> None:
    state = small_state()
    state["blocks.0.extra"] = torch.ones(1)
    del state["norm.weight"]
    state["norm.bias"] = torch.zeros(7)
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(CheckpointError) as caught:
        create(weights=path)
    text = str(caught.value)
    for word in [
        str(path),
        "missing keys norm.weight",
        "unexpected keys blocks.0.extra",
        "norm.bias (7,) instead of (48,)",
        f"timm/{NAME}",
    ]:
        assert word in text


def test_file_of_another_architecture(tmp_path: Path) -> None:
    import timm

    path = save(tmp_path / "w.safetensors", timm.create_model("resnet18").state_dict())
    with pytest.raises(CheckpointError, match=r"missing keys .* and \d+ more"):
        create(weights=path)


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3, "w": torch.ones(1)}, {"state_dict": {"a": {"b": torch.ones(1)}}}]
)
def test_no_state_dict(tmp_path: Path, content: dict[str, object]) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no state dict.*Save model\.state_dict\(\)"):
        create(weights=tmp_path / "w.pth")


def test_pickle_that_asks_for_code(tmp_path: Path) -> None:
    torch.save({"model": small_state(), "path": Path("/tmp")}, tmp_path / "w.pth")
    with pytest.raises(UnsafeCheckpointError, match="refused"):
        create(weights=tmp_path / "w.pth")


def test_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"not a file")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        create(weights=path)


def test_missing_explicit_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no file at .*absent\.pth; check the path"):
        create(weights=tmp_path / "absent.pth")


def test_a_miss_names_all_four_places(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        create()
    text = str(caught.value)
    for word in [
        f"timm/{NAME}.{TAG}",
        "explicit file",
        "weights=FILE",
        f"$UPFEAT_WEIGHTS ({folders['weights']})",
        f"{NAME}.{TAG} or {NAME}",
        f"local cache ({folders['cache']})",
        f"hub: timm/{NAME}.{TAG}/model.safetensors",
        "UPFEAT_OFFLINE",
    ]:
        assert word in text


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        (NAME, f"{NAME}.{TAG}.fp16.safetensors"),
        (NAME, f"{NAME}.fp16.safetensors"),
        (NAME, f"{NAME}.pth"),
        (f"{NAME}.{TAG}", f"{NAME}.{TAG}.safetensors"),
        (f"{NAME}.{TAG}", f"{NAME}.safetensors"),
        (f"{NAME}.augreg_in21k", f"{NAME}.augreg_in21k.pth"),
    ],
)
def test_file_names_in_the_folder(folders: dict[str, Path], spec: str, file: str) -> None:
    state = small_state()
    save(folders["weights"] / file, {key: value.half() for key, value in state.items()})
    backbone = create(spec)
    expected = state["patch_embed.proj.weight"].half().float()
    assert torch.equal(first_weight(backbone), expected)


def test_file_without_tag_is_only_the_default_one(folders: dict[str, Path]) -> None:
    save(folders["weights"] / f"{NAME}.safetensors", small_state())
    with pytest.raises(WeightsNotFoundError):
        create(f"{NAME}.augreg_in21k")


def test_the_only_file_of_another_tag_is_taken(folders: dict[str, Path]) -> None:
    save(folders["weights"] / f"{NAME}.augreg_in21k.safetensors", small_state(2))
    backbone = create(NAME)
    assert backbone.name == f"timm/{NAME}.augreg_in21k"


def test_several_files_of_other_tags_are_ambiguous(folders: dict[str, Path]) -> None:
    import timm

    name = "resnet18"
    state = timm.create_model(name).state_dict()
    for tag in ("a2_in1k", "tv_in1k"):
        save(folders["weights"] / f"{name}.{tag}.safetensors", state)
    with pytest.raises(WeightsNotFoundError, match=r"a2_in1k, tv_in1k; name the one you mean"):
        create_backbone(f"timm/{name}")
    assert create_backbone(f"timm/{name}.tv_in1k").name == f"timm/{name}.tv_in1k"


def test_order_of_the_places(folders: dict[str, Path], tmp_path: Path) -> None:
    places = [tmp_path, folders["weights"], folders["cache"]]
    states = [small_state(seed) for seed in range(3)]
    for place, state in zip(places, states, strict=True):
        save(place / f"{NAME}.{TAG}.safetensors", state)

    def loaded(weights: object = None) -> int:
        weight = first_weight(create(weights=weights))
        return [torch.equal(weight, s["patch_embed.proj.weight"]) for s in states].index(True)

    file = tmp_path / f"{NAME}.{TAG}.safetensors"
    assert loaded(file) == 0
    assert loaded() == 1
    (folders["weights"] / file.name).unlink()
    assert loaded() == 2


def test_hub_is_asked_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []
    state = small_state()

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(save(tmp_path / filename, state))

    monkeypatch.setenv("UPFEAT_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    backbone = create()
    assert asked == [(f"timm/{NAME}.{TAG}", "model.safetensors")]
    assert torch.equal(first_weight(backbone), state["patch_embed.proj.weight"])


def test_network_without_published_weights() -> None:
    with pytest.raises(WeightsNotFoundError, match=r"4\. the hub: nothing is published there"):
        create_backbone("timm/cs3darknet_s")


def test_random_is_seeded_by_the_caller() -> None:
    torch.manual_seed(5)
    one = first_weight(create(weights="random"))
    torch.manual_seed(5)
    two = first_weight(create(weights="random"))
    assert torch.equal(one, two)
    assert not torch.equal(one, first_weight(create(weights="random")))


def test_load_into_half_precision(tmp_path: Path) -> None:
    backbone = create(weights="random").to(torch.bfloat16)
    path = save(tmp_path / "w.safetensors", small_state())
    load_timm_weights(backbone.model, path, "mine")  # type: ignore[arg-type]
    assert first_weight(backbone).dtype == torch.bfloat16


class TestRealWeights:
    """The published networks of the data folder."""

    @pytest.fixture(autouse=True)
    def _folder(self, weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UPFEAT_WEIGHTS", str(weights_dir))

    @pytest.mark.parametrize(
        ("spec", "name", "mean"),
        [
            ("vit_tiny_patch16_224", f"timm/{NAME}.{TAG}", 0.5),
            (f"{NAME}.{TAG}", f"timm/{NAME}.{TAG}", 0.5),
            ("deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k", 0.485),
        ],
    )
    def test_load_and_run(self, spec: str, name: str, mean: float) -> None:
        backbone = create_backbone(f"timm/{spec}")
        assert (backbone.name, backbone.dim, backbone.layer) == (name, 192, 11)
        assert backbone.image_mean[0] == pytest.approx(mean)
        features = backbone(torch.randn(1, 3, 64, 96))
        assert features.shape == (1, 192, 4, 6)
        assert features.std() > 0.5

    def test_every_tensor_is_that_of_the_file(self, weights_dir: Path) -> None:
        from safetensors.torch import load_file

        backbone = create_backbone(f"timm/{NAME}")
        stored = load_file(weights_dir / f"{NAME}.{TAG}.fp16.safetensors")
        own = backbone.model.state_dict()  # type: ignore[union-attr]
        assert stored.keys() - own.keys() == {"head.weight", "head.bias"}
        for key, value in own.items():
            assert torch.equal(value, stored[key].float()), key

    def test_features_know_what_is_in_a_photo(self, data_dir: Path) -> None:
        """The pooled features of a photo are nearer to its own crop than to another photo."""
        import numpy as np
        from PIL import Image

        def pooled(name: str, box: tuple[float, float, float, float]) -> Tensor:
            picture = Image.open(data_dir / "photos" / name).convert("RGB")
            w, h = picture.size
            crop = picture.crop(
                (int(w * box[0]), int(h * box[1]), int(w * box[2]), int(h * box[3]))
            )
            pixels = torch.from_numpy(np.asarray(crop.resize((224, 224))).copy())
            image = (pixels.float() / 255 - 0.5).div(0.5).permute(2, 0, 1)[None]
            return backbone(image).mean((2, 3))[0]

        backbone = create_backbone(f"timm/{NAME}")
        names = sorted(path.name for path in (data_dir / "photos").glob("*.jpg"))[:3]
        whole = torch.stack([pooled(name, (0, 0, 1, 1)) for name in names])
        part = torch.stack([pooled(name, (0.1, 0.1, 0.9, 0.9)) for name in names])
        similarity = torch.nn.functional.cosine_similarity(whole[:, None], part[None], dim=2)
        assert similarity.argmax(dim=1).tolist() == [0, 1, 2]


def test_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=f"timm/{NAME}.{TAG}"):
        create(f"{NAME}.augreg")
