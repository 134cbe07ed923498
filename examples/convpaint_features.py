"""Features for napari-convpaint, and its idea without it: paint a few strokes, get all pixels.

    python examples/convpaint_features.py photo.jpg strokes.png --out painted.png

strokes.png has a class number on painted pixels and 0 elsewhere. `feature_extractor()` gives the
class that napari-convpaint registers (`pip install napari-convpaint`): it asks an extractor for
features of a plane (C, H, W), and these come at full resolution.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import upfeat

NAME = "upfeat_kin"


def plane_features(pipe: upfeat.Pipeline, plane: NDArray[Any]) -> NDArray[np.float32]:
    """Features (F, H, W) of a plane (C, H, W): of its first three channels, or of one thrice.

    The plane's own range is stretched to [0, 1]: microscopes count in thousands.
    """
    image = torch.as_tensor(plane.astype(np.float32))[:3]
    image = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    low, high = image.min(), image.max()
    return pipe((image - low) / (high - low).clamp(min=1e-6)).high.numpy()


def feature_extractor(pipe: upfeat.Pipeline) -> type:
    """The extractor as a class of napari-convpaint.

    Raises:
        ImportError: napari-convpaint is not installed.
    """
    from napari_convpaint.feature_extractor import FeatureExtractor

    class UpfeatFeatures(FeatureExtractor):
        def __init__(self, model_name: str = NAME) -> None:
            super().__init__(model_name=model_name)
            self.num_input_channels = [3]
            self.has_global_context = True

        def get_description(self) -> str:
            return f"{pipe.backbone.name}, upsampled by {pipe.upsampler.info.name}"

        def extract_features_from_plane(
            self, image: NDArray[Any], device: torch.device | None = None, **_: Any
        ) -> NDArray[np.float32]:
            pipe.to(device or "cpu")
            return plane_features(pipe, np.asarray(image))

    return UpfeatFeatures


def paint(features: NDArray[np.float32], strokes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class (H, W) of each pixel: that of the nearest mean of painted pixels, by cosine."""
    sharp = F.normalize(torch.from_numpy(features), dim=0)  # (F, H, W)
    painted: Tensor = torch.from_numpy(strokes)
    classes = painted.unique()[painted.unique() > 0]
    means = torch.stack([F.normalize(sharp[:, painted == c].mean(1), dim=0) for c in classes])
    return classes[torch.einsum("kf,fhw->khw", means, sharp).argmax(0)].numpy()


def main(arguments: Sequence[str] | None = None) -> NDArray[np.uint8]:
    """Write the painted photo as a PNG of class numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("strokes", type=Path)
    parser.add_argument("--backbone", default="upfeat/vit_compact_patch16")
    parser.add_argument("--upsampler", default="kin.upfeat")
    parser.add_argument("--out", type=Path, default=Path("painted.png"))
    given = parser.parse_args(arguments)

    pipe = upfeat.Pipeline(given.backbone, given.upsampler)
    with Image.open(given.photo) as photo:
        plane = np.asarray(photo.convert("RGB")).transpose(2, 0, 1)
    with Image.open(given.strokes) as picture:
        strokes = np.array(picture.convert("L"))
    classes = paint(plane_features(pipe, plane), strokes)
    Image.fromarray(classes).save(given.out)
    print(f"{given.out}: {np.count_nonzero(strokes)} painted pixels, {classes.size} classified")
    return classes


if __name__ == "__main__":
    main()
