"""The quick bilinear resize is the plain one; the antialiased one is right in every layout."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import upfeat
from tests.layouts import layouts
from tests.tolerances import tolerance
from upfeat.ops.images import FEW, enlarge_rows, resize_antialiased, resize_bilinear


def plain_resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, size, mode="bilinear")


@given(
    channels=st.sampled_from([1, FEW, FEW + 1, 40]),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_fast_is_the_reference(channels, grid, size) -> None:
    x = torch.randn(2, channels, *grid, dtype=torch.float64)
    torch.testing.assert_close(resize_bilinear(x, size), plain_resize(x, size))


@pytest.mark.parametrize("channels", [FEW, 40])
def test_types_and_layouts(channels, device, dtype) -> None:
    x = torch.randn(2, 5, 7, channels, device=device).to(dtype).permute(0, 3, 1, 2)
    out = resize_bilinear(x, (11, 9))
    assert out.shape == (2, channels, 11, 9)
    assert out.dtype == dtype
    torch.testing.assert_close(out, plain_resize(x, (11, 9)), **tolerance(dtype))


def test_gradients_flow() -> None:
    x = torch.randn(1, 40, 3, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 40, 8, 8, dtype=torch.float64)
    ours, plain = (
        torch.autograd.grad(resize(x, (8, 8)), x, grad)[0]
        for resize in (resize_bilinear, plain_resize)
    )
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        assert not resize_bilinear(x, (8, 8)).requires_grad


def test_traced_as_the_plain_operator() -> None:
    class Resize(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return resize_bilinear(x, (8, 8))

    x = torch.randn(1, 40, 3, 4)
    program = torch.export.export(Resize(), (x,))
    torch.testing.assert_close(program.module()(x), plain_resize(x, (8, 8)))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(7, 1), (1, 5), (20, 1), (3, 4), (18, 30)])
@pytest.mark.parametrize("channels", [3, FEW + 6])
def test_antialiased_in_every_layout(mode, size, channels, dtype) -> None:
    x = torch.randn(2, channels, 16, 12, dtype=torch.float64)
    expected = F.interpolate(x, size, mode=mode, antialias=True)
    for layout in layouts(x.to(dtype)).values():
        out = resize_antialiased(layout, size, mode)
        assert out.dtype == dtype
        assert out.is_contiguous()
        torch.testing.assert_close(out.double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("size", [(7, 1), (3, 4)])
def test_antialiased_gradients_in_every_layout(size) -> None:
    x = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    grad = torch.randn(1, 3, *size, dtype=torch.float64)

    def gradient(given: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        given = given.detach().requires_grad_()
        return torch.autograd.grad(resize_antialiased(given, size), given, above)[0]

    expected = gradient(x, grad)
    above = grad.contiguous(memory_format=torch.channels_last)
    for layout in layouts(x).values():
        torch.testing.assert_close(gradient(layout, above), expected)


def test_no_antialiased_resize_but_ours() -> None:
    """torch's own is wrong for channels_last maps that become one pixel wide."""
    package = Path(upfeat.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and calls_torchs_antialias(node)
    }
    assert found == {"ops/images.py"}


def calls_torchs_antialias(call: ast.Call) -> bool:
    """An interpolate or an Upsample with ``antialias=``, or the operator below them."""
    name = ast.unparse(call.func).rpartition(".")[2]
    keywords = {keyword.arg for keyword in call.keywords}
    torchs = name in ("interpolate", "Upsample", "resize") and "antialias" in keywords
    return torchs or (name.startswith("_upsample_") and name.endswith("_aa"))


@pytest.mark.parametrize("size", [(12, 20), (3, 4), (7, 5)])
def test_rows_of_an_enlargement_are_those_of_the_whole(
    size: tuple[int, int], device: torch.device
) -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device)
    whole = F.interpolate(x, size, mode="bilinear")
    for rows in (slice(0, size[0]), slice(1, 3)):
        strip = enlarge_rows(x, size, rows)
        torch.testing.assert_close(strip, whole[:, :, rows], **tolerance(torch.float32))
