"""The pipeline against backbones and upsamplers that record what they are given."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import upfeat
from tests.tolerances import tolerance
from upfeat.backbones import CallableBackbone
from upfeat.data import read_image
from upfeat.data.sizes import mirror_to, resolve_size
from upfeat.pipeline import Pipeline, PipelineOutput
from upfeat.upsamplers.base import Abilities, UpsamplerInfo, WholeMapUpsampler

STRIDE = 8
SIDES = st.integers(1, 45)


def pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, STRIDE)


def pooling_backbone(**options: Any) -> CallableBackbone:
    return CallableBackbone(pooled, dim=3, patch_size=STRIDE, **options)


class Recorder(WholeMapUpsampler):
    """Repeats cells like ``nearest`` and keeps what it was called with."""

    info = UpsamplerInfo(name="recorder", summary="", abilities=Abilities(linear=True))

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        self.calls.append(
            {
                "image": image,
                "size": output_size,
                "values": values,
                "training": self.training,
                "inference": torch.is_inference_mode_enabled(),
                "grad": torch.is_grad_enabled(),
            }
        )
        return F.interpolate(values, output_size, mode="nearest-exact")


class Bands(Recorder):
    """The same in strips of three rows; does not commute with a head."""

    info = UpsamplerInfo(name="bands", summary="", abilities=Abilities(tiles=True))

    def tiles(self, image, features, output_size=None, values=None, **_):  # type: ignore[no-untyped-def]
        whole = self(image, features, output_size, values)
        for top in range(0, output_size[0], 3):
            rows = slice(top, min(top + 3, output_size[0]))
            self.calls.append({"rows": rows})
            yield rows, whole[:, :, rows]


def changed(upsampler: Recorder, **info: Any) -> Recorder:
    abilities = {key: info.pop(key) for key in tuple(info) if hasattr(Abilities, key)}
    upsampler.info = dataclasses.replace(upsampler.info, **info).with_abilities(**abilities)
    return upsampler


# -- inputs --------------------------------------------------------------------------------------


def test_every_kind_of_input_is_the_same_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pipe = Pipeline(pooling_backbone(), upfeat.create_upsampler("bilinear"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    expected = pipe(tensor)
    assert isinstance(expected, PipelineOutput)
    assert expected.low.shape == (3, 6, 8)
    assert expected.high.shape == (3, 45, 60)
    torch.testing.assert_close(expected.image, tensor)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, Image.fromarray(pixels)):
        out = pipe(source)
        torch.testing.assert_close(out.high, expected.high)
        torch.testing.assert_close(out.low, expected.low)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_list_of_different_sizes_equals_singles(method: str, batch_size: int) -> None:
    sizes = [(20, 33), (16, 16), (20, 33), (7, 50), (16, 16), (20, 33)]
    images = [torch.rand(3, *size) for size in sizes]
    pipe = Pipeline(pooling_backbone(), upfeat.create_upsampler(method), batch_size=batch_size)
    outs = pipe(images)
    assert isinstance(outs, list)
    for image, out in zip(images, outs, strict=True):
        one = pipe(image)
        assert torch.equal(out.image, image)
        torch.testing.assert_close(out.high, one.high)
        torch.testing.assert_close(out.low, one.low)
        assert out.low_extent == one.low_extent
    lows = pipe.low(images)
    assert all(torch.equal(low, out.low) for low, out in zip(lows, outs, strict=True))
    assert pipe([]) == []


def test_equal_sizes_run_together_and_batches_are_bounded() -> None:
    seen: list[int] = []

    def function(x: Tensor) -> Tensor:
        seen.append(len(x))
        return pooled(x)

    pipe = Pipeline(CallableBackbone(function, 3, STRIDE), Recorder(), batch_size=2)
    pipe([torch.rand(3, 16, 16) for _ in range(5)] + [torch.rand(3, 16, 24)])
    assert seen == [2, 2, 1, 1]


def test_batch_tensor_keeps_its_axis() -> None:
    batch = torch.rand(2, 3, 20, 33)
    pipe = Pipeline(pooling_backbone(), upfeat.create_upsampler("bilinear"))
    out = pipe(batch)
    assert out.low.shape == (2, 3, 3, 5)
    assert out.high.shape == (2, 3, 20, 33)
    torch.testing.assert_close(out.high[1], pipe(batch[1]).high)
    assert pipe.low(batch).shape == (2, 3, 3, 5)


def test_inputs_do_not_change() -> None:
    image = torch.rand(3, 20, 33)
    before = image.clone()
    Pipeline(pooling_backbone(), upfeat.create_upsampler("bilinear"))(image)
    assert torch.equal(image, before)


# -- sizes ---------------------------------------------------------------------------------------


@given(SIDES, SIDES)
def test_padding_is_exact(height: int, width: int) -> None:
    """Cells in the image are those of the plain image; high is cut from the padded map."""
    image = torch.rand(3, height, width)
    recorder = Recorder()
    out = Pipeline(pooling_backbone(), recorder)(image)
    rows, cols = math.ceil(height / STRIDE), math.ceil(width / STRIDE)
    assert out.low.shape == (3, rows, cols)
    assert out.low_extent == (rows * STRIDE / height, cols * STRIDE / width)
    padded = recorder.calls[0]["image"][0]
    assert padded.shape == (3, rows * STRIDE, cols * STRIDE)
    assert torch.equal(padded[:, :height, :width], image)
    torch.testing.assert_close(out.low, pooled(padded[None])[0])
    repeated = out.low.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    assert torch.equal(out.high, repeated[:, :height, :width])


@given(SIDES, SIDES)
def test_mirroring_agrees_with_numpy(height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width)
    target = (height + 13, width + 29)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 13), (0, 29)), mode="reflect")
    assert np.array_equal(mirror_to(image, target).numpy(), expected)


@given(SIDES, SIDES, st.integers(1, 70), st.integers(1, 70))
def test_high_covers_exactly_the_image(height: int, width: int, out_h: int, out_w: int) -> None:
    """A ramp stays the same ramp at any output size, padded or not."""
    ramp = ramp_backbone((height, width))
    pipe = Pipeline(ramp, Ramp(), output_size=(out_h, out_w))
    high = pipe(torch.rand(3, height, width)).high
    assert high.shape == (2, out_h, out_w)
    # Centres of the output pixels, as a share of the image.
    rows = ((torch.arange(out_h) + 0.5) / out_h)[:, None].expand(out_h, out_w)
    cols = ((torch.arange(out_w) + 0.5) / out_w)[None].expand(out_h, out_w)
    torch.testing.assert_close(high, torch.stack([rows, cols]), atol=1e-4, rtol=0)


def ramp_backbone(size: tuple[int, int]) -> CallableBackbone:
    """Features that say how much of the image the padded image is: constant (B, 2, h, w)."""

    def function(x: Tensor) -> Tensor:
        share = torch.tensor([x.shape[2] / size[0], x.shape[3] / size[1]])
        return share.reshape(1, 2, 1, 1).expand(
            len(x), 2, x.shape[2] // STRIDE, x.shape[3] // STRIDE
        )

    return CallableBackbone(function, dim=2, patch_size=STRIDE)


class Ramp(WholeMapUpsampler):
    """Returns each pixel's place in the image, given the share that ``ramp_backbone`` tells."""

    info = UpsamplerInfo(name="ramp", summary="")

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        rows, cols = ((torch.arange(n) + 0.5) / n for n in output_size)
        place = torch.stack(torch.meshgrid(rows, cols, indexing="ij"))
        return place * features[:, :, :1, :1]


