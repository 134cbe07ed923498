"""Feature maps of training images that are fitted once and kept, as targets.

``upfeat upsample IMAGES --upsampler featup_implicit --save safetensors --out MAPS`` fits a network
to each image and keeps its map; finished images are skipped on a second run. LoftUp's paper (arXiv
2504.14032, table 2) compares such maps with its own targets.
"""

from pathlib import Path

import torch
from torch import Tensor

from upfeat.checkpoints import read_checkpoint
from upfeat.data.records import ImageRecord
from upfeat.data.segmentation import PathLike
from upfeat.errors import CheckpointError, shape_text

__all__ = ["FeatureMapFolder"]

KEY = "high"


class FeatureMapFolder:
    """Stored maps in a folder, found by the image's name.

    Args:
        root: the folder that ``upfeat upsample --save safetensors`` wrote.
        pattern: name of an image's file below it; ``{stem}`` and ``{name}`` stand for the last part
            and the whole of the image's name.

    Example:
        >>> from upfeat.data.feature_maps import FeatureMapFolder
        >>> FeatureMapFolder("maps").name
        'features-{name}.safetensors'
    """

    def __init__(self, root: PathLike, pattern: str = "{name}.safetensors") -> None:
        self.root = Path(root).expanduser()
        self.pattern = pattern

    @property
    def name(self) -> str:
        """Kind and settings."""
        return f"features-{self.pattern}"

    def __call__(self, record: ImageRecord) -> Tensor:
        """Return the map (C, H', W') of an image, float32, which covers the whole of it.

        Raises:
            ValueError: there is no file, or it holds no map.
        """
        stem = record.name.rpartition("/")[2]
        path = self.root / self.pattern.replace("{stem}", stem).replace("{name}", record.name)
        if not path.is_file():
            raise ValueError(
                f"no stored features of {record.name} at {path}; make them with upfeat upsample "
                f"IMAGES --upsampler featup_implicit --save safetensors --out {self.root}"
            )
        try:
            stored = read_checkpoint(path).get(KEY)
        except CheckpointError as error:
            raise ValueError(f"no features of {record.name}: {error}") from error
        if not isinstance(stored, torch.Tensor) or stored.dim() != 3:
            shape = shape_text(stored) if isinstance(stored, torch.Tensor) else "no such tensor"
            raise ValueError(f"{path} must hold {KEY!r} (C, H, W), got {shape}")
        return stored.float()
