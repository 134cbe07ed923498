"""Linear probe for depth on upsampled features: 256 bins, pseudo or metric depth.

* ``jafar`` (arXiv 2506.11136): crops of 448, relative inverse depth of Depth Anything V2 Small as
  the target (:mod:`upfeat.data.depth`), sig and gradient loss, 5 epochs of
  batches of 4, a cosine that advances once an iteration. The original gives images to all networks
  in [0, 1], without mean and deviation: ``normalise=False``; and its gradient loss takes
  differences between images of a batch: ``gradient="released"``. Defaults are what was meant.
* ``nyu``: metric depth of NYU Depth v2 up to 10 m with the same head; loss, schedule, epochs and
  batch of Probe3D (arXiv 2404.08636). The choice of the 1x1 head is ours.
* ``navi`` (LoftUp, arXiv 2504.14032) and ``probe3d-nyu`` (Probe3D): convolutional heads on square
  pictures, see :mod:`upfeat.evaluation.probes.surfaces`.
* ``pixel-sample``: a quick probe of metric depth, trained on a fixed sample of pixels and scored on
  all, see :mod:`upfeat.evaluation.probes.depth_pixels`.

The head sees the upsampled features and, at every pixel, the L2-normalised class token. It goes in
front of the upsampler where that gives the same numbers and is cheaper; 256 bins of several seeds
are often more than the features' channels. Scores are means over images, ``si_`` after a fit of
scale and shift to each image; ``d1`` to ``d3`` are in percent.

Legend: ``B`` batch, ``K`` bins, ``s`` seeds, ``H W`` crop, ``h' w'`` upsampled map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import (
    DepthData,
    SegmentationData,
    SurfaceData,
    load_segmentation,
    navi,
    nyuv2_depth,
    nyuv2_surfaces,
    read_image,
    resize_and_crop,
    rgbd,
)
from upfeat.data.depth import DepthTeacher
from upfeat.data.own import FOLDER_SET, folder_depth, own_input_size
from upfeat.data.sets.nyuv2 import without_normals
from upfeat.errors import UnknownNameError
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import DepthMetric
from upfeat.evaluation.probes.crops import KEEP_WEIGHTS, CropProbe
from upfeat.evaluation.probes.depth_pixels import (
    DepthPixelConfig,
    DepthPixelProbe,
    depth_pixel_preset,
    summarise_depth,
)
from upfeat.evaluation.probes.losses import bin_depth, gradient_loss, probe3d_loss, sig_loss
from upfeat.evaluation.probes.losses import valid_depth as where_valid
from upfeat.evaluation.probes.parts import ClassTokens, CropProbeConfig, head_first_is_cheaper
from upfeat.evaluation.probes.pixels import KEEP_PIXELS
from upfeat.evaluation.probes.surfaces import (
    SURFACE_DEPTH_PRESETS,
    SurfaceDepthConfig,
    SurfaceDepthProbe,
    surface_depth,
)
from upfeat.evaluation.registry import (
    Option,
    Progress,
    Protocol,
    Request,
    higher,
    lower,
    prefixed,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured
from upfeat.layers.raw_images import expect_raw_images
from upfeat.upsamplers import Upsampler

__all__ = ["CROP_PRESETS", "DepthProbeConfig", "depth_probe_preset", "run_depth_probe"]


class DepthProbeConfig(CropProbeConfig):
    """Settings of the probe on crops; all of them stand in the result.

    Attributes:
        bins, min_depth, max_depth: of the decoding; targets from 0 to ``max_depth`` count.
        class_token: give the head the class token, too.
        loss: ``sig_gradient`` (JAFAR) or ``probe3d``.
        gradient: ``spatial``, or ``released`` for differences between images of the batch.
        warm_up_iterations: in the first of them ``sig`` is without its variance.
        normalise: give networks images with their own mean and deviation, else in [0, 1].
    """

    bins: int = Field(default=256, ge=2)
    min_depth: PositiveFloat = 1e-3
    max_depth: PositiveFloat = 10.0
    class_token: bool = True
    loss: Literal["sig_gradient", "probe3d"] = "sig_gradient"
    gradient: Literal["spatial", "released"] = "spatial"
    warm_up_iterations: NonNegativeInt = 100
    normalise: bool = True


CROP_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "jafar": {"schedule": "per_iteration_bug", "epochs": 5, "batch": 4},
    "nyu": {
        "loss": "probe3d",
        "schedule": "probe3d",
        "epochs": 10,
        "batch": 8,
        "weight_decay": 0.01,
        "flip": 0.0,
    },
}


def depth_probe_preset(
    preset: str, data: str, **changes: Any
) -> DepthProbeConfig | DepthPixelConfig | SurfaceDepthConfig:
    """Return the settings of a preset for a data set.

    ``pixel-sample`` has those of :class:`~upfeat.evaluation.probes.depth_pixels.DepthPixelConfig`,
    ``navi`` and ``probe3d-nyu`` those of
    :class:`~upfeat.evaluation.probes.surfaces.SurfaceDepthConfig`.

    Raises:
        UnknownNameError: no such preset.
        ValueError: an impossible value.
    """
    if preset == "pixel-sample":
        return depth_pixel_preset(data, **changes)
    if preset in SURFACE_DEPTH_PRESETS:
        return surface_depth(preset, data, **changes)
    if preset not in CROP_PRESETS:
        known = [*CROP_PRESETS, "pixel-sample", *SURFACE_DEPTH_PRESETS]
        raise UnknownNameError("preset", preset, known)
    settings = {"preset": preset, "data": data} | dict(CROP_PRESETS[preset])
    return DepthProbeConfig(**settings | changes)


def run_depth_probe(
    config: DepthProbeConfig | DepthPixelConfig | SurfaceDepthConfig,
    train: DepthData | SegmentationData | SurfaceData[Any],
    val: DepthData | SegmentationData | SurfaceData[Any],
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    teacher: DepthTeacher | None = None,
    keep_pixels: bool = False,
    keep_weights: bool = False,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Probe several upsamplers on the same features, see :attr:`Protocol.run`.

    The cache also keeps class tokens, sampled pixels and checkpoints, from which an interrupted run
    goes on. A ``JointMethod`` is trained with the heads on crops only.

    The teacher gives the target depth, to any images; None for that of the data. ``keep_pixels``
    keeps a method's sampled pixels after its result is written; ``keep_weights`` saves methods that
    are trained with the heads (not ``pixel-sample``), one folder a seed in ``out/weights``.

    Raises:
        ValueError: the data is broken, has no depth and there is no teacher, or a method does not
            fit the features.
    """
    train, val = train.select(config.train_every, config.limit), val.select(limit=config.limit)
    where = (Path(out), on_progress or silent)
    if isinstance(config, SurfaceDepthConfig):
        first, second = (
            without_normals(x) if isinstance(x, DepthData) else x for x in (train, val)
        )
        if teacher or isinstance(first, SegmentationData) or isinstance(second, SegmentationData):
            raise ValueError(
                f"{config.preset} needs a set with measured depth, such as navi, and no teacher"
            )
        surfaces = SurfaceDepthProbe(
            config, *where, first, second, backbone, Path(cache), keep_weights
        )
        return surfaces.run(methods)
    if isinstance(train, SurfaceData) or isinstance(val, SurfaceData):
        raise ValueError(
            f"{config.preset} does not read {train.name}; take a preset of its form: "
            f"{', '.join(SURFACE_DEPTH_PRESETS)}"
        )
    real = isinstance(train, DepthData) and isinstance(val, DepthData)
    if isinstance(config, DepthPixelConfig):
        if teacher or not real:
            raise ValueError(
                "pixel-sample needs a set with measured depth, such as nyuv2, and no teacher; take "
                "the preset jafar for a teacher's depth"
            )
        pixels = DepthPixelProbe(config, *where, train, val, backbone, Path(cache), keep_pixels)
        return pixels.run(methods)
    if not real and teacher is None:
        raise ValueError(
            f"{train.name} has no depth; give a teacher (--teacher FOLDER with the weights of "
            "Depth Anything V2), or take a set with depth, such as nyuv2"
        )
    probe = _DepthProbe(config, *where, train, val, backbone, Path(cache), keep_weights, teacher)
    return probe.run(methods)


