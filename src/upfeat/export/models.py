"""Exporting a model: trace, write, run the file again, compare, record.

Legend: B batch (1), C feature channels, K value channels, h w grid, H W image and output.
"""

import contextlib
import copy
import importlib.metadata
import inspect
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from upfeat._files import OwnFiles, sha256_of
from upfeat.backbones.base import Backbone
from upfeat.errors import MissingPackageError, UnsupportedError
from upfeat.export.graphs import (
    OPSET,
    BackboneGraph,
    Format,
    PipelineGraph,
    UpsamplerGraph,
    ValuesGraph,
    format_of,
    quiet,
)
from upfeat.upsamplers.base import Upsampler

__all__ = ["ExportRecord", "Exported", "Parity", "export_model"]

MAKER = "upfeat export"
TRACED = 224  # pixels of a free side while the graph is traced
VALUES = 3  # channels of the values while the graph is traced
RATIO = 16  # pixels of a cell where no backbone gives it
LEAST, MOST = 16, 2**14  # pixels of a free side
CELLS = 3  # of a free side, at least
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")  # versions in the record
Side = int | None
"""A number of pixels, or None where the graph takes any."""


class Parity(pydantic.BaseModel, extra="forbid"):
    """How far an exported graph is from PyTorch on one input.

    Attributes:
        image: (H, W).
        grid: (h, w) of the features.
        difference: largest absolute difference of the outputs.
        scale: largest absolute value of PyTorch's output.
    """

    image: tuple[int, int]
    grid: tuple[int, int]
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference over the scale."""
        return self.difference / max(self.scale, 1e-12)


class ExportRecord(pydantic.BaseModel, extra="forbid"):
    """What an exported file holds, what made it, and how it compares with PyTorch.

    Attributes:
        file: name of the exported file.
        format: torch, onnx, openvino or aoti.
        bytes: of the file, and of what lies beside it (OpenVINO's weights).
        sha256: of the file.
        upsampler: as it was named.
        backbone: in the graph, or None.
        inputs: name, dtype and shape of each; names stand for sizes that are free.
        output: likewise.
        image_mean, image_std: how the caller normalises the image; None where the graph does.
        dtype: of the weights and of the arithmetic but for sums and softmax.
        opset: of ONNX.
        abilities: what the method declares it can be exported to.
        parity: against PyTorch in the same dtype, on random inputs.
        versions: of the packages that made it.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    upsampler: str
    backbone: str | None
    inputs: list[dict[str, Any]]
    output: dict[str, Any]
    image_mean: tuple[float, ...] | None
    image_std: tuple[float, ...] | None
    dtype: str
    opset: int | None
    abilities: dict[str, str]
    parity: list[Parity]
    versions: dict[str, str]


@dataclass(frozen=True)
class Exported:
    """A file with a graph, and its record, which lies beside it as JSON."""

    path: Path
    record: ExportRecord


@dataclass(frozen=True)
class _Job:
    """One export: the network, its sizes and the shapes of its inputs."""

    graph: nn.Module
    upsampler: Upsampler | None
    backbone: Backbone | None
    sides: tuple[Side, Side]
    channels: int
    dtype: torch.dtype
    image_dtype: torch.dtype

    @property
    def name(self) -> str:
        """The method's name, else the backbone's."""
        if self.upsampler is not None:
            return self.upsampler.info.name
        return "" if self.backbone is None else self.backbone.name

    @property
    def multiple(self) -> int:
        """What the sides of the image are multiples of."""
        return 1 if self.backbone is None else self.backbone.size_multiple

    @property
    def alone(self) -> bool:
        """Whether the features are an input."""
        return isinstance(self.graph, UpsamplerGraph)

    @property
    def any_width(self) -> bool:
        """Whether an upsampler alone takes the features of any backbone."""
        return self.upsampler is not None and self.upsampler.info.abilities.universal

    def sizes(self) -> list[tuple[int, int]]:
        """Image sizes of the comparison: the traced one, and two others where a side is free."""
        pairs = (TRACED, TRACED + 64), (TRACED - 48, TRACED + 16), (TRACED + 29, TRACED - 43)
        return [(self._side(0, rows), self._side(1, columns)) for rows, columns in pairs]

    def _side(self, axis: int, wanted: int) -> int:
        """The fixed side, or a multiple close to what is wanted."""
        step = self.multiple
        return self.sides[axis] or max(1, round(wanted / step)) * step

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the features' grid of an image of this size."""
        if self.backbone is not None:
            return self.backbone.grid_size(size)
        return math.ceil(size[0] / RATIO), math.ceil(size[1] / RATIO)

    def inputs(self, size: tuple[int, int], seed: int) -> tuple[Tensor, ...]:
        """Return random inputs for an image of this size."""
        draw = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, *size, generator=draw)
        if not self.alone:
            if self.image_dtype == torch.uint8:
                return ((255 * image).to(torch.uint8),)
            return (image.to(self.image_dtype),)
        grid = self.grid(size)
        features = torch.randn(1, self.channels, *grid, generator=draw)
        found = (4 * image - 2).to(self.dtype), features.to(self.dtype)
        if isinstance(self.graph, ValuesGraph):
            values = torch.randn(1, VALUES, *grid, generator=draw)
            return *found, values.to(self.dtype)
        return found

    def dynamic(self) -> tuple[dict[int, Any], ...]:
        """Return the free sizes of the inputs, as ``torch.export`` takes them."""
        from torch.export import Dim

        sides = {axis + 2: name for axis, name in enumerate("HW") if self.sides[axis] is None}
        grid = {a: Dim(name.lower(), min=CELLS, max=MOST) for a, name in sides.items()}
        if not self.alone:
            return ({axis: self.multiple * cells for axis, cells in grid.items()},)
        image = {axis: Dim(name, min=LEAST, max=MOST) for axis, name in sides.items()}
        if self.any_width and sides:
            grid = {1: Dim("C", min=CELLS, max=MOST), **grid}
        if isinstance(self.graph, ValuesGraph):
            return image, grid, {**grid, 1: Dim("K", min=1, max=MOST)}
        return image, grid


