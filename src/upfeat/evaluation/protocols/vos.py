"""Video object segmentation: the first frame's masks handed on by upsampled features.

Preset ``loftup``: frames are squashed to 224x224, features are upsampled to half of that, guided by
the image at that size, and masks are handed from the first and the last seven frames to the next
(:func:`upfeat.evaluation.metrics.propagate_labels`). Preset ``naf``: frames keep their size, and
the grid is a multiple of the backbone's own. Scores are those of DAVIS, of the files that are
written: palette PNGs at the frames' own size, which the official tools read, too.

The row ``low-res`` propagates on the backbone's own grid.

Legend: ``C`` feature channels, ``K`` objects and background, ``N`` context frames, ``T`` frames,
``h w`` grid of the propagation, ``H W`` frame.
"""

import dataclasses
import io
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from upfeat._files import OwnFiles, write_bytes
from upfeat.backbones import Backbone
from upfeat.data import VideoData, VideoSequence, davis
from upfeat.data.layouts import read_numbers
from upfeat.data.own import FOLDER_SET, folder_video
from upfeat.data.sizes import Size
from upfeat.errors import UnsupportedError
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import VideoMetric, masks_to_labels, object_numbers, propagate_labels
from upfeat.evaluation.registry import (
    Option,
    Presets,
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    StoredFeatures,
    higher,
    lower,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
from upfeat.pipeline import Pipeline

__all__ = ["DATA_SETS", "PRESETS", "VosConfig", "run_vos", "vos_preset"]

TASK = "vos"
VOID = 255


class VosConfig(ProtocolConfig):
    """Settings of the propagation; all of them stand in the result.

    Attributes:
        input_size: (H, W) to which frames are squashed; None for their own, each side lowered to
            a multiple of what the backbone takes.
        factor: the grid is the backbone's times this; None for half the input size.
        guidance_resize: how the image is brought to the grid.
        context_frames: how many of the last frames count, besides the first.
        top_k: positions that give a mask to one, of all context frames together.
        radius: of the neighbourhood, in cells of the grid.
        temperature: of the weights.
        stored_features: how low-resolution features are kept.
    """

    preset: Literal["loftup", "naf"] = "loftup"
    input_size: tuple[PositiveInt, PositiveInt] | None = (224, 224)
    factor: PositiveInt | None = None
    guidance_resize: Literal["bilinear", "bicubic"] = "bilinear"
    context_frames: NonNegativeInt = 7
    top_k: PositiveInt = 5
    radius: NonNegativeInt = 12
    temperature: PositiveFloat = 0.1
    stored_features: StoredFeatures = "float32"


DATA_SETS: dict[str, Callable[..., VideoData]] = {
    "davis2016": lambda root, split: davis(root, 2016, split),
    "davis2017": lambda root, split: davis(root, 2017, split),
    FOLDER_SET: folder_video,
}
PRESETS: dict[str, dict[str, Any]] = {
    "loftup": {},
    "naf": {"input_size": None, "factor": 1, "guidance_resize": "bicubic"},
}


vos_preset = Presets(VosConfig, PRESETS, DATA_SETS)


def run_vos(
    config: VosConfig,
    data: VideoData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Propagate masks with several upsamplers, see :attr:`Protocol.run`.

    Beside a method's result goes a folder of the same name with ``SEQUENCE/FRAME.png``; an
    interrupted run goes on with the first video that lacks a frame. Scores are in percent, means
    over all objects.

    Raises:
        ValueError: the data is broken, or a method does not fit the features.
    """
    data = data.select(config.limit)
    run = _Propagation(config, Path(out), on_progress or silent, data, backbone, Path(cache))
    return run.run(methods)


@dataclass(eq=False)
class _Propagation(ProtocolRun):
    """One backbone on one set."""

    task = TASK

    config: VosConfig
    data: VideoData
    backbone: Backbone
    cache: Path

    def __post_init__(self) -> None:
        dtype = getattr(torch, self.config.stored_features)
        features = self.cache / "features"
        self.pipe = Pipeline(self.backbone, fit="exact", cache=features, cache_dtype=dtype)
        self.facts = {
            "splits": described_splits(self.data, items="videos"),
            "backbone": self.pipe.identity,
            "image_resize": "bicubic, antialiased",
            "mask_resize": "nearest to the grid and to the frame, bilinear to the input",
            "scored": "all frames but the first and last, all objects of the first frame",
        }

    def settings(self, method: Method) -> dict[str, Any]:
        size = self.config.input_size
        grid = None if size is None else list(self.grid(method, size))
        return super().settings(method) | {"output_size": grid}

    def grid(self, method: Method, input_size: Size) -> Size:
        """Return the size (h, w) at which masks are handed on."""
        height, width = self.backbone.grid_size(input_size)
        if isinstance(method, LowRes):
            return height, width
        if self.config.factor is None:
            return input_size[0] // 2, input_size[1] // 2
        return height * self.config.factor, width * self.config.factor

    def measure(self, pending: Pending) -> Measured:
        """Write the masks of all videos and score them."""
        method, folder, metric = pending.method, pending.path.with_suffix(""), VideoMetric()
        with pending.timed("propagation"):
            for number, sequence in enumerate(self.data):
                self.on_progress(method.label, "propagating masks", number, len(self.data))
                self.write(method, sequence, folder / sequence.name)
        with pending.timed("scoring"):
            for number, sequence in enumerate(self.data):
                self.on_progress(method.label, "scoring", number, len(self.data))
                metric.add(sequence.name, *self.masks(folder / sequence.name, sequence))
        objects = {
            f"{name}/{number}": {
                "j": round(100 * region.mean, 2),
                "f": round(100 * boundary.mean, 2),
            }
            for (name, number), (region, boundary) in sorted(metric.objects.items())
        }
        return seed_scores([metric.compute()]), {"objects": objects, "masks": folder.name}

    def write(self, method: Method, sequence: VideoSequence, folder: Path) -> None:
        """Write the masks of a video that are not there yet."""
        if len(sequence.frames) < 3:
            raise ValueError(
                f"{sequence.name} has {len(sequence.frames)} frames; the first and the last are "
                "not scored, so it takes at least 3"
            )
        files = [folder / f"{frame.stem}.png" for frame in sequence.frames]
        if all(file.is_file() for file in files):
            return
        labels = self.propagate(method, sequence)  # (T, H, W)
        OwnFiles(folder.parent).claim_all("upfeat eval vos")
        folder.mkdir(exist_ok=True)
        for file, label in zip(files, labels, strict=True):
            if not file.is_file():
                write_bytes(file, palette_png(label))

    def propagate(self, method: Method, sequence: VideoSequence) -> Tensor:
        """Return the labels (T, H, W), uint8, of a video from its first mask."""
        first = self.data.read_mask(sequence, 0)
        if int(first.max()) >= VOID:
            raise ValueError(
                f"{sequence.name} has an object of number {int(first.max())}; a palette PNG holds "
                f"numbers up to {VOID - 1}"
            )
        numbers = torch.tensor([0, *object_numbers(first, VOID)])  # may have gaps
        labels = torch.empty(len(sequence.frames), *first.shape, dtype=torch.uint8)
        labels[0] = first
        config, start = self.config, None
        recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.context_frames)
        for index in range(len(sequence.frames)):
            features, size = self.features(method, self.data.read_frame(sequence, index))
            if start is None:
                small = _nearest(first, (features.shape[1], features.shape[2]))
                # (1, h, w) == (K, 1, 1) -> (K, h, w)
                masks = (small[None] == numbers[:, None, None]).to(features)
                start = (features, masks)
                continue
            if features.shape != start[0].shape:
                raise ValueError(f"{sequence.frames[index]} has another size than the first frame")
            context = (start, *recent)
            masks = propagate_labels(
                features,
                torch.stack([one for one, _ in context]),
                torch.stack([mask for _, mask in context]),
                radius=config.radius,
                top_k=config.top_k,
                temperature=config.temperature,
            )
            recent.append((features, masks))
            found = numbers[masks_to_labels(masks, size).cpu()]  # (H, W)
            labels[index] = _nearest(found, tuple(first.shape))
        return labels

    def features(self, method: Method, frame: Tensor) -> tuple[Tensor, Size]:
        """Return upsampled features (C, h, w) of a frame (3, H, W), and the input size."""
        size = self.config.input_size or self._own_size(tuple(frame.shape[1:]))
        encoded = self.pipe.encode(frame, size)
        if isinstance(method, LowRes):
            return encoded.features[0], size
        grid = self.grid(method, size)
        if not method.upsampler.info.views:  # else they are views of the backbone's own input
            mode = self.config.guidance_resize
            guidance = F.interpolate(encoded.prepared, grid, mode=mode, align_corners=False)
            encoded = dataclasses.replace(encoded, prepared=guidance)
        return method.on(self.pipe).upsample(encoded, grid), size

    def _own_size(self, size: tuple[int, ...]) -> Size:
        multiple = self.backbone.size_multiple
        height, width = (side // multiple * multiple for side in size)
        if not height or not width:
            raise UnsupportedError(
                f"frames of {size} are smaller than {multiple} pixels, the least that "
                f"{self.backbone.name} takes; set input_size"
            )
        return height, width

    def masks(self, folder: Path, sequence: VideoSequence) -> tuple[Tensor, Tensor]:
        """Return the written and the true masks (T, H, W) of a video."""
        files = [folder / f"{frame.stem}.png" for frame in sequence.frames]
        written = [read_numbers(file, "prediction", "of objects").byte() for file in files]
        true = [self.data.read_mask(sequence, index).byte() for index in range(len(files))]
        return torch.stack(written), torch.stack(true)


def palette_png(label: Tensor) -> bytes:
    """Return a PNG of object numbers (H, W) in the colours of VOC and DAVIS."""
    from PIL import Image

    image = Image.fromarray(label.numpy())
    # Bit 3 i + c of a class's number is bit 7 - i of channel c of its colour.
    palette = [
        sum((number >> (3 * i + channel) & 1) << (7 - i) for i in range(3))
        for number in range(256)
        for channel in range(3)
    ]
    image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _nearest(label: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize numbers (H, W); each new pixel takes the old one that its centre lies in."""
    rows, cols = (
        ((torch.arange(new, device=label.device) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(label.shape, size, strict=True)
    )
    return label[rows[:, None], cols]


def _inputs(request: Request) -> dict[str, Any]:
    videos = DATA_SETS[str(request.data)](request.root, request.options["split"])
    return {"data": videos, "cache": request.cache}


register_protocol(
    Protocol(
        name=TASK,
        title="Video object segmentation",
        summary="Propagate the first frame's masks through a video; palette PNGs and DAVIS scores.",
        scores={
            "jf": higher("J&F"),
            "j": higher("J"),
            "j_recall": higher("J recall"),
            "j_decay": lower("J decay"),
            "f": higher("F"),
            "f_recall": higher("F recall"),
            "f_decay": lower("F decay"),
        },
        headline=("jf",),
        caption="mean over all objects",
        configure=vos_preset,
        presets=tuple(PRESETS),
        data=tuple(DATA_SETS),
        inputs=_inputs,
        run=run_vos,
        items="videos",
        options=(Option("split", "Split of the data set: train, val.", default="val"),),
    )
)
