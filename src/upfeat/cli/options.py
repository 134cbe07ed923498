"""The options that several commands share: their types, checks and values.

What an option names is checked before a command begins any work.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from upfeat.backbones import Backbone
    from upfeat.evaluation.methods import Method
    from upfeat.pipeline import Pipeline

DEFAULT_BACKBONE = "upfeat/vit_compact_patch16"
DEFAULT_UPSAMPLER = "kin.upfeat"
DEFAULT_OUT = Path("results")
DTYPES = ("float32", "float16", "bfloat16")


def checked_device(param: typer.CallbackParam, value: str | None) -> str | None:
    """Return the device of an option, if this machine can compute on it; ``auto`` prefers a GPU."""
    if value is None or value == "cpu":
        return value
    import torch

    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise ValueError(
            f"{_name(param)} must be auto, cpu, cuda, cuda:1, mps or another device of PyTorch, "
            f"got {value!r}"
        ) from error
    try:
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"{_name(param)} {value}: PyTorch cannot compute on that here, it finds "
            f"{', '.join(found)}; name one of them"
        ) from error
    return value


def checked_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the folder of an option, if files can be written into it; see :func:`check_folder`."""
    if value is not None:
        check_folder(value, _name(param))
    return value


def checked_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the file of an option, if it can be written."""
    if value is None:
        return None
    if value.is_dir():
        raise ValueError(f"{_name(param)} {value} is a folder; name a file")
    check_folder(value.absolute().parent, f"{_name(param)} {value}:")
    return value


def checked_picture_place(param: typer.CallbackParam, value: Path) -> Path:
    """Return the place of an option that names a folder, or one picture by ``.png``."""
    if value.suffix.lower() == ".png":
        checked_file(param, value)
    else:
        checked_folder(param, value)
    return value


def check_folder(folder: Path, what: str) -> None:
    """Raise unless files can be written into a folder, which need not exist yet."""
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise ValueError(f"{what} {folder}: {present} is a file; name a folder for the results")
    if not os.access(present, os.W_OK | os.X_OK):
        raise ValueError(
            f"{what} {folder}: nothing can be written into {present}, it is read-only; name "
            "another folder, or change its permissions"
        )


def _name(param: typer.CallbackParam) -> str:
    """Return the option as it is written on the command line."""
    return max(param.opts, key=len)


def _limit_pixels(context: typer.Context, max_pixels: int | None) -> int | None:
    """Set Pillow's limit while the command runs: some formats know no other."""
    if max_pixels is not None:
        from PIL import Image

        context.call_on_close(partial(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS))
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # it warns from there and refuses twice that
    return max_pixels


# -- types ---------------------------------------------------------------------------------------

