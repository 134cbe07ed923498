"""Borders of maps, also of maps smaller than the border."""

import ast
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import upfeat
from upfeat.ops.images import border_index, reflect_pad


def test_border_index_is_torch_padding() -> None:
    ramp = torch.arange(5.0)[None]
    for mode in ("replicate", "reflect"):
        expected = F.pad(ramp, (3, 3), mode=mode)[0].long()
        assert torch.equal(border_index(5, 3, mode), expected)  # type: ignore[arg-type]
    assert border_index(2, 4, "reflect").tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert border_index(1, 2, "reflect").tolist() == [0] * 5


@pytest.mark.parametrize("size", [(5, 7), (4, 9)])
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_reflect_pad_is_torchs_where_torch_has_one(size, reach) -> None:
    x = torch.randn(2, 3, *size)
    assert torch.equal(reflect_pad(x, reach), F.pad(x, [reach] * 4, mode="reflect"))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (1, 4), (3, 3)])
def test_small_maps_are_mirrored_again(size) -> None:
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    reach = 4
    padded = reflect_pad(x, reach)
    assert padded.shape[2:] == (size[0] + 2 * reach, size[1] + 2 * reach)
    assert torch.equal(padded[:, :, reach:-reach, reach:-reach], x)
    expected = np_reflect(x.detach(), reach)
    assert torch.equal(padded, expected)
    (grad,) = torch.autograd.grad(padded.sum(), x)
    assert grad.sum() == padded.numel()


def np_reflect(x: torch.Tensor, reach: int) -> torch.Tensor:
    """NumPy mirrors again and again, too."""
    import numpy as np

    border = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    return torch.from_numpy(np.pad(x.numpy(), border, mode="reflect"))


def test_no_other_reflect_padding() -> None:
    """torch's own refuses maps no larger than the border, with an error about padding sizes."""
    package = Path(upfeat.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword)
        and node.arg == "mode"
        and ast.unparse(node.value) == "'reflect'"
    }
    assert found == {"ops/images.py"}
