"""Which grids NAF's neighbourhoods fit, and DiveUp's weights of NAF, which also take smaller ones.

Paper of the weights: DiveUp, arXiv 2603.13571. Original: github.com/Xiaoqiong-Liu/DiveUp.
"""

from upfeat.checkpoints import HubFile
from upfeat.ops.images import Size
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD
from upfeat.upsamplers.weights import Checkpoint

__all__ = ["DIVEUP", "check_grid", "clamped_dilation"]

DIVEUP = Checkpoint(
    tag="diveup",
    file=HubFile(
        filename="model_25000steps.pth",
        url="https://github.com/Xiaoqiong-Liu/DiveUp/releases/download/v1.0/model_25000steps.pth",
    ),
    backbone="any (trained with SigLIP-B, DINOv2-S, RADIOv2.5 and DINOv3-B)",
    feature_dim=None,
    image_mean=IMAGENET_MEAN,
    image_std=IMAGENET_STD,
    training_data="ImageNet-1k, 25,000 steps",
    code_license="MIT by its badge, without a licence file",
    weights_license="not stated",
    backbone_license="those of four backbones, DINOv3 License among them",
    paper="2603.13571",
    config={"clamp_dilation": True},
    note="DiveUp: NAF with other training; takes grids smaller than the kernel.",
)


def clamped_dilation(grid: Size, output_size: Size, kernel_size: int) -> Size:
    """Return DiveUp's pixels of the output between neighbouring cells, for rows and columns.

    Args:
        grid: (h, w) of the features.
        output_size: (H', W').
        kernel_size: cells of a neighbourhood, which is drawn together until it fits.

    Example:
        >>> clamped_dilation((4, 10), (28, 90), kernel_size=9)
        (3, 9)
    """
    rows, cols = (
        min(max(length // cells, 1), max(length // kernel_size, 1))
        for cells, length in zip(grid, output_size, strict=True)
    )
    return rows, cols


def check_grid(grid: Size, output_size: Size, kernel_size: int, clamp: bool) -> None:
    """Raise ``ValueError`` if a neighbourhood does not fit the output."""
    steps = clamped_dilation(grid, output_size, kernel_size)
    for axis, name in enumerate(("rows", "columns")):
        cells, length = grid[axis], output_size[axis]
        if length < cells and not clamp:
            raise ValueError(
                f"naf cannot reduce: the output has {length} {name}, the features {cells}; ask "
                "for an output at least as large as the feature grid"
            )
        step = steps[axis] if clamp else length // cells
        if kernel_size * step > length:
            raise ValueError(
                f"naf needs kernel_size x dilation <= output size, got {kernel_size} x "
                f"{step} > {length} {name}, as the feature grid has "
                f"{cells} {name}; enlarge the backbone's image until the grid has "
                f"{kernel_size}, or build naf with kernel_size={cells}"
            )
