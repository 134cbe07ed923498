"""Find anomalies by their distance to a memory bank of good pixels, as PatchCore does.

    python examples/anomaly_memory_bank.py GOOD test.jpg --out anomaly.png

GOOD holds photos without faults. The bank keeps a subset of their low-resolution features that
covers them all (greedy k-centre); a photo's upsampled features are compared with it, so that the
map follows the fault's outline instead of the patches.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import upfeat


def k_centres(points: Tensor, count: int) -> Tensor:
    """Indices of points that cover all: each is the one farthest from those before it.

    Args:
        points: (N, C).
        count: how many; all if there are fewer.
    """
    chosen = [0]
    distance = (points - points[0]).square().sum(1)  # (N,) to the nearest chosen one
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = distance.minimum((points - points[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


@torch.no_grad()
def build_bank(pipe: upfeat.Pipeline, photos: Sequence[Path], size: int) -> Tensor:
    """Features (size, C), of length 1, that stand for all good photos."""
    cells = [F.normalize(pipe.low(photo).flatten(1), dim=0).T for photo in photos]  # (hw, C)
    points = torch.cat(cells)
    return points[k_centres(points, size)]


@torch.no_grad()
def anomaly_map(pipe: upfeat.Pipeline, bank: Tensor, photo: str | Path) -> Tensor:
    """Distance (H, W) of each pixel to its nearest neighbour in the bank, from 0 to 2."""
    sharp = F.normalize(pipe(photo).high, dim=0)  # (C, H, W)
    nearest = [
        (2 - 2 * rows.flatten(1).T @ bank.T).clamp(min=0).sqrt().amin(1)  # (rows * W,)
        for rows in sharp.split(16, dim=1)
    ]
    return torch.cat(nearest).view(sharp.shape[1:])


def main(arguments: Sequence[str] | None = None) -> float:
    """Write a heatmap, and return the photo's score: the mean of its worst percent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("good", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--bank", type=int, default=500, help="features that are kept")
    parser.add_argument("--backbone", default="upfeat/vit_compact_patch16")
    parser.add_argument("--upsampler", default="kin.upfeat")
    parser.add_argument("--out", type=Path, default=Path("anomaly.png"))
    given = parser.parse_args(arguments)

    pipe = upfeat.Pipeline(given.backbone, given.upsampler)
    good = sorted(file for file in given.good.iterdir() if file.is_file())
    bank = build_bank(pipe, good, given.bank)
    distances = anomaly_map(pipe, bank, given.photo)
    score = float(distances.flatten().topk(max(1, distances.numel() // 100)).values.mean())
    Image.fromarray((distances / 2 * 255).round().to(torch.uint8).numpy()).save(given.out)
    print(f"{given.out}: score {score:.3f}, {len(bank)} features of {len(good)} good photos")
    return score


if __name__ == "__main__":
    main()
