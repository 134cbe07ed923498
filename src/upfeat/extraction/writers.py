"""What a bulk run writes for an image: feature maps as safetensors or npz."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.checkpoints import write_safetensors
from upfeat.errors import UnknownNameError
from upfeat.pipeline import Encoded, Pipeline

__all__ = ["Writer", "tensor_writer"]

_FORMATS = ("safetensors", "npz")


@dataclass(frozen=True)
class Writer:
    """One kind of output file.

    Attributes:
        suffix: of the file, with its dot.
        write: computes and writes it, whole or not at all: ``write(pipeline, encoded, path)``.
        bytes_per_pixel: how much an output pixel takes in the file, for the estimate before a run.

    Example:
        >>> from upfeat.extraction import tensor_writer
        >>> tensor_writer("npz", channels=192, dtype=torch.float16).bytes_per_pixel
        384.0
    """

    suffix: str
    write: Callable[[Pipeline, Encoded, Path], None]
    bytes_per_pixel: float


def tensor_writer(
    kind: str,
    channels: int,
    dtype: torch.dtype = torch.float16,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Writer:
    """Return a writer of feature maps: ``high`` (C, H', W') and ``low`` (C, h, w).

    Beside the two maps a file says what they are: ``image_size`` (H, W), ``low_extent`` (what
    ``low`` covers, see ``PipelineOutput``), ``layout`` and ``settings``, each as JSON. In a
    safetensors file they are the metadata of its header, in an npz file one text ``metadata``.

    Args:
        kind: ``"safetensors"`` or ``"npz"``.
        channels: C, for the estimate.
        dtype: of the stored numbers; npz knows no bfloat16.
        settings: what made the features, as JSON.

    Raises:
        UnknownNameError: another kind.
        ValueError: a dtype that the format does not have.

    Example:
        >>> import torch
        >>> from upfeat.extraction import tensor_writer
        >>> tensor_writer("safetensors", 192, torch.float32).suffix
        '.safetensors'
    """
    if kind not in _FORMATS:
        raise UnknownNameError("format", kind, _FORMATS)
    if kind == "npz" and dtype == torch.bfloat16:
        raise ValueError("npz has no bfloat16; store float16 or float32, or save safetensors")

    def write(pipe: Pipeline, encoded: Encoded, path: Path) -> None:
        tensors = {"high": pipe.upsample(encoded).to(dtype), "low": encoded.low.to(dtype)}
        metadata = {
            "layout": {"high": "C, H', W'", "low": "C, h, w"},
            "image_size": encoded.frame.own,
            "low_extent": encoded.low_extent,
            "settings": dict(settings or {}),
        }
        if kind == "safetensors":
            texts = {name: json.dumps(value) for name, value in metadata.items()}
            write_safetensors(path, tensors, texts)
        else:
            write_bytes(path, _npz(tensors, json.dumps(metadata)))

    return Writer(f".{kind}", write, float(channels * dtype.itemsize))


def _npz(tensors: dict[str, Tensor], metadata: str) -> bytes:
    import numpy as np

    stream = io.BytesIO()
    high, low = (tensors[name].cpu().numpy() for name in ("high", "low"))
    np.savez(stream, high=high, low=low, metadata=np.array(metadata))
    return stream.getvalue()
