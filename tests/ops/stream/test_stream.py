"""Networks by row strips: the numbers of the whole network, whatever is kept and in what order."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.layers.fourier import PixelFeatures
from upfeat.layers.norm import ChannelLayerNorm
from upfeat.ops import stream
from upfeat.ops.stream.nodes import Convolution, Pad

WIDTH = 16
MAP = 40 * 28 * WIDTH * 4  # bytes of one map of the image below


class Residual(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, WIDTH), nn.GroupNorm(8, WIDTH)
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Network(nn.Module):
    """A shared trunk and two branches, one pooled to the output and one to the grid."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        pad = kernel // 2
        self.stem = nn.Conv2d(3, WIDTH, kernel, padding=pad, padding_mode="reflect")
        self.batch_norm = nn.BatchNorm2d(WIDTH)
        self.trunk = nn.Sequential(Residual(kernel), Residual(1))
        self.query, self.key = Residual(kernel), Residual(1)
        self.last = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        encoded = self.trunk(self.batch_norm(self.stem(x)).relu())
        query = F.adaptive_avg_pool2d(self.query(encoded), size)
        query = torch.cat((F.gelu(query), F.group_norm(query, 4)), dim=1)
        return self.last(query), F.adaptive_avg_pool2d(self.key(encoded), (3, 5))


@pytest.fixture(params=[1, 3])
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return Network(request.param).eval()


@pytest.mark.parametrize("max_bytes", [0, MAP, 2 * MAP, 100 * MAP])
@pytest.mark.parametrize("size", [(40, 28), (20, 9), (61, 45), (7, 1)])
def test_rows_equal_those_of_the_whole_network(
    network: Network, size: tuple[int, int], max_bytes: int
) -> None:
    image = torch.randn(1, 3, 40, 28)
    with torch.no_grad():
        query, key = network(image, size)
        with stream.bounded(max_bytes):
            rows, cells = network(stream.lazy(image), size)
        strips = [rows[:, :, start : start + 6] for start in range(0, size[0], 6)]
        torch.testing.assert_close(torch.cat(strips, dim=2), query, atol=2e-5, rtol=0)
        torch.testing.assert_close(cells.whole(), key, atol=2e-5, rtol=0)
        torch.testing.assert_close(rows.whole(), query, atol=2e-5, rtol=0)


