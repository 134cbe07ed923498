"""Run-length codes of masks, as COCO and SA-1B store them.

A mask (H, W) is read column by column, from top to bottom; the counts are the lengths of its runs,
beginning with a run of zeros (which may be empty). They come as a plain list ("uncompressed") or as
a string ("compressed"): from the third count on the difference to the count two places before is
stored; each number is cut into groups of 5 bits, lowest first, with a sixth bit that says whether
another group follows; 48 is added to make a printable character. The number is signed: the highest
bit of its last group is the sign.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "counts_to_text",
    "mask_runs",
    "mask_to_rle",
    "rle_counts",
    "rle_to_mask",
    "text_to_counts",
]

Counts = npt.NDArray[np.int64]

_OFFSET = 48  # the character of the value 0
_MORE = 0x20
_SIGN = 0x10


def text_to_counts(text: str | bytes) -> Counts:
    """Return the run lengths that a compressed string holds.

    Args:
        text: the ``counts`` of a COCO segmentation.

    Raises:
        ValueError: a character outside of the code, or the string ends within a number.

    Example:
        >>> from upfeat.data.rle import text_to_counts
        >>> text_to_counts("03R3").tolist()
        [0, 3, 98]
    """
    raw = text.encode("latin-1", "replace") if isinstance(text, str) else text
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - _OFFSET
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() >= 2 * _MORE:
        raise ValueError("the run lengths hold a character that the COCO code does not have")
    ends = np.flatnonzero((codes & _MORE) == 0)
    if not ends.size or ends[-1] != codes.size - 1:
        raise ValueError("the run lengths end within a number; the string is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("the run lengths hold a number of more than 50 bits")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & (_MORE - 1)) << (5 * place), starts)
    values -= np.where(codes[ends] & _SIGN, np.int64(1) << (5 * lengths), 0)
    # From the fourth number on each is the difference to the one two places before.
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def counts_to_text(counts: Sequence[int] | Counts) -> str:
    """Return the compressed string of run lengths, the inverse of :func:`text_to_counts`.

    Example:
        >>> from upfeat.data.rle import counts_to_text
        >>> counts_to_text([0, 3, 98])
        '03R3'
    """
    values = np.asarray(counts, dtype=np.int64)
    differences = values.copy()
    differences[3:] -= values[1:-2]
    characters = []
    for number in differences.tolist():
        while True:
            group = number & (_MORE - 1)
            number >>= 5
            # What is left must be nothing but copies of the sign bit.
            more = number != (-1 if group & _SIGN else 0)
            characters.append(chr(_OFFSET + group + (_MORE if more else 0)))
            if not more:
                break
    return "".join(characters)


def mask_to_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Return ``{"size": [H, W], "counts": text}`` of a mask (H, W); nonzero is inside.

    Example:
        >>> import numpy as np
        >>> from upfeat.data.rle import mask_to_rle, rle_to_mask
        >>> mask = np.eye(3, dtype=bool)
        >>> bool((rle_to_mask(mask_to_rle(mask)) == mask).all())
        True
    """
    runs = mask_runs(mask)
    return {"size": [int(side) for side in mask.shape], "counts": counts_to_text(runs)}


def mask_runs(mask: npt.NDArray[Any]) -> Counts:
    """Return the run lengths of a mask (H, W); nonzero is inside.

    Example:
        >>> import numpy as np
        >>> from upfeat.data.rle import mask_runs
        >>> mask_runs(np.array([[0, 1], [1, 1]])).tolist()
        [1, 3]
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask must be (H, W), got {mask.shape}")
    flat = (mask != 0).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], changes, [flat.size]]))


def rle_counts(segmentation: Mapping[str, Any]) -> tuple[tuple[int, int], Counts]:
    """Return size (H, W) and run lengths of a segmentation with either kind of counts.

    Args:
        segmentation: a mapping with ``size`` and ``counts`` (a string or a list).

    Raises:
        ValueError: a polygon or something else, or runs that do not fill the mask.

    Example:
        >>> from upfeat.data.rle import rle_counts
        >>> rle_counts({"size": [2, 2], "counts": [1, 3]})[1].tolist()
        [1, 3]
    """
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(
            "a segmentation must hold 'size' and 'counts' (run lengths), got "
            f"{type(segmentation).__name__}; polygons must be drawn to masks first"
        )
    height, width = (int(side) for side in segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        runs = text_to_counts(counts)
    else:
        runs = np.asarray(counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"run lengths of a mask {(height, width)} must be positive and add up to "
            f"{height * width}, got a sum of {int(runs.sum())}"
        )
    return (height, width), runs


def rle_to_mask(segmentation: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of a segmentation, see :func:`rle_counts`.

    Example:
        >>> from upfeat.data.rle import rle_to_mask
        >>> rle_to_mask({"size": [2, 2], "counts": [1, 3]}).astype(int).tolist()
        [[0, 1], [1, 1]]
    """
    (height, width), runs = rle_counts(segmentation)
    return draw_runs(height, width, runs)


def draw_runs(height: int, width: int, runs: Counts) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of checked run lengths."""
    inside = np.arange(runs.size) % 2 == 1
    # (W * H,) column by column -> (W, H) -> (H, W)
    return np.repeat(inside, runs).reshape(width, height).T