@pytest.mark.parametrize("output_size", [None, (20, 33), (10, 17), (31, 70)])
def test_tiles_equal_the_whole(output_size: tuple[int, int] | None) -> None:
    image = torch.rand(3, 20, 33)
    whole = Pipeline(pooling_backbone(), Recorder())(image, output_size)
    bands = Pipeline(pooling_backbone(), Bands())(image, output_size)
    assert torch.equal(whole.high, bands.high)


def test_bands_of_padding_are_not_computed() -> None:
    bands = Bands()
    Pipeline(pooling_backbone(), bands)(torch.rand(3, 17, 16))
    starts = {call["rows"].start for call in bands.calls if "rows" in call}
    assert starts == {0, 3, 6, 9, 12, 15, 18}  # 24 rows in all; one band is made to see the end


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (None, (30, 45)),
        (60, (60, 90)),
        (2.0, (60, 90)),
        (0.5, (15, 23)),
        ((11, 7), (11, 7)),
        (1, (1, 2)),
        (0.001, (1, 1)),
    ],
)
def test_output_sizes(request_: Any, expected: tuple[int, int]) -> None:
    image = torch.rand(3, 30, 45)
    backbone, up = pooling_backbone(), upfeat.create_upsampler("bilinear")
    assert Pipeline(backbone, up, output_size=request_)(image).high.shape[1:] == expected
    assert Pipeline(backbone, up)(image, output_size=request_).high.shape[1:] == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3000))