class Branches(nn.Module):
    """Two branches side by side, 1x1 and 3x3, read as a map and as its average."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in range(2))
        self.stems = nn.ModuleList(nn.Conv2d(3, WIDTH, 1) for _ in range(2))
        self.pixel = nn.Conv2d(WIDTH, WIDTH, 1)
        self.context = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        below = (F.silu(norm(stem(x))) for norm, stem in zip(self.norms, self.stems, strict=True))
        pixel, context = (conv(one) for conv, one in zip(self.branches, below, strict=True))
        joined = torch.cat((pixel, context), dim=1).relu()
        return joined, F.adaptive_avg_pool2d(joined, (5, 4))

    @property
    def branches(self) -> tuple[nn.Module, nn.Module]:
        return self.pixel, self.context


@pytest.mark.parametrize("max_bytes", [0, 2 * MAP, 100 * MAP])
def test_of_joined_maps_the_parts_are_kept(max_bytes: int) -> None:
    torch.manual_seed(0)
    network, image = Branches(), torch.randn(1, 3, 40, 28)
    with torch.no_grad():
        expected, pooled = network(image)
        with stream.bounded(max_bytes):
            rows, cells = network(stream.lazy(image))
        torch.testing.assert_close(cells.whole(), pooled, atol=2e-5, rtol=0)
        kept = {(type(node), node.channels) for node in rows.graph.kept}
        torch.testing.assert_close(rows.whole(), expected, atol=2e-5, rtol=0)
    if max_bytes > 2 * MAP:
        assert kept == {(Convolution, WIDTH)}


def test_a_strip_is_computed_within_its_border(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[bool] = []
    compute = Pad.compute

    def spy(self: Pad, rows: tuple[int, int], strips: list[Tensor], out: Tensor) -> Tensor:
        inside = self.inside(out, rows)
        sources.append(inside is not None and inside.data_ptr() == strips[0].data_ptr())
        return compute(self, rows, strips, out)

    monkeypatch.setattr(Pad, "compute", spy)
    conv, image = nn.Conv2d(3, 8, 3, padding=1), torch.randn(1, 3, 64, 16)
    with torch.no_grad(), stream.bounded(2**20):
        rows = conv(F.silu(stream.lazy(image) * 2.0))[:, :, 10:12]
    torch.testing.assert_close(rows, conv(F.silu(image * 2.0))[:, :, 10:12], atol=1e-5, rtol=0)
    assert sources == [True]


def test_no_more_is_kept_than_the_budget(network: Network) -> None:
    with torch.no_grad(), stream.bounded(3 * MAP):
        rows, _ = network(stream.lazy(torch.randn(1, 3, 40, 28)), (40, 28))
        rows[:, :, 0:4]
    kept = rows.graph.kept
    assert kept
    assert sum(node.size[0] * node.row_bytes for node in kept) <= 3 * MAP


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    mode=st.sampled_from(["zeros", "reflect", "replicate"]),
    kernel=st.sampled_from([1, 3, 5]),
    start=st.integers(0, 23),
)
@settings(max_examples=60, deadline=None)
def test_borders(height: int, width: int, mode: str, kernel: int, start: int) -> None:
    if mode == "reflect" and min(height, width) <= kernel // 2:
        return
    conv = nn.Conv2d(2, 4, kernel, padding=kernel // 2, padding_mode=mode)
    image, start = torch.randn(1, 2, height, width), min(start, height - 1)
    with torch.no_grad(), stream.bounded(0):
        rows = conv(stream.lazy(image))[:, :, start:]
        torch.testing.assert_close(rows, conv(image)[:, :, start:], atol=1e-5, rtol=0)


@given(
    height=st.integers(3, 20),
    width=st.integers(3, 20),
    kernel=st.sampled_from([(1, 3), (3, 1), (2, 2), (3, 3)]),
    step=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    mode=st.sampled_from(["constant", "reflect"]),
    start=st.integers(0, 19),
)
@settings(max_examples=60, deadline=None)
def test_kernels_with_gaps_and_of_two_sides(
    height: int, width: int, kernel: tuple[int, int], step: tuple[int, int], mode: str, start: int
) -> None:
    weight, bias = torch.randn(4, 2, *kernel), torch.randn(4)
    border = [s * (k - 1) - s * (k - 1) // 2 for s, k in zip(step, kernel, strict=True)]
    if min(height - border[0], width - border[1]) < 1:
        return
    image, start = torch.randn(1, 2, height, width), min(start, height - 1)

    def convolved(x: Any) -> Any:
        padded = F.pad(x, (border[1], border[1], border[0], border[0]), mode=mode)
        return F.conv2d(padded, weight, bias, dilation=step)

    with torch.no_grad(), stream.bounded(0):
        recorded = convolved(stream.lazy(image))
        assert not isinstance(recorded, Tensor)
        rows = recorded[:, :, start:]
        torch.testing.assert_close(rows, convolved(image)[:, :, start:], atol=1e-5, rtol=0)


def test_an_unknown_operator_gets_the_whole_map() -> None:
    conv, image = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 9, 8)
    with torch.no_grad(), stream.bounded(0):
        out = F.max_pool2d(conv(stream.lazy(image)), 2)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, F.max_pool2d(conv(image), 2), atol=1e-5, rtol=0)


def test_outside_of_bounded_and_for_batches_nothing_is_recorded() -> None:
    image = torch.randn(1, 3, 4, 4)
    assert stream.lazy(image) is image
    with stream.bounded(0):
        batch = torch.randn(2, 3, 4, 4)
        assert stream.lazy(batch) is batch


def test_a_map_read_by_threads_is_swept_once(network: Network) -> None:
    from upfeat.ops.runtime import run_blocks

    image, threads = torch.randn(1, 3, 40, 28), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad(), stream.bounded(100 * MAP):
            rows, _ = network(stream.lazy(image), (40, 28))
            out = torch.empty(1, WIDTH, 40, 28)

            def fill(start: int, _: None) -> None:
                out[:, :, start : start + 4] = rows[:, :, start : start + 4]

            run_blocks(range(0, 40, 4), fill, lambda: None, image.device)
            torch.testing.assert_close(out, network(image, (40, 28))[0], atol=2e-5, rtol=0)
    finally:
        torch.set_num_threads(threads)


def test_batch_norm_of_eval_mode_is_folded_into_the_convolution() -> None:
    conv, norm, image = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), torch.randn(1, 3, 9, 7)
    norm(torch.randn(4, 5, 6, 6) * 3 + 1)
    nn.init.normal_(norm.weight)
    norm.eval()
    with torch.no_grad(), stream.bounded(0):
        rows = norm(conv(stream.lazy(image)))
        assert isinstance(rows.node, Convolution)
        torch.testing.assert_close(rows.whole(), norm(conv(image)), atol=1e-5, rtol=1e-5)


class Described(nn.Module):
    """Places and colours through a norm over channels and a stack of convolutions."""

    def __init__(self, colors: bool = True) -> None:
        super().__init__()
        self.features = PixelFeatures(colors, 3)
        self.norm = ChannelLayerNorm(self.features.channels)
        self.conv1 = nn.Conv2d(self.features.channels, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, colors: Tensor) -> Tensor:
        x = self.norm(self.features(colors).to(self.conv1.weight.dtype))
        return self.conv2(self.conv1(x).relu())


@pytest.mark.parametrize("colors", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_deferred_maps_are_read_by_rows(batch: int, colors: bool) -> None:
    network, image = Described(colors), torch.rand(batch, 3, 21, 9)
    with torch.no_grad():
        whole = network(image)
        torch.testing.assert_close(stream.deferred(network, image)[:, :, 3:8], whole[:, :, 3:8])
        with stream.bounded(0):
            state = (stream.deferred(network, image), image)
        stream.prepare(state)
        assert stream.block_rows(state, 21) > 0
        assert stream.block_rows(state, 20) == 0  # no map of this height
        for rows in (slice(0, 21), slice(5, 6), slice(17, 21)):
            torch.testing.assert_close(state[0][:, :, rows], whole[:, :, rows], atol=1e-5, rtol=0)


def test_rows_read_ahead_are_computed_once() -> None:
    network, image = Described(), torch.rand(1, 3, 40, 9)
    with torch.no_grad(), stream.bounded(0):
        whole, rows = network(image), stream.deferred(network, image)
    computed: list[tuple[int, int]] = []
    compute = rows.node.compute
    rows.node.compute = lambda span, *args: (computed.append(span), compute(span, *args))[1]
    with torch.no_grad():
        with stream.read_ahead((rows,), slice(8, 20), 40):
            for start in range(8, 20, 3):
                part = rows[:, :, start : start + 3]
                torch.testing.assert_close(part, whole[:, :, start : start + 3], atol=1e-5, rtol=0)
        assert computed == [(8, 20)]
        rows[:, :, 8:9]
        assert computed[1:] == [(8, 9)]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_runs_convolutions_in_its_type_and_places_in_float32(half: torch.dtype) -> None:
    network, image = Described(), torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", half):
            whole = network(image)
            with stream.bounded(0):
                rows = stream.deferred(network, image)
            strip = rows[:, :, 2:9]
    assert strip.dtype == whole.dtype == half
    limit = 8 * torch.finfo(half).eps
    torch.testing.assert_close(strip.float(), exact[:, :, 2:9], atol=limit, rtol=0)


class Sums(nn.Module):
    """Sums one of whose terms is a 1x1 convolution, of maps that others read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.inner, self.outer = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 16, H, W)."""
        x = self.first(image)
        hidden = torch.relu(self.norm(x))
        y = self.inner(hidden) + x  # the product comes first
        z = torch.relu(y + self.outer(y))  # both terms are made of one map
        return z + self.inner(torch.sigmoid(z)) + self.outer(hidden)


@pytest.mark.parametrize("max_bytes", [0, 10**7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_with_a_product(max_bytes: int, dtype: torch.dtype) -> None:
    module, image = Sums().to(dtype), torch.randn(1, 3, 23, 17, dtype=dtype)
    with torch.no_grad():
        expected = module(image)
        with stream.bounded(max_bytes):
            out = module(stream.lazy(image))
            rows = torch.cat([out[:, :, :9], out[:, :, 9:]], dim=2)
    atol = 1e-5 if dtype != torch.bfloat16 else 5e-2
    torch.testing.assert_close(rows, expected, atol=atol, rtol=atol)
