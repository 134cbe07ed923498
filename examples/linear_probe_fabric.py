"""Train a linear probe on frozen upsampled features, with Lightning Fabric.

    python examples/linear_probe_fabric.py PHOTOS LABELS --classes 21

PHOTOS holds images, LABELS a PNG of class numbers of the same name for each (255: ignored).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import upfeat
from upfeat.data import read_image


class Probe(nn.Module):
    """A 1x1 convolution on features of a frozen backbone and a frozen upsampler."""

    def __init__(self, backbone: upfeat.Backbone, upsampler: upfeat.Upsampler, classes: int):
        super().__init__()
        # In a tuple they are no parts of the module: neither trained, wrapped nor saved.
        self.frozen = (backbone.eval(), upsampler.eval())
        self.head = nn.Conv2d(backbone.dim, classes, 1)

    def forward(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, K, *size)."""
        backbone, upsampler = self.frozen
        pixels, guidance = upsampler.prepare(image, backbone)
        with torch.no_grad():
            features = backbone(pixels)
        if upsampler.info.abilities.linear:  # the head first: K channels to upsample, not C
            return upsampler(guidance, features, size, values=self.head(features))
        with torch.no_grad():
            sharp = upsampler(guidance, features, size)
        return self.head(sharp)


def read_pair(photo: Path, label: Path, multiple: int) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) with sides that the backbone takes, and labels (H', W')."""
    image = read_image(photo)
    sides = [max(multiple, side // multiple * multiple) for side in image.shape[-2:]]
    image = F.interpolate(image[None], sides, mode="bilinear", antialias=True)[0]
    with Image.open(label) as picture:
        numbers = torch.from_numpy(np.array(picture)).long()
    return image, numbers


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, and return the accuracy on the same photos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--backbone", default="upfeat/vit_compact_patch16")
    parser.add_argument("--upsampler", default="kin.upfeat")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, 16-mixed")
    given = parser.parse_args(arguments)

    fabric = Fabric(accelerator=given.device, devices=1, precision=given.precision)
    fabric.seed_everything(0, verbose=False)
    backbone = upfeat.create_backbone(given.backbone).to(fabric.device)
    upsampler = upfeat.load_upsampler(given.upsampler, backbone).to(fabric.device)
    names = [
        f for f in sorted(given.photos.iterdir()) if (given.labels / f"{f.stem}.png").is_file()
    ]
    pairs = [
        read_pair(file, given.labels / f"{file.stem}.png", backbone.size_multiple) for file in names
    ]
    module = Probe(backbone, upsampler, given.classes)
    probe, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=1e-2))
    correct = counted = 0
    for step in range(given.steps + len(pairs)):
        image, label = (each.to(fabric.device)[None] for each in pairs[step % len(pairs)])
        logits = probe(image, tuple(label.shape[-2:]))
        if step < given.steps:
            loss = F.cross_entropy(logits, label, ignore_index=255)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        else:  # once over all photos
            known = label != 255
            correct += int((logits.argmax(1) == label)[known].sum())
            counted += int(known.sum())
    print(f"{correct / counted:.1%} of {counted:,} pixels right after {given.steps} steps")
    return correct / counted


if __name__ == "__main__":
    main()