PathsArgument = Annotated[list[str], typer.Argument(help="Images, folders or globs.")]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", callback=checked_folder, help="Folder of the results.")
]
PhotoArgument = Annotated[Path, typer.Argument(help="The image.")]
AtOption = Annotated[
    list[str],
    typer.Option(
        help="The pixel: ROW,COL of the photo, or fractions of its height and width such as "
        "0.4,0.55; repeat for several."
    ),
]
SideOption = Annotated[int, typer.Option(min=64, help="Longer side of each picture in pixels.")]
PictureOutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        callback=checked_picture_place,
        help="Folder of the results, or the picture itself: NAME.png.",
    ),
]
BackboneOption = Annotated[str, typer.Option(help="Backbone: timm/NAME or upfeat/NAME.")]
UPSAMPLERS = (
    "Upsamplers, with commas: NAME, NAME.TAG, NAME(OPTION=VALUE), a saved folder, a hub id, "
    "low-res (the backbone's own grid), LABEL=any of these."
)
UpsamplersOption = Annotated[str, typer.Option(help=UPSAMPLERS)]
UpsamplerOption = Annotated[
    str,
    typer.Option(help="Upsampler: NAME, NAME.TAG (published weights), a saved folder or a hub id."),
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Weights of the upsampler: a file or a saved folder.")
]
AnyBackboneOption = Annotated[
    bool,
    typer.Option(
        "--any-backbone", help="Do not warn if the weights were trained for another backbone."
    ),
]
BackboneWeightsOption = Annotated[Path | None, typer.Option(help="Weight file of the backbone.")]
SizeOption = Annotated[
    str | None,
    typer.Option(
        help="Output size: shorter side (448), HxW or factor (0.5x). Default: the image's."
    ),
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(help="Resize the image to this before the networks; written as --size."),
]
GuidanceSizeOption = Annotated[
    str | None,
    typer.Option(help="Image size for the upsampler, if smaller: faster, less sharp. As --size."),
]
FitOption = Annotated[
    str, typer.Option(help="If the patch size does not divide a side: pad or resize.")
]
LayerOption = Annotated[int, typer.Option(help="Backbone layer to take features from.")]
BasisOption = Annotated[
    str,
    typer.Option(
        help="PCA basis: 'image' (one each), 'first' (one for all, in OUT/.upfeat/basis.json) or a "
        "basis file."
    ),
]
SaveDtypeOption = Annotated[str, typer.Option(help="Data type in files: float16, float32.")]
MaxGbOption = Annotated[
    float, typer.Option(min=0.0, help="Refuse to start if more than this would be written, in GB.")
]
DtypeOption = Annotated[
    str, typer.Option(help="Data type of the computation: float32, bfloat16, float16.")
]
DeviceOption = Annotated[
    str,
    typer.Option(callback=checked_device, help="auto (a GPU if there is one), cpu, cuda, cuda:1."),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_limit_pixels,
        help="Refuse images with more pixels. Default: Pillow's limit, 178956970.",
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of the protocol: steps=100; repeat for several."),
]


# -- options together ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The options of the commands that run a backbone on images; see :func:`with_fields`."""

    paths: PathsArgument
    out: OutOption = Path("out")
    backbone: BackboneOption = DEFAULT_BACKBONE
    backbone_weights: BackboneWeightsOption = None
    size: SizeOption = None
    input_size: InputSizeOption = None
    guidance_size: GuidanceSizeOption = None
    fit: FitOption = "pad"
    layer: LayerOption = -1
    dtype: DtypeOption = "float32"
    device: DeviceOption = "auto"
    max_pixels: MaxPixelsOption = None

    def pipeline_arguments(self) -> dict[str, Any]:
        """Return the arguments of a pipeline beside its networks; refuse what cannot be read."""
        import torch

        if self.fit not in ("pad", "resize"):
            raise ValueError(f"--fit must be pad or resize, got {self.fit!r}")
        return {
            "input_size": parse_size(self.input_size, "--input-size"),
            "guidance_size": parse_size(self.guidance_size, "--guidance-size"),
            "output_size": parse_size(self.size, "--size"),
            "fit": self.fit,
            "dtype": parse_dtype(self.dtype, "--dtype"),
            "device": torch.device(self.device),
        }

    def load_backbone(self) -> "Backbone":
        """Load the backbone."""
        import upfeat

        return upfeat.create_backbone(
            self.backbone, weights=self.backbone_weights, layer=self.layer
        )


@dataclass(frozen=True, kw_only=True)
class PhotoOptions(NetworkOptions):
    """The options of the commands that draw features in the colours of a PCA."""

    basis: BasisOption = "image"


