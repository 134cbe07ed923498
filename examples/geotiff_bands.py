"""Bring the bands of a satellite image onto the grid of a finer 3-band guide, tile by tile.

    python examples/geotiff_bands.py bands.tif guide.tif --out sharp.tif

bands.tif has any number of bands, such as 16, on a coarse grid; guide.tif three bands of that area
on a finer one whose sides are whole multiples. `kin` mixes values with weights that it takes from
the guide, so no backbone is needed: every pixel becomes a mean of the coarse pixels around it, and
no value leaves their range. Needs `pip install tifffile`; the whole image is never in memory.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

import upfeat
from upfeat.ops.images import normalize

SCALE_TAG, TIE_TAG, DIRECTORY_TAG = 33550, 33922, 34735  # of GeoTIFF: pixel size, place, keys
MARGIN = 8  # coarse pixels around a tile that its result may depend on


class Tile(NamedTuple):
    """A tile of the coarse grid: the part that is written, and the part that is read for it."""

    rows: slice
    columns: slice
    read_rows: slice
    read_columns: slice


def tiles(height: int, width: int, side: int) -> Iterator[Tile]:
    """Cut a coarse grid into squares, each with a margin."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = (
                slice(top, min(top + side, height)),
                slice(left, min(left + side, width)),
            )
            read = [
                slice(max(0, part.start - MARGIN), min(n, part.stop + MARGIN))
                for part, n in ((rows, height), (columns, width))
            ]
            yield Tile(rows, columns, *read)


def times(part: slice, factor: int, start: int = 0) -> slice:
    """A slice of the coarse grid on the fine one, counted from ``start``."""
    return slice((part.start - start) * factor, (part.stop - start) * factor)


@torch.no_grad()
def sharpen(
    upsampler: upfeat.Upsampler, bands: NDArray[Any], guide: NDArray[Any]
) -> NDArray[np.float32]:
    """Bands (K, h, w) on the grid of a guide (3, H, W) in [0, 1]."""
    info = upsampler.info
    guidance = normalize(
        torch.from_numpy(guide.astype(np.float32))[None], info.image_mean, info.image_std
    )
    values = torch.from_numpy(bands.astype(np.float32))[None]
    return upsampler(guidance, values)[0].numpy()


def open_planes(path: Path) -> NDArray[Any]:
    """The image of a TIFF as (bands, H, W), on disk where its layout allows."""
    try:
        image = tifffile.memmap(path, mode="r")
    except ValueError:  # compressed, or in tiles
        image = tifffile.imread(path)
    with tifffile.TiffFile(path) as file:
        axes = file.series[0].axes  # such as SYX, or YXS where the bands are interleaved
    return np.moveaxis(image, [axes.index(axis) for axis in "YX"], (-2, -1))


def geo_tags(path: Path) -> list[tuple[int, int, int, Any]]:
    """Where the guide lies, as extra tags for a file on the same grid."""
    with tifffile.TiffFile(path) as file:
        found = [file.pages[0].tags.get(code) for code in (SCALE_TAG, TIE_TAG, DIRECTORY_TAG)]
        return [(tag.code, tag.dtype, tag.count, tag.value) for tag in found if tag is not None]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the bands on the guide's grid, with its georeference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bands", type=Path)
    parser.add_argument("guide", type=Path)
    # Without detail: each value lies between those of the cells around it.
    parser.add_argument("--upsampler", default="kin.upfeat(detail=0)")
    parser.add_argument("--tile", type=int, default=64, help="side in coarse pixels")
    parser.add_argument("--out", type=Path, default=Path("sharp.tif"))
    given = parser.parse_args(arguments)

    bands, guide = open_planes(given.bands), open_planes(given.guide)
    (count, height, width), (channels, *fine) = bands.shape, guide.shape
    factor = fine[0] // height
    if channels != 3 or [height * factor, width * factor] != fine:
        raise SystemExit(
            f"the guide must have 3 bands and sides that are one multiple of {height} x {width}, "
            f"got {channels} bands of {fine[0]} x {fine[1]}"
        )
    upsampler = upfeat.load_upsampler(given.upsampler, len(bands))
    low, high = np.percentile(guide[:, ::factor, ::factor], (1, 99))
    out = tifffile.memmap(
        given.out, shape=(count, *fine), dtype="float32", photometric="minisblack",
        planarconfig="separate", extratags=geo_tags(given.guide),
    )  # fmt: skip
    for tile in tiles(height, width, given.tile):
        part = guide[:, times(tile.read_rows, factor), times(tile.read_columns, factor)]
        stretched = ((part - low) / max(float(high - low), 1e-6)).clip(0, 1)
        sharp = sharpen(upsampler, bands[:, tile.read_rows, tile.read_columns], stretched)
        inner = (
            times(tile.rows, factor, tile.read_rows.start),
            times(tile.columns, factor, tile.read_columns.start),
        )
        out[:, times(tile.rows, factor), times(tile.columns, factor)] = sharp[:, *inner]
    out.flush()
    print(f"{given.out}: {count} bands of {fine[0]} x {fine[1]}, {factor} times as fine")
    return given.out


if __name__ == "__main__":
    main()
