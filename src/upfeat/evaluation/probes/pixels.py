"""What the quick probes share: features at a fixed sample of pixels, kept on disk, and the runs.

Legend: ``C`` feature channels, ``P`` pixels of an image, ``H W`` label.
"""

import io
import logging
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat._files import OwnFiles, write_bytes
from upfeat.data.sizes import Size
from upfeat.errors import UnsupportedError
from upfeat.evaluation.methods import JointMethod, Method
from upfeat.evaluation.registry import ProtocolConfig, StoredFeatures
from upfeat.evaluation.results import Result, result_file_name, stored_result
from upfeat.pipeline import Encoded, Pipeline

__all__ = [
    "PixelPool",
    "PixelRun",
    "PixelSampleConfig",
    "Stages",
    "encode_turned",
    "run_pixel_methods",
    "sample_pixels",
]

logger = logging.getLogger(__name__)


def sample_pixels(known: Tensor, count: int, name: str) -> Tensor:
    """Return at most ``count`` flat positions of known pixels, sorted; the name is the seed.

    Args:
        known: (H, W), True where a pixel may be taken.
        count: how many.
        name: of the image.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.pixels import sample_pixels
        >>> sample_pixels(torch.tensor([[True, False], [True, True]]), 8, "image").tolist()
        [0, 2, 3]
    """
    positions = known.flatten().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    order = torch.randperm(len(positions), generator=generator)[:count]
    return positions[order].sort().values


class PixelSampleConfig(ProtocolConfig):
    """Settings of a probe that is trained on sampled pixels.

    Attributes:
        input_size: (H, W) of the image for backbone and guidance, for images that are wider than
            high; exchanged for the others.
        train_every: every n-th training image is used.
        pixels_per_image: size of the fixed sample of each training image.
        steps, batch_pixels: of the training; pixels are drawn with replacement.
        learning_rate, weight_decay: of AdamW; the rate follows a cosine to zero.
        stored_features: how features and sampled pixels are kept.
        seeds: each gives a head of its own (initialisation and draws).
    """

    preset: Literal["pixel-sample"] = "pixel-sample"
    input_size: tuple[PositiveInt, PositiveInt]
    train_every: PositiveInt = 1
    pixels_per_image: PositiveInt = 4096
    steps: PositiveInt = 3000
    batch_pixels: PositiveInt = 4096
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    stored_features: StoredFeatures = "float16"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)


def encode_turned(pipe: Pipeline, image: Tensor) -> Encoded:
    """Encode an image (3, H, W) at the pipeline's input size, its sides exchanged for portraits.

    Args:
        pipe: whose ``input_size`` is a pair (height, width).
        image: in [0, 1].
    """
    height, width = cast("Size", pipe.input_size)
    if (image.shape[1] - image.shape[2]) * (height - width) < 0:
        height, width = width, height
    return pipe.encode(image, (height, width))


class PixelPool:
    """Samples of one set for one backbone; a file an image and method.

    Args:
        pipe: backbone and sizes.
        data: name of the set, for the folders.
        pixels_per_image: size of the samples, part of the folder's name.
        cache: where the folders go.

    Example:
        >>> import tempfile, torch, upfeat
        >>> from upfeat.evaluation.methods import LowRes
        >>> from upfeat.evaluation.probes.pixels import PixelPool
        >>> pooling = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> pipe = upfeat.Pipeline(pooling, input_size=(16, 16))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pool = PixelPool(pipe, "set", 2, folder)
        ...     encoded = pipe.encode(torch.ones(3, 16, 16))
        ...     pool.read(LowRes(), encoded, (16, 16), torch.tensor([0, 9]), "image").tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, pipe: Pipeline, data: str, pixels_per_image: int, cache: str | Path) -> None:
        self.pipe, self.data, self.cache = pipe, data, Path(cache)
        self.pixels_per_image = pixels_per_image
        self.dtype = torch.float16 if pipe.cache is None else pipe.cache.dtype

    def folder(self, method: Method) -> Path:
        """Return where a method's pixels lie."""
        key = {
            "backbone": self.pipe.identity,
            "upsampler": method.identity,
            "pixels": self.pixels_per_image,
            "input_size": self.pipe.input_size,
        }
        if self.dtype != torch.float16:
            key["stored"] = str(self.dtype)
        name = result_file_name("pixels", self.data, method.identity["name"], key)
        return self.cache / "pixels" / name.removesuffix(".json")

    def read(
        self, method: Method, encoded: Encoded, size: Size, positions: Tensor, key: str
    ) -> Tensor:
        """Return the upsampled features at some positions, from disk where they are there.

        Args:
            method: what upsamples.
            encoded: the image.
            size: (H, W) of the upsampled map.
            positions: (P,) flat positions in it.
            key: name of the file; another for every image, split and content.

        Returns:
            (P, C) on the CPU, float16 or what the pipeline keeps.

        Raises:
            ValueError: a value is not finite or too large for what is kept.
        """
        path = self.folder(method) / f"{key.replace('/', '_')}.npy"
        found = _read(path)
        if found is None:
            found = method.on(self.pipe).at(encoded, size, positions).to("cpu", self.dtype)
            if not bool(found.isfinite().all()):
                raise ValueError(
                    f"{method.label} gives features that are NaN or beyond {self.dtype}"
                )
            OwnFiles(path.parent).claim_all("the cache of pixels")
            buffer = io.BytesIO()
            np.save(buffer, found.numpy(), allow_pickle=False)
            write_bytes(path, buffer.getvalue())
        return found

    def remove(self, method: Method) -> None:
        """Remove a method's pixels, if it was this class that made their folder."""
        if OwnFiles(self.folder(method)).all:
            shutil.rmtree(self.folder(method), ignore_errors=True)


def _read(path: Path) -> Tensor | None:
    """Return stored pixels (P, C), or None; an unreadable file counts as absent."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is not readable (%s); computing it again", path, error)
        return None


class PixelRun(Protocol):
    """A probe of one backbone on one set."""

    pool: PixelPool

    def settings(self, method: Method) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        ...

    def run(self, method: Method, settings: dict[str, Any]) -> Result:
        """Sample, train, score."""
        ...


def run_pixel_methods(
    probe: PixelRun,
    methods: Sequence[Method],
    *,
    task: str,
    data: str,
    joint_presets: str,
    out: Path | str,
    keep_pixels: bool,
) -> list[Result]:
    """Return each method's result: the stored one of the same settings, or a new one, stored.

    Args:
        probe: runs a method.
        methods: in order.
        task: of the result files.
        data: of the result files.
        joint_presets: what to use for a method that is trained with the heads, for the error.
        out: folder of the results.
        keep_pixels: keep a method's sampled pixels after its result is written.

    Raises:
        UnsupportedError: a method is trained with the heads.
    """
    results = []
    for method in methods:
        if isinstance(method, JointMethod):
            raise UnsupportedError(
                f"{method.label} is trained with the heads, which pixel-sample cannot do; take "
                f"the preset {joint_presets}"
            )
        settings = probe.settings(method)
        path, known = stored_result(out, task, data, method.label, settings)
        if known is None:
            known = probe.run(method, settings)
            known.save(path)
            if not keep_pixels:
                probe.pool.remove(method)
        results.append(known)
    return results


class Stages:
    """Seconds of the stages of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def end(self, name: str) -> None:
        """Note that a stage is over; the next begins."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._start, 1)
        self._start = now