@dataclass(frozen=True, kw_only=True)
class MethodOptions(NetworkOptions):
    """The options of the commands that upsample images by one method."""

    upsampler: UpsamplerOption = DEFAULT_UPSAMPLER
    weights: WeightsOption = None
    any_backbone: AnyBackboneOption = False

    def build(self) -> "Pipeline":
        """Load backbone and upsampler and join them."""
        import upfeat

        arguments, backbone = self.pipeline_arguments(), self.load_backbone()
        saved = self.weights is not None and self.weights.is_dir()
        upsampler = upfeat.load_upsampler(
            str(self.weights) if saved else self.upsampler,
            backbone,
            weights=None if saved else self.weights,
            any_backbone=self.any_backbone,
        )
        return upfeat.Pipeline(backbone, upsampler, **arguments)

    def settings(self, pipe: "Pipeline") -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON."""
        import upfeat
        from upfeat.data.feature_cache import weights_fingerprint

        return {
            "backbone": self.backbone,
            "backbone_weights": weights_fingerprint(pipe.backbone.state_dict()),
            "layer": self.layer,
            "upsampler": self.upsampler,
            "upsampler_config": pipe.upsampler.config,
            "upsampler_weights": weights_fingerprint(pipe.upsampler.state_dict()),
            "input_size": pipe.input_size,
            "output_size": pipe.output_size,
            **({"guidance_size": pipe.guidance_size} if pipe.guidance_size is not None else {}),
            "fit": self.fit,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "upfeat": upfeat.__version__,
        }


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(PhotoOptions, MethodOptions):
    """The options of the commands that upsample images by one method and draw them."""


def with_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters that are dataclasses of options are spread into fields."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command, eval_str=True).parameters.values():
        if dataclasses.is_dataclass(one.annotation):
            groups[one.name] = one.annotation
        parameters += _fields_of(one.annotation) if one.name in groups else [one]

    def spread(**values: Any) -> None:
        joined = {
            name: group(**{each.name: values.pop(each.name) for each in _fields_of(group)})
            for name, group in groups.items()
        }
        command(**joined, **values)

    spread.__doc__ = command.__doc__
    return with_parameters(spread, parameters)


def with_parameters(
    command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give a command, which takes any keywords, the parameters that typer reads."""
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    command.__annotations__ = {each.name: each.annotation for each in keywords}
    vars(command)["__signature__"] = inspect.Signature(keywords)
    return command


def _fields_of(group: Any) -> list[inspect.Parameter]:
    """Return the fields of a dataclass of options as parameters of a function."""
    hints = get_type_hints(group, include_extras=True)
    given = [(each.name, each.default) for each in dataclasses.fields(group)]
    empty = inspect.Parameter.empty
    return [
        parameter(name, hints[name], empty if default is MISSING else default)
        for name, default in given
    ]


def parameter(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """Return a parameter of a command: its name, its annotated type and its default."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def load_networks(
    backbone: str, weights: Path | None, upsamplers: str, device: str, dtype: str
) -> tuple["Backbone", list["Method"]]:
    """Load the backbone and every entry of ``--upsampler``, which compute in ``--dtype``."""
    import upfeat
    from upfeat.evaluation.methods import load_methods

    wanted = parse_dtype(dtype, "--dtype")
    network = upfeat.create_backbone(backbone, weights=weights).to(device)
    methods = load_methods(upsamplers, network, device=device)
    compute_in(wanted, network, methods)
    return network, methods


def compute_in(dtype: Any, backbone: "Backbone | None", methods: Sequence["Method"]) -> None:
    """Let backbone and upsamplers compute in ``--dtype``, and let the results record it.

    Features come in float32: what a command computes with them stays as exact as it was.
    """
    import torch

    from upfeat.loading import under_autocast

    if dtype == torch.float32:
        return
    if backbone is not None:
        under_autocast(backbone, dtype)
    for method in methods:
        under_autocast(method.upsampler, dtype)
        method.identity["dtype"] = str(dtype).removeprefix("torch.")


# -- values --------------------------------------------------------------------------------------


def parse_size(text: str | None, option: str) -> Any:
    """Read ``448``, ``448x672`` (height x width) or ``0.5x``.

    Example:
        >>> from upfeat.cli.options import parse_size
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


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,1,2``.

    Example:
        >>> from upfeat.cli.options import parse_seeds
        >>> parse_seeds("0,1,2")
        (0, 1, 2)
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be different whole numbers such as 0,1,2, got {text!r}")
    return seeds


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Read ``--set name=value``; a value is JSON, or else plain text.

    Example:
        >>> from upfeat.cli.options import parse_settings
        >>> parse_settings(["steps=100", "seeds=[0, 1]", "schedule=per_step"])
        {'steps': 100, 'seeds': [0, 1], 'schedule': 'per_step'}
    """
    parsed = {}
    for setting in settings or ():
        name, sign, text = setting.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"--set is written name=value, such as steps=100, got {setting!r}")
        try:
            parsed[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name.strip()] = text.strip()
    return parsed
