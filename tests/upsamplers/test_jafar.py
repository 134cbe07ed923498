"""JAFAR against the stored outputs of the original, its file layouts and its limits."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError
from upfeat.ops.coordinates import pixel_centres
from upfeat.upsamplers.registry import get_checkpoint

CASES = ("dinov2s_384", "nonsquare_small", "equal_dims_k3")


class TestJafar(UpsamplerContract):
    name = "jafar"
    config = {"qk_dim": 16}  # noqa: RUF012


class TestLinearKeys(UpsamplerContract):
    name = "jafar"
    config = {"qk_dim": 16, "keys": "linear"}  # noqa: RUF012


class TestJoinedKeys(UpsamplerContract):
    name = "jafar"
    config = {"qk_dim": 16, "keys": "concat"}  # noqa: RUF012


def test_linear_keys_do_not_see_the_image() -> None:
    """Table 5: with equal features everywhere all cells count alike, whatever the image shows."""
    torch.manual_seed(0)
    image, values = torch.rand(1, 3, 16, 16), torch.randn(1, 2, 4, 4)
    flat = torch.ones(1, 6, 4, 4)
    seen = {}
    for keys in ("linear", "concat", "sft"):
        up = upfeat.create_upsampler("jafar", feature_dim=6, qk_dim=16, keys=keys).eval()
        seen[keys] = up(image, flat, values=values)
    mean = values.mean((2, 3), keepdim=True).expand_as(seen["linear"])
    torch.testing.assert_close(seen["linear"], mean, atol=1e-5, rtol=1e-4)
    for keys in ("concat", "sft"):
        assert (seen[keys] - mean).abs().max() > 1e-4
    with pytest.raises(ValueError, match="keys"):
        upfeat.create_upsampler("jafar", feature_dim=6, keys="none")


@pytest.mark.parametrize("grad", [True, False], ids=["training", "bounded"])
@pytest.mark.parametrize("case", CASES)
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "jafar" / f"{case}.safetensors")
    heads = meta.get("constructor", meta).get("num_heads", 4)
    upsampler = upfeat.from_official("jafar", golden_state(tensors), num_heads=heads)
    with torch.set_grad_enabled(grad):
        expected = tensors["output"]
        output = upsampler(tensors["input.image"], tensors["input.features"], expected.shape[2:])
    assert output.requires_grad == grad
    assert max_abs_difference(output, expected) < GOLDEN_ATOL


def test_single_positions_have_the_gradients_of_the_whole_map() -> None:
    torch.manual_seed(0)
    upsampler = upfeat.create_upsampler("jafar", feature_dim=6, qk_dim=16)
    image, features = torch.rand(2, 3, 20, 24), torch.randn(2, 6, 3, 4, requires_grad=True)
    values = torch.randn(2, 5, 3, 4)
    places = torch.randperm(20 * 24)[:40]
    coords = pixel_centres((20, 24), dtype=torch.float64)[places].expand(2, -1, -1)
    some = upsampler.query(image, features, coords, values)  # (B, N, K)
    whole = upsampler(image, features, values=values).flatten(2).mT[:, places]
    weight = torch.randn_like(some)
    wanted = [features, *upsampler.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(some, wanted, weight),
        torch.autograd.grad(whole, wanted, weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_positions_between_pixels_read_their_queries_bilinearly() -> None:
    torch.manual_seed(0)
    upsampler = upfeat.create_upsampler("jafar", feature_dim=6, qk_dim=16).eval()
    image, features = torch.rand(1, 3, 12, 16), torch.randn(1, 6, 3, 4)
    coords = torch.rand(1, 30, 2) * 2 - 1
    graph = upsampler.query(image, features, coords)
    with torch.no_grad():
        bounded = upsampler.query(image, features, coords)
    torch.testing.assert_close(bounded, graph, atol=1e-5, rtol=1e-4)


def official_state(golden_dir: Path, case: str = "nonsquare_small") -> dict[str, torch.Tensor]:
    """Return the official state dict of a stored case."""
    return golden_state(load_golden(golden_dir / "jafar" / f"{case}.safetensors")[0])


def test_reads_a_training_checkpoint_with_its_configuration(
    golden_dir: Path, tmp_path: Path
) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    state = official_state(golden_dir)
    cfg = omegaconf.OmegaConf.create({"model": {"qk_dim": 64, "names": ["a", "b"]}, "lr": 2e-4})
    path = tmp_path / "training.pth"
    torch.save({"jafar": state, "optimizer_jafar": {}, "epoch": 1, "cfg": cfg}, path)
    upsampler = upfeat.from_official("jafar", path)
    assert upsampler.config["qk_dim"] == 64
    assert not upsampler.training


def test_loading_is_strict(golden_dir: Path) -> None:
    state = official_state(golden_dir)
    for key in state:
        with pytest.raises(CheckpointError):
            upfeat.from_official("jafar", {k: v for k, v in state.items() if k != key})
    for extra in ("cross_decode.more", "more.weight"):
        with pytest.raises(CheckpointError, match="unexpected"):
            upfeat.from_official("jafar", {**state, extra: torch.zeros(1)})
    unused = "cross_decode.cross_attn.norm_v.weight"
    with pytest.raises(CheckpointError, match="norm_v"):
        upfeat.from_official("jafar", {**state, unused: torch.zeros(3)})


def test_weights_without_influence_are_dropped(golden_dir: Path) -> None:
    state = official_state(golden_dir, "dinov2s_384")
    upsampler = upfeat.from_official("jafar", state)
    kept = sum(parameter.numel() for parameter in upsampler.parameters())
    dim, channels = 128, 384
    value_path = channels + dim * channels + dim + dim * dim + dim
    assert kept + value_path == 628_480


def test_records_name_the_published_files() -> None:
    records = {
        name: get_checkpoint(name) for name in upfeat.list_upsamplers("jafar.*", pretrained=True)
    }
    published = {name: r for name, r in records.items() if r is not None and not r.ours}
    assert len(published) == 7
    for name, record in published.items():
        assert record.file.url is not None
        assert record.file.url.endswith(f"/Weights/{record.file.filename}")
        assert (
            upfeat.create_upsampler(name, pretrained=False).config["feature_dim"]
            == record.feature_dim
        )


def test_gradients_of_the_bounded_operators_equal_plain_ones() -> None:
    """The whole method against autograd through the plain definitions."""
    upsampler = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=16).double()
    image = torch.randn(2, 3, 20, 26, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, 16, 4, 5, dtype=torch.float64, requires_grad=True)
    leaves = [image, features, *upsampler.parameters()]
    results = []
    for plain in (False, True):
        with plain_operators() if plain else contextlib.nullcontext():
            out = upsampler(image, features, (9, 11))
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-8)
        assert error < 1e-5


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Make the operators believe that they are traced, so that they take their definitions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


def test_tiles_need_no_graph_and_hold_two_items() -> None:
    upsampler = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=16)
    image, features = torch.randn(2, 3, 20, 26), torch.randn(2, 16, 4, 5)
    whole = upsampler(image, features, (9, 11))
    parts = [tile for _, tile in upsampler.tiles(image, features, (9, 11), max_bytes=20_000)]
    assert len(parts) > 1
    assert not any(part.requires_grad for part in parts)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole.detach(), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 2)])
def test_kernel_larger_than_the_image(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    up = upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=16, kernel_size=7).eval()
    image, features = torch.randn(1, 3, *size), torch.randn(1, 16, 2, 2)
    plain = up(image, features, (4, 6))  # with a graph
    with torch.no_grad():
        torch.testing.assert_close(up(image, features, (4, 6)), plain, atol=5e-5, rtol=1e-4)
    assert torch.isfinite(plain).all()


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=16, kernel_size=2)


def test_parameters_of_the_original_are_counted() -> None:
    up = upfeat.create_upsampler("jafar", feature_dim=384)
    assert sum(weight.numel() for weight in up.parameters()) + up.unused_parameters == 628480
