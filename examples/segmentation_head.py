"""Put a segmentation head before the upsampler: the same logits for a fraction of the cost.

    python examples/segmentation_head.py photo.jpg --classes 21 --out classes.png

The head is that of segmentation_models_pytorch where it is installed
(`pip install segmentation-models-pytorch`), else a 1x1 convolution. A head without weights paints
noise; give a file of its state dict with --weights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import upfeat


def make_head(channels: int, classes: int) -> nn.Module:
    """A head of segmentation_models_pytorch with a kernel of 1, or the convolution that it is."""
    try:
        from segmentation_models_pytorch.base import SegmentationHead
    except ImportError:
        return nn.Conv2d(channels, classes, 1)
    return SegmentationHead(channels, classes, kernel_size=1)


@torch.no_grad()
def class_map(pipe: upfeat.Pipeline, head: nn.Module, photo: str | Path) -> Tensor:
    """Class numbers (H, W) of a photo.

    The pipeline applies the head to the low-resolution features and passes its channels as
    ``values=`` where the method mixes all channels alike (`kin`, `jafar`, `anyup`, ...); behind
    other methods it comes last, piece by piece.
    """
    return pipe(photo, head=head).high.argmax(0)


def main(arguments: Sequence[str] | None = None) -> Tensor:
    """Write the classes of a photo as a PNG of grey values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--weights", type=Path, help="state dict of the head")
    parser.add_argument("--backbone", default="upfeat/vit_compact_patch16")
    parser.add_argument("--upsampler", default="kin.upfeat")
    parser.add_argument("--out", type=Path, default=Path("classes.png"))
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    pipe = upfeat.Pipeline(given.backbone, given.upsampler)
    head = make_head(pipe.backbone.dim, given.classes).eval()
    if given.weights is not None:
        head.load_state_dict(torch.load(given.weights, weights_only=True))
    classes = class_map(pipe, head, given.photo)
    Image.fromarray(classes.to(torch.uint8).numpy()).save(given.out)
    print(f"{given.out}: {len(classes.unique())} classes on {tuple(classes.shape)} pixels")
    return classes


if __name__ == "__main__":
    main()
