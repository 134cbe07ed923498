"""``upfeat show pca``: image, low-resolution and upsampled features in one PCA basis."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from upfeat.cli.pictures import check_pictures, draw_each, picture_places, save_picture
from upfeat.cli.upsample import (
    DEFAULT_BACKBONE,
    DEFAULT_UPSAMPLER,
    BackboneOption,
    BackboneWeightsOption,
    BasisOption,
    Colors,
    DeviceOption,
    DtypeOption,
    FitOption,
    InputSizeOption,
    LayerOption,
    MaxPixelsOption,
    OutOption,
    PathsArgument,
    Request,
    SizeOption,
    UpsamplerOption,
    WeightsOption,
    parse_dtype,
    parse_size,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pca_command"]

MAKER = "upfeat show pca"
ENDING = "_pca"


def pca_command(
    paths: PathsArgument,
    out: OutOption = Path("out"),
    backbone: BackboneOption = DEFAULT_BACKBONE,
    upsampler: UpsamplerOption = DEFAULT_UPSAMPLER,
    weights: WeightsOption = None,
    backbone_weights: BackboneWeightsOption = None,
    size: SizeOption = None,
    input_size: InputSizeOption = None,
    fit: FitOption = "pad",
    layer: LayerOption = -1,
    basis: BasisOption = "image",
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    max_pixels: MaxPixelsOption = None,
) -> None:
    """Draw image, low-resolution and upsampled features in one PCA basis, for each image."""
    import torch

    from upfeat.data import image_files
    from upfeat.viz import pca_picture

    request = Request(
        backbone=backbone,
        upsampler=upsampler,
        weights=weights,
        backbone_weights=backbone_weights,
        layer=layer,
        input_size=parse_size(input_size, "--input-size"),
        output_size=parse_size(size, "--size"),
        fit=fit,
        dtype=parse_dtype(dtype, "--dtype"),
        device=torch.device(device) if device else None,
    )
    files = image_files(paths)
    places = picture_places([name for _, name in files], out, ENDING)
    check_pictures(places, MAKER)
    colors = Colors(basis, out)
    pipe = request.build()
    settings = request.settings(pipe)

    def draw(pixels: "Tensor", source: Path, picture: Path) -> None:
        encoded = pipe.encode(pixels)
        drawn = pca_picture(pipe, encoded, basis=colors.of(encoded))
        record = {"image": str(source), "settings": settings}
        record["explained"] = drawn.basis.explained.tolist()
        save_picture(picture, drawn.panel, json.dumps(record, default=str), MAKER)

    draw_each(files, places, draw)
