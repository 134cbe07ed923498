"""Linear layers on the rows of a matrix, by the faster of the framework's two libraries.

``torch.nn.functional.linear`` calls MKL, which keeps its AVX-512 kernels for Intel's processors.
oneDNN, which runs the convolutions, has them for all: on the others a 1x1 convolution of the rows
is the same product in half the time, on Intel's MKL is the faster one, by a fifth to six times.

Legend: N rows, c channels in, d channels out.
"""

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime.dispatch import wants_reference

FEWEST_CHANNELS = 16  # for less, the framework's own product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``torch.nn.functional.linear(x, weight, bias)``, differentiable as often as that.

    Args:
        x: (..., c).
        weight: (d, c).
        bias: (d,).

    Returns:
        (..., d).

    Example:
        >>> import torch
        >>> x, weight = torch.randn(2, 5, 32), torch.randn(24, 32)
        >>> torch.allclose(linear(x, weight), torch.nn.functional.linear(x, weight), atol=1e-5)
        True
    """
    operands = (x, weight) if bias is None else (x, weight, bias)
    if wants_reference() or _records(operands) or not _by_convolution(operands):
        return F.linear(x, weight, bias)
    return rows_product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def rows_product(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Return (N, d) of rows (N, c) and a weight (d, c), outside of graphs and of autocast.

    Args:
        rows: (N, c).
        weight: (d, c).
        bias: (d,).
        out: (N, d), contiguous, to write the result into.

    Example:
        >>> rows_product(torch.ones(3, 2), torch.ones(4, 2)).unique().tolist()
        [2.0]
    """
    operands = (rows, weight) if bias is None else (rows, weight, bias)
    if not _by_convolution(operands):
        if bias is None:
            return torch.mm(rows, weight.T, out=out)
        return torch.addmm(bias, rows, weight.T, out=out)
    image, kernel = _as_image(rows.contiguous()), weight[:, :, None, None]
    if out is not None:
        accumulate_convolution(image, kernel, bias, _as_image(out))
        return out
    made = torch.mkldnn_convolution(image, kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return made.permute(0, 2, 3, 1).reshape(len(rows), len(weight))


def add_product(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Add :func:`rows_product` to ``out`` (N, d), contiguous, in place.

    Example:
        >>> out = torch.ones(3, 4)
        >>> add_product(out, torch.ones(3, 2), torch.ones(4, 2))
        >>> out.unique().tolist()
        [3.0]
    """
    if bias is not None:
        out += bias
    if _by_convolution((rows, weight, out)):
        _add_convolution(_as_image(rows.contiguous()), weight[:, :, None, None], _as_image(out))
    else:
        out.addmm_(rows, weight.T)


def accumulate_convolution(image: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write oneDNN's convolution without padding into ``out``, all of it channels last.

    oneDNN returns fresh memory, or adds to given memory; the second saves a copy.
    """
    if bias is None:
        out.zero_()
    else:
        out.copy_(bias[:, None, None])
    _add_convolution(image, weight, out)


def _add_convolution(image: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.ops.mkldnn._convolution_pointwise_.binary(
        out, image, weight, None, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, None, [], None
    )


def by_onednn(*operands: Tensor) -> bool:
    """Whether oneDNN convolves these tensors, outside of graphs."""
    plain = operands[0].device.type == "cpu" and all(x.dtype == torch.float32 for x in operands)
    return plain and not torch.is_autocast_enabled("cpu") and _has_onednn()


def _as_image(rows: Tensor) -> Tensor:
    """(N, c) to (1, c, 1, N), channels last in memory."""
    return rows[None, None].permute(0, 3, 1, 2)


def _records(operands: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(one.requires_grad for one in operands)


def _by_convolution(operands: tuple[Tensor, ...]) -> bool:
    x, weight = operands[:2]
    worth = x.numel() > 0 and min(weight.shape) >= FEWEST_CHANNELS
    return worth and not made_by_intel() and by_onednn(*operands)


@functools.cache
def made_by_intel() -> bool:
    """Whether Intel made the processor, for which MKL has its fastest products."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        maker = next(line for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        maker = platform.processor()
    return "Intel" in maker


def _has_onednn() -> bool:
    """Whether oneDNN is there, is not switched off, and has kernels of this width."""
    known = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return known and torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
