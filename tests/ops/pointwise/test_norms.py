"""Unit vectors and cosines in every precision, and that the package has no others."""

import ast
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.tolerances import tolerance
from upfeat.ops.pointwise.norms import cosine, unit_vectors


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_zero_vectors_stay_zero_and_others_have_length_one(dtype, scale) -> None:
    x = (scale * torch.randn(2, 300, 3, 4)).to(dtype)
    x[0, :, 1, 2] = 0
    unit = unit_vectors(x)
    assert unit.dtype == dtype
    assert not unit[0, :, 1, 2].any()
    torch.testing.assert_close(unit.double(), F.normalize(x.double(), dim=1), **tolerance(dtype))
    torch.testing.assert_close(unit_vectors(x.movedim(1, 0), 0), unit.movedim(1, 0))


def test_cosine_of_a_zero_vector_is_zero(dtype) -> None:
    x, y = torch.randn(2, 5, 40).to(dtype)
    x[0] = 0
    expected = F.cosine_similarity(x.double(), y.double(), dim=1)
    assert cosine(x, y)[0] == 0
    torch.testing.assert_close(cosine(x, y).double(), expected, **tolerance(torch.float32))


def test_no_other_normalisation_of_vectors() -> None:
    """The small bounds of torch's own functions are zero in float16, and 0 / 0 is NaN."""
    package = Path(upfeat.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("F.normalize", "F.cosine_similarity", "functional.normalize")
    }
    assert found == {"ops/pointwise/norms.py"}