def export_model(
    out: str | Path,
    upsampler: Upsampler | None = None,
    backbone: Backbone | None = None,
    *,
    format: str = "onnx",
    name: str | None = None,
    spec: str | None = None,
    height: Side = None,
    width: Side = None,
    dtype: torch.dtype = torch.float32,
    image_dtype: torch.dtype = torch.float32,
    values: bool = False,
    channels: int | None = None,
) -> Exported:
    """Write a graph of an upsampler, a backbone, or both, and compare it with PyTorch.

    Args:
        out: folder of the graph and of the JSON beside it.
        upsampler: alone, it takes the normalised image and the features; with a backbone, the graph
            takes an image in [0, 1] and holds both normalisations.
        backbone: alone, the graph gives the low-resolution features.
        format: ``"onnx"``, ``"torch"`` (``torch.export``), ``"openvino"`` or ``"aoti"``
            (AOTInductor: needs a C++ compiler, runs on this kind of machine).
        name: of the files; default made of the method's and the backbone's names.
        spec: how the upsampler was named, for the record.
        height: of the image and the output in pixels; None for any.
        width: likewise.
        dtype: of weights and arithmetic.
        image_dtype: of the image in a graph with a backbone: float32, or uint8 for 0 to 255.
        values: the upsampler alone takes a third input, what it mixes (B, K, h, w).
        channels: C of an upsampler alone that takes any; default its own, or 384.

    Returns:
        The path of the file and its record.

    Raises:
        UnsupportedError: the method, an operator or these sizes cannot be exported to the format.
        MissingPackageError: the format's packages are not installed.
        ForeignFileError: a file of another origin lies in the place.

    Example:
        >>> import tempfile, upfeat
        >>> from upfeat.export import export_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export_model(folder, upfeat.create_upsampler("bilinear"), format="torch")
        ...     made.path.name, made.record.parity[2].image, made.record.parity[2].difference < 1e-5
        ('bilinear.pt2', (253, 181), True)
    """
    form = format_of(format)
    job = _job(upsampler, backbone, (height, width), dtype, image_dtype, values, channels)
    _check(job, form)
    name = name or _name(job)
    own = OwnFiles(out)
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(job, form, Path(folder, name))
        parity = compare(job, form, paths[0])
        digest, size = sha256_of(paths[0]), sum(path.stat().st_size for path in paths)
        record = ExportRecord(
            file=paths[0].name,
            format=form.name,
            bytes=size,
            sha256=digest,
            upsampler=spec or (upsampler.info.name if upsampler else "none"),
            backbone=None if backbone is None else backbone.name,
            inputs=_described(job),
            output=_output(job),
            image_mean=upsampler.info.image_mean if upsampler and job.alone else None,
            image_std=upsampler.info.image_std if upsampler and job.alone else None,
            dtype=str(dtype).removeprefix("torch."),
            opset=OPSET if form.name in ("onnx", "openvino") else None,
            abilities=vars(upsampler.info.abilities.export) if upsampler else {},
            parity=parity,
            versions=versions(),
        )
        beside = f"{name}.{form.name}.json"
        for path in paths:
            own.check(path.name, MAKER)
        own.write(beside, (record.model_dump_json(indent=2) + "\n").encode(), MAKER)
        for path in paths:
            own.write(path.name, path.read_bytes(), MAKER)
    return Exported(Path(out, paths[0].name), record)


