"""Pixels among cells: places against their definition, bounds against a search."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upfeat.ops.coordinates import cell_bounds, cell_places


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 40), cells=st.integers(1, 12), radius=st.floats(0.1, 6.0))
def test_bounds_hold_what_lies_within_the_radius(size: int, cells: int, radius: float) -> None:
    for pixel, (first, last) in enumerate(cell_bounds(size, cells, radius).tolist()):
        centre = (pixel + 0.5) * cells / size - 0.5
        near = {cell for cell in range(cells) if abs(cell - centre) < radius - 1e-9}
        seen = set(range(first, last))
        assert near <= seen
        assert len(seen - near) <= 2  # on the edge of the window, or the nearest cell alone
        assert seen


def test_places_are_centres_counted_from_the_middle() -> None:
    like = torch.empty(0, dtype=torch.float64)
    whole = cell_places((2, 3), (4, 6), (0, 4), like)
    assert whole[0, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert whole[0, 1, 0].tolist() == [-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]
    torch.testing.assert_close(cell_places((2, 3), (4, 6), (1, 3), like), whole[:, :, 1:3])