def test_shorter_side_is_exact(height: int, width: int, side: int) -> None:
    size = resolve_size(side, (height, width))
    assert min(size) == side
    assert resolve_size(side, (width, height)) == size[::-1]
    assert abs(max(size) - side * max(height, width) / min(height, width)) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    "size",
    [0, -1, 0.0, 1e300, 10**400, float("inf"), float("nan"), True, "8", b"88", (10**9, 10**9)],
    ids=lambda size: str(size)[:12],
)
def test_impossible_sizes(size: object) -> None:
    backbone = upfeat.CallableBackbone(torch.nn.Conv2d(3, 4, 8, 8), 4, 8)
    up = upfeat.create_upsampler("bilinear")
    for name in ("input_size", "output_size"):
        with pytest.raises(ValueError, match=f"{name}|ask for a smaller"):
            upfeat.Pipeline(backbone, up, **{name: size})(torch.rand(3, 16, 16))


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_input_size(fit: Any) -> None:
    recorder = Recorder()
    pipe = Pipeline(pooling_backbone(), recorder, input_size=20, fit=fit)
    image = F.interpolate(torch.rand(1, 3, 6, 9), (40, 61), mode="bicubic").clamp(0, 1)[0]
    out = pipe(image)
    call = recorder.calls[0]
    assert out.high.shape == (3, 40, 61)  # the image's own size
    assert torch.equal(out.image, image)
    if fit == "pad":
        assert call["image"].shape == (1, 3, 24, 32)
        shrunk = F.interpolate(image[None], (20, 31), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(call["image"][:, :, :20, :31], shrunk)
        assert out.low.shape == (3, 3, 4)
        assert out.low_extent == (24 / 20, 32 / 31)
    else:
        assert call["image"].shape == (1, 3, 24, 32)
        assert call["size"] == (40, 61)
        assert out.low_extent == (1, 1)


@given(SIDES, SIDES)
def test_resize_takes_the_nearest_multiples(height: int, width: int) -> None:
    recorder = Recorder()
    out = Pipeline(pooling_backbone(), recorder, fit="resize")(torch.rand(3, height, width))
    for got, side in zip(recorder.calls[0]["image"].shape[2:], (height, width), strict=True):
        assert got % STRIDE == 0
        assert got >= STRIDE
        assert abs(got - side) <= STRIDE / 2 or got == STRIDE
    assert out.high.shape == (3, height, width)


def test_images_with_whole_multiples_are_left_alone() -> None:
    image = torch.rand(3, 16, 24)
    for fit in ("pad", "resize"):
        recorder = Recorder()
        Pipeline(pooling_backbone(), recorder, fit=fit)(image)
        assert torch.equal(recorder.calls[0]["image"][0], image)


def test_backbone_of_one_fixed_size() -> None:
    backbone = pooling_backbone()
    backbone.fixed_size = (16, 16)
    image = torch.rand(3, 30, 45)
    up = upfeat.create_upsampler("bilinear")
    with pytest.raises(ValueError, match="fit='resize'"):
        Pipeline(backbone, up)(image)
    out = Pipeline(backbone, up, fit="resize")(image)
    assert out.low.shape == (3, 2, 2)
    assert out.high.shape == (3, 30, 45)
    assert Pipeline(backbone, up, input_size=(16, 16))(image).low.shape == (3, 2, 2)


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_backbone_of_one_size_that_is_no_multiple_of_its_stride(fit: Any) -> None:
    class RoundsUp(CallableBackbone):
        def grid_size(self, image_size: Any) -> tuple[int, int]:
            return -(-image_size[0] // STRIDE), -(-image_size[1] // STRIDE)

    backbone = RoundsUp(lambda x: F.avg_pool2d(x, STRIDE, ceil_mode=True), 3, STRIDE)
    backbone.fixed_size = (20, 20)
    recorder, image = Recorder(), torch.rand(3, 20, 20)
    out = Pipeline(backbone, recorder, fit=fit)(image)
    assert (out.low.shape, out.high.shape) == ((3, 3, 3), (3, 20, 20))
    assert torch.equal(recorder.calls[0]["image"][0], image)


# -- normalisation, dtype, modes -----------------------------------------------------------------


def test_each_network_gets_its_own_normalisation() -> None:
    seen: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        seen.append(x)
        return pooled(x)

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    backbone = CallableBackbone(function, 3, STRIDE, image_mean=mean, image_std=std)
    image = torch.rand(3, 16, 16)
    column = torch.tensor([mean, std])[:, :, None, None]
    as_backbone = (image - column[0]) / column[1]

    follows = Recorder()
    Pipeline(backbone, follows)(image)
    torch.testing.assert_close(seen[-1][0], as_backbone)
    torch.testing.assert_close(follows.calls[0]["image"][0], as_backbone)

    own = changed(Recorder(), image_mean=(0.1, 0.1, 0.1), image_std=(2.0, 2.0, 2.0))
    Pipeline(backbone, own)(image)
    torch.testing.assert_close(seen[-1][0], as_backbone)
    torch.testing.assert_close(own.calls[0]["image"][0], (image - 0.1) / 2)


class Network(nn.Module):
    """A convolution as backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, STRIDE, STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_runs_on_copies(half: torch.dtype) -> None:
    backbone = CallableBackbone(Network(), 6, STRIDE)
    up = upfeat.create_upsampler("bilinear")
    image = torch.rand(3, 20, 33)
    full = Pipeline(backbone, up)(image)
    pipe = Pipeline(backbone, up, dtype=half)
    out = pipe(image)
    assert (out.low.dtype, out.high.dtype, out.image.dtype) == (half, half, torch.float32)
    torch.testing.assert_close(out.high.float(), full.high, **tolerance(half))
    assert next(backbone.parameters()).dtype == torch.float32
    assert pipe.backbone is not backbone
    assert Pipeline(backbone, up).backbone is backbone


def test_a_half_precision_backbone_is_fed_its_dtype() -> None:
    backbone = CallableBackbone(Network(), 6, STRIDE).to(torch.bfloat16)
    out = Pipeline(backbone, upfeat.create_upsampler("bilinear"))(torch.rand(3, 20, 33))
    assert out.high.dtype == torch.bfloat16


def test_everything_runs_where_asked(device: torch.device) -> None:
    pipe = Pipeline(
        CallableBackbone(Network(), 6, STRIDE), upfeat.create_upsampler("bilinear"), device=device
    )
    out = pipe([torch.rand(3, 20, 33), np.zeros((8, 8), np.uint8)])[0]
    assert {out.low.device.type, out.high.device.type, out.image.device.type} == {device.type}


def test_no_gradients_and_eval_mode_only_inside() -> None:
    recorder = Recorder().train()
    Pipeline(pooling_backbone(), recorder)(torch.rand(3, 16, 16))
    call = recorder.calls[0]
    assert (call["inference"], call["training"], call["grad"]) == (False, False, False)
    assert recorder.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["bilinear", "jafar", "featup_implicit"])
@pytest.mark.parametrize("size", [(16, 24), (13, 21)])
def test_a_head_can_be_trained_on_everything_that_is_returned(
    method: str, size: tuple[int, int]
) -> None:
    options = {"jafar": {"qk_dim": 16}, "featup_implicit": {"steps": 1, "views": 1, "pca_dim": 2}}
    channels = {"bilinear": 3, "jafar": 8, "featup_implicit": 3}[method]
    backbone = CallableBackbone(nn.Conv2d(3, channels, STRIDE, STRIDE), channels, STRIDE)
    width = {} if method == "bilinear" else {"feature_dim": channels}
    upsampler = upfeat.create_upsampler(method, **width, **options.get(method, {}))
    pipe = Pipeline(backbone, upsampler)
    images = torch.rand(2, 3, *size, requires_grad=True)
    single, (listed,), batch = pipe(images[0]), pipe([images[0]]), pipe(images)
    encoded = pipe.encode(images[0])
    low = pipe.low(images[0])
    assert isinstance(low, Tensor)
    projected = pipe.upsample(encoded, head=nn.Conv2d(channels, 2, 1))
    returned = [low, encoded.features, encoded.prepared, projected]
    for out in (single, listed, batch):
        returned += [out.image, out.low, out.high]
    for tensor in returned:
        assert not tensor.requires_grad
        weight = torch.ones((), requires_grad=True)
        (tensor * weight).square().sum().backward()
        assert weight.grad is not None
        tensor.mul_(weight)  # changed in place by what has a graph
    pipe(images[0]).high.requires_grad_()


def test_mode_is_restored_after_an_error() -> None:
    class Failing(Recorder):
        def upsample(self, *args: Any) -> Tensor:
            raise RuntimeError("no")

    failing = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        Pipeline(pooling_backbone(), failing)(torch.rand(3, 16, 16))
    assert failing.training


def test_methods_that_optimise_per_image_get_tensors_that_autograd_takes() -> None:
    class Optimising(Recorder):
        def upsample(
            self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
        ) -> Tensor:
            with torch.enable_grad():
                weight = torch.ones((), requires_grad=True)
                ((weight * features) ** 2).mean().backward()
            assert weight.grad is not None
            return super().upsample(image, features, output_size, values)

    optimising = changed(Optimising(), per_image=True)
    assert Pipeline(pooling_backbone(), optimising)(torch.rand(3, 16, 16)).high.shape[0] == 3


def test_methods_that_look_at_views_get_the_backbone() -> None:
    """FeatUp's implicit method fits one view without a backbone, and moved ones with it."""
    sizes = {"pca_dim": 3, "n_freqs": 2, "steps": 1, "views": 4, "views_per_step": 2}
    model = upfeat.create_upsampler("featup_implicit", feature_dim=3, **sizes)
    seen = []
    backbone = CallableBackbone(lambda x: seen.append(x) or nn.functional.avg_pool2d(x, 8), 3, 8)
    assert Pipeline(backbone, model)(torch.rand(3, 16, 24)).high.shape == (3, 16, 24)
    assert len(seen) == 4  # the image itself and three views


def test_deterministic() -> None:
    pipe = Pipeline(
        CallableBackbone(Network(), 6, STRIDE), upfeat.create_upsampler("bicubic"), input_size=30
    )
    image = torch.rand(3, 20, 33)
    assert torch.equal(pipe(image).high, pipe(image).high)


# -- heads ---------------------------------------------------------------------------------------


@given(SIDES, SIDES, st.booleans())
def test_a_head_gives_the_same_before_and_after(height: int, width: int, bands: bool) -> None:
    head = nn.Conv2d(3, 5, 1)
    pipe = Pipeline(pooling_backbone(), Bands() if bands else Recorder())
    image = torch.rand(3, height, width)
    expected = head(pipe(image).high[None].clone())[0]
    got = pipe(image, head=head).high
    assert not got.requires_grad
    torch.testing.assert_close(got, expected.detach())


def test_a_commuting_method_upsamples_the_heads_channels_only() -> None:
    recorder = Recorder()
    seen: list[tuple[int, ...]] = []

    def head(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x[:, :2]

    Pipeline(pooling_backbone(), recorder)(torch.rand(3, 16, 24), head=head)
    assert seen == [(1, 3, 2, 3)]
    assert recorder.calls[0]["values"].shape == (1, 2, 2, 3)


def test_other_methods_head_each_tile() -> None:
    seen: list[tuple[int, ...]] = []

    def head(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x[:, :2]

    out = Pipeline(pooling_backbone(), Bands())(torch.rand(3, 16, 24), head=head)
    assert out.high.shape == (2, 16, 24)
    assert max(h for _, _, h, _ in seen) == 3


def test_two_halves_make_a_call() -> None:
    pipe = Pipeline(pooling_backbone(), upfeat.create_upsampler("bilinear"))
    image = torch.rand(3, 20, 33)
    encoded = pipe.encode(image)
    out = pipe(image)
    assert torch.equal(pipe.upsample(encoded), out.high)
    assert torch.equal(encoded.low, out.low)
    assert torch.equal(pipe.low(image), out.low)
    assert pipe.upsample(encoded, 10).shape == (3, 10, 17)


# -- errors --------------------------------------------------------------------------------------


def test_normalised_images_are_refused() -> None:
    pipe = Pipeline(pooling_backbone(), Recorder())
    with pytest.raises(ValueError, match="looks normalised"):
        pipe(torch.randn(3, 16, 16) * 2)
    with pytest.raises(ValueError, match="looks normalised"):
        pipe(torch.randn(2, 3, 16, 16) * 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "crop"}, "'crop'"),
        ({"batch_size": 0}, "batch_size"),
        ({"dtype": torch.int32}, "torch.int32"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": True}, "input_size"),
        ({"output_size": -0.5}, "output_size"),
        ({"output_size": float("nan")}, "output_size"),
        ({"output_size": (3, 0)}, "output_size"),
        ({"output_size": (3, 4, 5)}, "output_size"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Pipeline(pooling_backbone(), Recorder(), **options)


def test_bad_pairs() -> None:
    with pytest.raises(ValueError, match="order is Pipeline"):
        Pipeline(Recorder(), pooling_backbone())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order is Pipeline"):
        Pipeline(pooling_backbone(), pooled)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CallableBackbone"):
        Pipeline(lambda image: image.mean(), Recorder())
    wide = Recorder()
    wide.config = {"feature_dim": 384}
    with pytest.raises(ValueError, match=r"feature_dim=384.* 3 channels"):
        Pipeline(pooling_backbone(), wide)


def test_bad_images(tmp_path: Path) -> None:
    pipe = Pipeline(pooling_backbone(), Recorder())
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        pipe([torch.rand(3, 8, 8), tmp_path / "bad.png"])
    with pytest.raises(ValueError, match="empty"):
        pipe(torch.rand(0, 3, 8, 8))


# -- real data -----------------------------------------------------------------------------------


def test_a_real_photo(data_dir: Path) -> None:
    path = data_dir / "photos" / "chelsea.jpg"
    image = read_image(path)
    out = Pipeline(pooling_backbone(), upfeat.create_upsampler("bilinear"))(path)
    assert out.high.shape == image.shape == (3, 300, 451)
    # Bilinear interpolation of local means is a blurred copy of the photo.
    assert (out.high - image).abs().mean() < 0.05


# -- one backbone, several upsamplers, features on disk -------------------------------------------


def test_features_are_kept_and_shared_by_upsamplers(tmp_path: Path) -> None:
    calls: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        calls.append(x)
        return pooled(x)

    backbone = CallableBackbone(network, dim=3, patch_size=STRIDE)
    images = torch.rand(2, 3, 24, 16)
    pipe = Pipeline(backbone, cache=tmp_path)
    first = pipe.encode(images)
    assert [tuple(x.shape) for x in calls] == [(1, 3, 24, 16)] * 2
    again = Pipeline(backbone, cache=tmp_path).encode(images)
    assert len(calls) == 2
    assert torch.equal(first.features, again.features)
    torch.testing.assert_close(first.features, pooled(images).half().float())
    near, linear = (
        pipe.with_upsampler(upfeat.create_upsampler(name)).upsample(first)
        for name in ("nearest", "bilinear")
    )
    torch.testing.assert_close(near, F.interpolate(first.features, (24, 16)))
    assert not torch.equal(near, linear)
    with pytest.raises(ValueError, match="no upsampler"):
        pipe.upsample(first)


@pytest.mark.parametrize("name", ["bilinear", "lanczos"])  # with query() and without
def test_single_positions_are_those_of_the_map(name: str) -> None:
    upsampler = upfeat.create_upsampler(name)
    pipe = Pipeline(pooling_backbone(), upsampler, fit="exact")
    encoded = pipe.encode(torch.rand(3, 24, 16))
    positions = torch.tensor([0, 19, 200, 383])
    whole = pipe.upsample(encoded, (24, 16)).flatten(1)
    torch.testing.assert_close(
        pipe.at(encoded, (24, 16), positions), whole[:, positions].T, **tolerance(torch.float32)
    )


def test_exact_takes_multiples_only() -> None:
    pipe = Pipeline(pooling_backbone(), input_size=(16, 24), fit="exact")
    assert pipe.encode(torch.rand(3, 30, 30)).features.shape[2:] == (2, 3)
    assert pipe.encode(torch.rand(3, 30, 30), (24, 8)).features.shape[2:] == (3, 1)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipe.encode(torch.rand(3, 30, 30), (20, 24))


# -- names, modules, devices, words ----------------------------------------------------------------


def test_names_are_loaded() -> None:
    image = torch.rand(3, 40, 50)
    pipe = Pipeline("upfeat/vit_compact_patch16", "jafar.vit_compact_patch16")
    encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
    expected = Pipeline(encoder, upfeat.create_upsampler("jafar.vit_compact_patch16"))(image)
    torch.testing.assert_close(pipe(image).high, expected.high)
    other = pipe.with_upsampler("bilinear")
    assert (pipe.upsampler.info.name, other.upsampler.info.name) == ("jafar", "bilinear")
    with pytest.raises(ValueError, match="did you mean 'jafar'"):
        pipe.with_upsampler("JAFAR")
    with pytest.raises(ValueError, match="must be trained first"):
        Pipeline(encoder, "jafar")


def test_to_moves_what_runs_and_leaves_the_callers_modules(tmp_path: Path) -> None:
    encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
    pipe = Pipeline(encoder, "kin.upfeat", cache=tmp_path)
    image = torch.rand(3, 32, 32)
    exact = pipe(image)
    assert pipe.to("cpu", torch.bfloat16) is pipe
    half = pipe(image)
    assert half.high.dtype == half.low.dtype == torch.bfloat16
    assert {p.dtype for p in (*pipe.backbone.parameters(), *pipe.upsampler.parameters())} == {
        torch.bfloat16
    }
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 2, "rounded weights make other features"
    back = Pipeline(encoder, "kin.upfeat").to(device=torch.device("cpu"), dtype=torch.float32)
    # Cached features are float16; the fit of the detail on four cells magnifies that.
    torch.testing.assert_close(back(image).high, exact.high, atol=3e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="floating point"):
        pipe.to(torch.int8)
    with pytest.raises(TypeError, match="device and dtype"):
        pipe.to(non_blocking=True)


def test_reprs_hold_no_numbers() -> None:
    pipe = Pipeline("upfeat/vit_compact_patch16", "bilinear", output_size=64)
    assert repr(pipe) == (
        "Pipeline('upfeat/vit_compact_patch16', 'bilinear', output_size=64, float32, cpu)"
    )
    image = torch.rand(3, 40, 50)
    assert repr(pipe(image)) == (
        "PipelineOutput(image=(3, 40, 50), low=(192, 3, 4), high=(192, 64, 80), float32, cpu)"
    )
    assert (
        repr(pipe.encode(image)) == "Encoded(image=(1, 3, 40, 50), low=(192, 3, 4), float32, cpu)"
    )


def test_one_number_is_the_shorter_side_everywhere() -> None:
    up = upfeat.create_upsampler("bilinear")
    image, features = torch.randn(1, 3, 40, 50), torch.randn(1, 8, 4, 5)
    assert up(image, features, output_size=64).shape[-2:] == (64, 80)
    assert up(image, features, 8).shape[-2:] == (8, 10)
    rows = [rows for rows, _ in up.tiles(image, features, 64)]
    assert rows[-1].stop == 64
    folded = upfeat.fold_head(up, nn.Conv2d(8, 2, 1))
    assert folded(image, features, 64).shape == (1, 2, 64, 80)
    kin = upfeat.create_upsampler("kin.upfeat")
    assert kin(image, features, 64).shape[-2:] == (64, 80)
    centre = torch.zeros(1, 1, 2)
    loftup = upfeat.create_upsampler("loftup", feature_dim=8, num_heads=4).eval()
    asked = [loftup.query(image, features, centre, output_size=size) for size in (64, (64, 80))]
    torch.testing.assert_close(*asked)
    for size in (True, 0, -3):
        with pytest.raises(ValueError, match="output_size must be a positive"):
            up(image, features, size)


# -- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_guidance_is_reduced_and_the_output_keeps_its_size(fit: Any) -> None:
    backbone = upfeat.CallableBackbone(lambda x: F.avg_pool2d(x, 8), dim=3, patch_size=8)
    seen = []

    class Looking(WholeMapUpsampler):
        info = UpsamplerInfo(name="looking", summary="Keeps its guidance.", abilities=Abilities())

        def upsample(self, image, features, output_size, values):  # type: ignore[no-untyped-def]
            seen.append(image)
            return F.interpolate(values, output_size)

    image = torch.rand(3, 42, 64)
    half = (21, 32) if fit == "pad" else (20, 32)
    for size in (None, 24, half, 0.5, 400):
        pipe = upfeat.Pipeline(backbone, Looking(), guidance_size=size, fit=fit)
        assert pipe(image).high.shape == (3, 42, 64)
    tall = 48 if fit == "pad" else 40
    whole, by_side, by_pair, by_factor, larger = seen
    assert whole.shape[2:] == larger.shape[2:] == (tall, 64)
    assert by_pair.shape[2:] == by_factor.shape[2:] == (tall // 2, 32)
    assert by_side.shape[2] == round(tall * 24 / (42 if fit == "pad" else 40))
    pooled = F.avg_pool2d(whole, 2)
    assert (by_pair - pooled).abs().mean() < 0.5 * pooled.std()


def test_guidance_size_is_checked_and_shown() -> None:
    backbone = upfeat.CallableBackbone(lambda x: F.avg_pool2d(x, 8), dim=3, patch_size=8)
    pipe = upfeat.Pipeline(backbone, "bilinear", guidance_size=24)
    assert "guidance_size=24" in repr(pipe)
    with pytest.raises(ValueError, match="guidance_size"):
        upfeat.Pipeline(backbone, "bilinear", guidance_size=0)