def _job(
    upsampler: Upsampler | None,
    backbone: Backbone | None,
    sides: tuple[Side, Side],
    dtype: torch.dtype,
    image_dtype: torch.dtype,
    values: bool,
    channels: int | None,
) -> _Job:
    """Copy the networks in the wanted type, and choose the graph."""
    if upsampler is None and backbone is None:
        raise ValueError("name an upsampler, a backbone, or both to export")
    if values and (upsampler is None or backbone is not None):
        raise ValueError(
            "values are an input of an upsampler without a backbone; leave the backbone out"
        )
    upsampler = None if upsampler is None else copy.deepcopy(upsampler).to(dtype).eval()
    backbone = None if backbone is None else copy.deepcopy(backbone).to(dtype).eval()
    for side, what in zip(sides, ("height", "width"), strict=True):
        multiple = 1 if backbone is None else backbone.size_multiple
        if side is not None and (side < 1 or side % multiple):
            raise ValueError(f"the {what} must be a multiple of {multiple}, got {side}")
    graph: nn.Module
    if upsampler is None:
        graph = BackboneGraph(backbone)  # type: ignore[arg-type]
    elif backbone is not None:
        graph = PipelineGraph(backbone, upsampler)
    elif values:
        if not upsampler.info.abilities.mixes_values:
            raise UnsupportedError(
                f"{upsampler.info.name} makes new features and mixes no values; export it without "
                "values"
            )
        graph = ValuesGraph(upsampler)
    else:
        graph = UpsamplerGraph(upsampler)
    width = backbone.dim if backbone else upsampler.config.get("feature_dim")  # type: ignore[union-attr]
    return _Job(graph, upsampler, backbone, sides, width or channels or 384, dtype, image_dtype)


def _check(job: _Job, form: Format) -> None:
    """Refuse what the method declares it cannot do."""
    if job.upsampler is None:
        return
    sizes = getattr(job.upsampler.info.abilities.export, form.ability)
    if sizes == "no":
        raise UnsupportedError(
            f"{job.name} cannot be exported to {form.name}: what it does depends on the numbers in "
            "its inputs; run it in Python, or choose a method whose info.abilities.export allows it"
        )
    if sizes == "static" and None in job.sides:
        raise UnsupportedError(
            f"{job.name} is exported to {form.name} at fixed sizes only; give height and width in "
            "pixels"
        )