@dataclass(eq=False)
class _DepthProbe(CropProbe[DepthMetric]):
    """Depth in bins."""

    task = "depth-probe"
    seeds_together = False  # a map of 256 bins is large

    config: DepthProbeConfig
    teacher: DepthTeacher | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        config, teacher = self.config, self.teacher
        self.unit = "m" if teacher is None else "teacher's"
        self.outputs = config.bins
        self.token_channels = self.backbone.dim if config.class_token else 0
        self.tokens = ClassTokens(self.pipe, self.cache / "features")
        self.facts |= {
            "teacher": None if teacher is None else teacher.name,
            "teacher_weights": None if teacher is None else teacher.weights,
            "crop": "short side resized (bilinear, antialiased; depth nearest), centre crop",
            "head": "1x1 convolution, ReLU, + 0.1, mean of uniform bins",
            "alignment": "none; scores with si_: scale and shift of each image",
        }

    def read(self, split: str, index: int) -> tuple[Tensor, Tensor]:
        data, side = self.splits[split], self.config.crop_size
        if self.teacher is not None:
            image, _ = resize_and_crop(read_image(data.files[index].image), None, side)
            return image, self.teacher(image)
        image, depth = data[index]
        return resize_and_crop(image, depth, side)

    def pixels(self, image: Tensor) -> Tensor:
        if self.config.normalise:
            return super().pixels(image)
        expect_raw_images(self.backbone)
        return image

    def guidance(self, upsampler: Upsampler, image: Tensor) -> Tensor:
        if self.config.normalise:
            return super().guidance(upsampler, image)
        expect_raw_images(upsampler)
        return image

    def token(self, pixels: Tensor) -> Tensor | None:
        return self.tokens(pixels) if self.config.class_token else None

    def head_first(self, upsampler: Upsampler, training: bool) -> bool:
        """Say whether the heads go first: where they may, and where it costs less."""
        if not super().head_first(upsampler, training):
            return False
        height, width = self.backbone.grid_size((self.config.crop_size,) * 2)
        return self.config.head_before_upsampling == "always" or head_first_is_cheaper(
            upsampler, self.backbone.dim, self.outputs, len(self.config.seeds), height * width
        )

    def depth(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Decode (B, s, K, h', w') to depths (B, s, H, W) of the target's size."""
        config = self.config
        # (B, s, K, h', w') -> (B*s, h', w') -> (B, s, h', w')
        depth = bin_depth(outputs.flatten(0, 1), config.min_depth, config.max_depth)
        depth = depth.unflatten(0, outputs.shape[:2])
        if depth.shape[2:] != target.shape[1:]:
            depth = F.interpolate(depth, target.shape[1:], mode="bilinear")
        return depth

    def loss(self, outputs: Tensor, target: Tensor, iteration: int) -> Tensor | None:
        config = self.config
        true = target[:, None]  # (B, 1, H, W)
        valid = where_valid(true, config.max_depth)
        if int(valid.sum()) < 2:
            return None
        released = config.gradient == "released"
        total = outputs.new_zeros(())
        for depth in self.depth(outputs, target).split(1, 1):  # (B, 1, H, W) a seed
            if config.loss == "probe3d":
                total = total + probe3d_loss(depth, true, valid, released=released)
                continue
            warm = iteration < config.warm_up_iterations
            total = total + sig_loss(depth, true, valid, warm=warm)
            total = total + gradient_loss(depth, true, valid, released=released)
        return total

    def metric(self) -> DepthMetric:
        return DepthMetric(1e-3, self.config.max_depth, aligned=True)

    def score(self, metrics: Sequence[DepthMetric], outputs: Tensor, target: Tensor) -> None:
        for metric, depth in zip(metrics, self.depth(outputs, target)[0], strict=True):
            metric.add(depth[None], target)

    def summarise(self, metrics: Sequence[DepthMetric]) -> Measured:
        return summarise_depth(metrics)


def _inputs(request: Request) -> dict[str, Any]:
    folder = request.options["teacher"]
    splits = {
        split: _split(str(request.data), request.root, split, folder) for split in ("train", "val")
    }
    teacher = None if folder is None else DepthTeacher(folder, request.cache, request.device)
    kept = {name: request.options[name] for name in ("keep_pixels", "keep_weights")}
    return splits | {"cache": request.cache, "teacher": teacher} | kept


def _split(
    data: str, root: Path, split: Literal["train", "val"], teacher: Path | None
) -> DepthData | SegmentationData | SurfaceData[Any]:
    """List a split of a set with depth, or with a teacher of any labelled set."""
    if teacher is not None:
        return load_segmentation(data, root, split)
    if data not in DEPTH_SETS:
        raise UnknownNameError("data set with depth (without --teacher)", data, DEPTH_SETS)
    return DEPTH_SETS[data](root, split)


def _nyuv2(root: Path, split: Literal["train", "val"]) -> DepthData | SurfaceData[Any]:
    """List maps of depth, or frames in Probe3D's form where the folder holds those."""
    if (root / "geonet").is_dir():
        return nyuv2_surfaces(root, "trainval" if split == "train" else "test")
    return nyuv2_depth(root, split)


DEPTH_SETS: Mapping[str, Callable[..., DepthData | SurfaceData[Any]]] = {
    "nyuv2": _nyuv2,
    FOLDER_SET: folder_depth,
    "navi": lambda root, split: navi(root, "trainval" if split == "train" else "test"),
    "rgbd": lambda root, split: rgbd(root, "train" if split == "train" else "test"),
}
_UNALIGNED = {
    "d1": higher("δ1", "percent"),
    "d2": higher("δ2", "percent"),
    "d3": higher("δ3", "percent"),
    "abs_rel": lower("abs rel", ""),
    "sq_rel": lower("sq rel"),
    "rmse": lower("RMSE"),
    "rmse_log": lower("RMSE log", ""),
    "log10": lower("log10", ""),
    "silog": lower("SILog", ""),
}

register_protocol(
    Protocol(
        name="depth-probe",
        title="Depth, probe",
        summary="Train linear depth heads on upsampled features.",
        scores=_UNALIGNED | prefixed(_UNALIGNED, "si_", "scale-invariant "),
        headline=("rmse", "d1"),
        columns=("d1", "d2", "abs_rel", "rmse", "log10", "silog", "si_d1", "si_rmse"),
        caption="mean over the images",
        configure=depth_probe_preset,
        presets=("pixel-sample", *CROP_PRESETS, *SURFACE_DEPTH_PRESETS),
        data=(*DEPTH_SETS, "with a teacher any set of seg-probe"),
        inputs=_inputs,
        own_settings=lambda preset, root: (
            {"input_size": own_input_size(root)} if preset == "pixel-sample" else {}
        ),
        run=run_depth_probe,
        weights="joint",
        seeds=True,
        items="images of each split",
        options=(
            Option("teacher", "Folder with Depth Anything V2, for pseudo depth.", "path"),
            KEEP_PIXELS,
            KEEP_WEIGHTS,
        ),
    )
)
