"""``upfeat upsample``: images in, feature maps and pictures out."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from upfeat.cli.options import checked_device, checked_folder

if TYPE_CHECKING:
    from torch import nn

    from upfeat.extraction import Job, Outcome, Summary, Writer
    from upfeat.pipeline import Encoded, Pipeline
    from upfeat.viz import PCABasis

DEFAULT_BACKBONE = "upfeat/vit_compact_patch16"
DEFAULT_UPSAMPLER = "kin.upfeat"
MANY_BYTES = 4 * 10**9
DTYPES = ("float32", "float16", "bfloat16")


def _limit_pixels(context: typer.Context, max_pixels: int | None) -> int | None:
    """Set Pillow's limit while the command runs: some formats know no other."""
    if max_pixels is not None:
        context.with_resource(_pixel_limit(max_pixels))
    return max_pixels


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # it warns from there and refuses twice that
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


PathsArgument = Annotated[list[str], typer.Argument(help="Images, folders or globs.")]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", callback=checked_folder, help="Folder of the results.")
]
BackboneOption = Annotated[str, typer.Option(help="Backbone: timm/NAME or upfeat/NAME.")]
UpsamplerOption = Annotated[str, typer.Option(help="Upsampler; arch.tag loads published weights.")]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Weights of the upsampler: a file or a saved folder.")
]
BackboneWeightsOption = Annotated[
    Path | None, typer.Option(help="Weights of the backbone: a file.")
]
SizeOption = Annotated[
    str | None,
    typer.Option(help="Output: shorter side (448), HxW (448x672), factor (0.5x); own size."),
]
InputSizeOption = Annotated[
    str | None, typer.Option(help="Size at which the networks see the image, as --size.")
]
FitOption = Annotated[str, typer.Option(help="Sides that the patch does not divide: pad, resize.")]
LayerOption = Annotated[int, typer.Option(help="Layer of the backbone.")]
BasisOption = Annotated[
    str,
    typer.Option(
        help="PCA colours: 'image', 'first' (one for all, kept in OUT/.upfeat/basis.json) or a "
        "basis file."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="Computation: float32, bfloat16, float16.")]
DeviceOption = Annotated[
    str | None, typer.Option(callback=checked_device, help="cpu, cuda, cuda:1, …")
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_limit_pixels,
        help="Height x width above which a file is refused (178956970).",
    ),
]


def upsample_command(
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
    save: Annotated[str, typer.Option(help="png, safetensors, npz; several with commas.")] = "png",
    store: Annotated[str, typer.Option(help="Numbers in files: float16, float32.")] = "float16",
    basis: BasisOption = "image",
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    jobs: Annotated[int, typer.Option(min=1, help="Images that are read ahead.")] = 2,
    max_pixels: MaxPixelsOption = None,
) -> None:
    """Upsample the features of images; finished images are skipped on a second run.

    Only files that upfeat wrote are replaced; what it wrote is no input of a later run.
    """
    import torch

    from upfeat.data import image_files
    from upfeat.extraction import Job, estimate_bytes, run_bulk

    kinds = list(dict.fromkeys(kind.strip() for kind in save.split(",") if kind.strip()))
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
    found = [Job(path, name) for path, name in image_files(paths)]
    pipe = request.build()
    colors = Colors(basis, out)
    writers = [_writer(kind, pipe, store, colors) for kind in kinds]
    if not writers:
        raise ValueError("--save names no format; choose from png, safetensors, npz")
    settings = request.settings(pipe) | {
        "save": sorted(kinds),
        "store": store,
        "basis": basis,
    }
    expected = estimate_bytes(found, writers, request.output_size, out, settings)
    _announce(expected, out)
    summary = _run_with_progress(
        found, lambda show: run_bulk(
            found, pipe, writers, out, settings, workers=jobs, on_outcome=show
        )
    )  # fmt: skip
    _report(summary, out)
    if summary.count("failed"):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Request:
    """What the options ask for, before anything is loaded."""

    backbone: str
    upsampler: str
    weights: Path | None
    backbone_weights: Path | None
    layer: int
    input_size: Any
    output_size: Any
    fit: str
    dtype: Any
    device: Any

    def build(self) -> "Pipeline":
        """Load backbone and upsampler and join them."""
        import upfeat

        if self.fit not in ("pad", "resize"):
            raise ValueError(f"--fit must be pad or resize, got {self.fit!r}")
        backbone = upfeat.create_backbone(
            self.backbone, weights=self.backbone_weights, layer=self.layer
        )
        saved = self.weights is not None and self.weights.is_dir()
        upsampler = upfeat.load_upsampler(
            str(self.weights) if saved else self.upsampler,
            backbone,
            weights=None if saved else self.weights,
        )
        return upfeat.Pipeline(
            backbone,
            upsampler,
            input_size=self.input_size,
            output_size=self.output_size,
            fit="pad" if self.fit == "pad" else "resize",
            dtype=self.dtype,
            device=self.device,
        )

    def settings(self, pipe: "Pipeline") -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON."""
        import upfeat

        return {
            "backbone": self.backbone,
            "backbone_sha256": _fingerprint(pipe.backbone),
            "layer": self.layer,
            "upsampler": self.upsampler,
            "upsampler_config": pipe.upsampler.config,
            "upsampler_sha256": _fingerprint(pipe.upsampler),
            "input_size": self.input_size,
            "output_size": self.output_size,
            "fit": self.fit,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "upfeat": upfeat.__version__,
        }


class Colors:
    """The basis of the pictures: each image's own, the first image's for all, or a file's."""

    def __init__(self, choice: str, out: Path) -> None:
        from upfeat._files import STATE
        from upfeat.viz import PCABasis

        self.choice = choice
        self.path = out / STATE / "basis.json"
        self.basis: PCABasis | None = None
        if choice == "first" and self.path.is_file():
            self.basis = PCABasis.load(self.path)
        elif choice not in ("image", "first"):
            if not Path(choice).is_file():
                raise ValueError(f"--basis must be image, first or a basis file, got {choice!r}")
            self.basis = PCABasis.load(choice)

    def of(self, encoded: "Encoded") -> "PCABasis | None":
        """Return the basis for an image; None lets the picture fit its own."""
        from upfeat.viz import PCABasis

        if self.choice == "first" and self.basis is None:
            self.keep(PCABasis.fit(encoded.low))
        return self.basis

    def keep(self, basis: "PCABasis") -> None:
        """Take a basis for all further images, and for later runs into the same folder."""
        self.basis = basis
        self.path.parent.mkdir(parents=True, exist_ok=True)
        basis.save(self.path)