def _write(job: _Job, form: Format, stem: Path) -> list[Path]:
    """Trace the graph and write it."""
    inputs = job.inputs(job.sizes()[0], seed=0)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                job.graph,
                inputs,
                dynamic_shapes=job.dynamic(),
                strict=False,
                **_lenient(),
            )
            program.graph.eliminate_dead_code()  # 2.6 cannot read questions about types again
            return form.write(program, stem)
    except (MissingPackageError, UnsupportedError, OSError):
        raise
    except Exception as error:
        raise UnsupportedError(_refusal(job, form, error)) from error


def _lenient() -> dict[str, Any]:
    """Let conditions on free sizes become checks of the graph; PyTorch 2.6 has no such option."""
    option = "prefer_deferred_runtime_asserts_over_guards"
    return {option: True} if option in inspect.signature(torch.export.export).parameters else {}


def _refusal(job: _Job, form: Format, error: Exception) -> str:
    root: BaseException = error
    while root.__cause__ is not None:  # torch wraps what an operator lacks in steps of its own
        root = root.__cause__
    reason = str(root).strip().partition("\n")[0].rstrip(". ") or type(root).__name__
    what = job.name if job.backbone is None else f"{job.name} with {job.backbone.name}"
    advice = "give height and width in pixels" if None in job.sides else "take the format torch"
    if form.name == "torch" and None not in job.sides:
        advice = "run it in Python"
    return f"{what} cannot be exported to {form.name} ({reason}); {advice}, or another method"


def compare(job: _Job, form: Format, path: Path) -> list[Parity]:
    """Run the file and PyTorch on random inputs: of the traced size, and of two others if free."""
    try:
        run = form.load(path)
        found = []
        for seed, size in enumerate(job.sizes(), start=1):
            inputs = job.inputs(size, seed)
            with torch.no_grad(), quiet():
                expected = job.graph(*inputs).float()
                actual = run(*inputs).float()
            difference = (actual - expected).abs().max().item()
            scale = expected.abs().max().item()
            grid = job.grid(size)
            found.append(Parity(image=size, grid=grid, difference=difference, scale=scale))
        return found
    except Exception as error:
        raise UnsupportedError(_refusal(job, form, error)) from error


def _name(job: _Job) -> str:
    names = [] if job.upsampler is None else [job.upsampler.info.name]
    if job.backbone is not None:
        names.append(job.backbone.name.partition("(")[0].replace("/", "_"))
    if isinstance(job.graph, ValuesGraph):
        names.append("values")
    if job.dtype != torch.float32:
        names.append(str(job.dtype).removeprefix("torch."))
    if None not in job.sides:
        names.append("x".join(map(str, job.sides)))
    return "_".join(names)


def _described(job: _Job) -> list[dict[str, Any]]:
    """Name, type and shape of the inputs; letters stand for sizes that are free."""
    names = ("image", "features", "values")
    free = job.dynamic()
    found = []
    for name, tensor, dims in zip(names, job.inputs(job.sizes()[0], 0), free, strict=False):
        shape: list[Any] = list(tensor.shape)
        for axis in dims:
            letter = {1: "C" if name == "features" else "K", 2: "H", 3: "W"}[axis]
            shape[axis] = letter if name == "image" or axis == 1 else letter.lower()
        dtype = str(tensor.dtype).removeprefix("torch.")
        found.append({"name": name, "dtype": dtype, "shape": shape})
    return found


def _output(job: _Job) -> dict[str, Any]:
    values = isinstance(job.graph, ValuesGraph)
    sides = [side or letter for side, letter in zip(job.sides, "HW", strict=True)]
    if job.upsampler is None:
        sides = list(job.grid(job.sizes()[0])) if None not in job.sides else ["h", "w"]
    free = job.alone and job.any_width and None in job.sides
    shape = [1, "K" if values else "C" if free else job.channels, *sides]
    return {"name": "output", "dtype": str(job.dtype).removeprefix("torch."), "shape": shape}


def versions() -> dict[str, str]:
    """Return the versions of upfeat and of what it exports with, as far as they are installed."""
    import upfeat

    found = {"upfeat": upfeat.__version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
