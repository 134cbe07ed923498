"""Similarity maps of photos, as PNGs and as heatmaps in a FiftyOne data set.

    python examples/fiftyone_heatmaps.py PHOTOS --at 0.5,0.5 --out maps --dataset similar

Each map shows how similar a pixel's features are to those at one place of the same photo. With
--dataset the photos and their maps are put into FiftyOne (`pip install fiftyone`), whose app shows
them.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import upfeat


@torch.no_grad()
def similarity_map(pipe: upfeat.Pipeline, photo: str | Path, at: tuple[float, float]) -> Tensor:
    """Cosine (H, W) in [-1, 1] between each pixel and the one at a place.

    Args:
        pipe: backbone and upsampler.
        photo: the file.
        at: row and column as parts of height and width.
    """
    sharp = F.normalize(pipe(photo).high, dim=0)  # (C, H, W)
    row, column = (min(int(part * n), n - 1) for part, n in zip(at, sharp.shape[1:], strict=True))
    return torch.einsum("c,chw->hw", sharp[:, row, column], sharp)


def save_maps(
    pipe: upfeat.Pipeline, photos: Sequence[Path], at: tuple[float, float], out: Path
) -> dict[Path, Path]:
    """Write the map of each photo as an 8-bit PNG; returns photo to map."""
    out.mkdir(parents=True, exist_ok=True)
    maps = {}
    for photo in photos:
        grey = (similarity_map(pipe, photo, at).clamp(0, 1) * 255).round().to(torch.uint8)
        maps[photo] = out / f"{photo.stem}.png"
        Image.fromarray(grey.numpy()).save(maps[photo])
    return maps


def add_to_dataset(name: str, maps: Mapping[Path, Path]) -> None:
    """Put photos and maps into a persistent data set of FiftyOne.

    Raises:
        ImportError: fiftyone is not installed.
    """
    import fiftyone as fo

    dataset = fo.load_dataset(name) if fo.dataset_exists(name) else fo.Dataset(name)
    dataset.persistent = True
    for photo, path in maps.items():
        sample = fo.Sample(filepath=str(photo.resolve()))
        sample["similarity"] = fo.Heatmap(map_path=str(path.resolve()), range=[0, 255])
        dataset.add_sample(sample)


def main(arguments: Sequence[str] | None = None) -> dict[Path, Path]:
    """Write the maps, and put them into a data set where one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("--at", default="0.5,0.5", help="row,column as parts of the sides")
    parser.add_argument("--out", type=Path, default=Path("maps"))
    parser.add_argument("--dataset", help="name of a FiftyOne data set")
    parser.add_argument("--backbone", default="upfeat/vit_compact_patch16")
    parser.add_argument("--upsampler", default="kin.upfeat")
    given = parser.parse_args(arguments)

    row, column = map(float, given.at.split(","))
    pipe = upfeat.Pipeline(given.backbone, given.upsampler)
    photos = sorted(file for file in given.photos.iterdir() if file.is_file())
    maps = save_maps(pipe, photos, (row, column), given.out)
    if given.dataset is not None:
        add_to_dataset(given.dataset, maps)
    print(f"{len(maps)} maps in {given.out}")
    return maps


if __name__ == "__main__":
    main()