def _writer(kind: str, pipe: "Pipeline", store: str, colors: Colors) -> "Writer":
    from upfeat.errors import UnknownNameError
    from upfeat.extraction import Writer, tensor_writer
    from upfeat.viz import pca_picture, save_png

    def write_panel(pipe: "Pipeline", encoded: "Encoded", path: Path) -> None:
        save_png(pca_picture(pipe, encoded, basis=colors.of(encoded)).panel, path)

    if kind == "png":
        return Writer(".png", write_panel, 2.0)
    if kind not in ("safetensors", "npz"):
        raise UnknownNameError("format of --save", kind, ("png", "safetensors", "npz"))
    return tensor_writer(kind, pipe.backbone.dim, parse_dtype(store, "--store"))


def parse_size(text: str | None, option: str) -> Any:
    """Read ``448``, ``448x672`` (height x width) or ``0.5x``.

    Example:
        >>> from upfeat.cli.upsample import parse_size
        >>> parse_size("448", "--size"), parse_size("448x672", "--size"), parse_size("2x", "--size")
        (448, (448, 672), 2.0)
    """
    if text is None:
        return None
    try:
        if text.endswith("x"):
            return float(text[:-1])
        parts = [int(part) for part in text.split("x")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2) or min(parts) < 1:
        raise ValueError(
            f"{option} must be a shorter side (448), height x width (448x672) or a factor (0.5x), "
            f"got {text!r}"
        )
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def parse_dtype(text: str, option: str) -> Any:
    """Read the name of a floating point type."""
    if text not in DTYPES:
        raise ValueError(f"{option} must be one of {', '.join(DTYPES)}, got {text!r}")
    import torch

    return getattr(torch, text)


def _fingerprint(module: "nn.Module") -> str:
    """Hash the weights in memory, so that a replaced file counts as a new setting."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _announce(expected: int, out: Path) -> None:
    """Say how much will be written, and refuse what does not fit on the disk."""
    console = Console(stderr=True)
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise ValueError(
            f"this would write about {_size(expected)}, and {folder} has {_size(free)} free; "
            "choose a smaller --size, --store float16, or --save png"
        )
    if expected > MANY_BYTES:
        console.print(f"will write about {_size(expected)} to {out}", highlight=False)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Return the rate over the images that were computed."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} images/s", style="cyan")


def _run_with_progress(
    jobs: Sequence["Job"], run: Callable[[Callable[["Outcome"], None]], "Summary"]
) -> "Summary":
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("upsampling", total=len(jobs))

        def show(outcome: "Outcome") -> None:
            progress.advance(task)
            if outcome.state == "failed":
                progress.console.print(
                    f"failed: {outcome.job.source}: {outcome.error}", markup=False
                )

        return run(show)


def _report(summary: "Summary", out: Path) -> None:
    """Print what was done, with the settings' place."""
    done, skipped, failed = (summary.count(s) for s in ("done", "skipped", "failed"))
    line = f"{done} done, {skipped} already there, {failed} failed"
    typer.echo(f"{line}; results in {out}")
    if failed:
        typer.echo(f"failures are named in {summary.failures}", err=True)
    elif done == 1:
        files = next(o.files for o in summary.outcomes if o.state == "done")
        typer.echo("\n".join(str(file) for file in files))
