"""``upfeat show targets``: the training targets that LoftUp compares, side by side."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upfeat.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_OUT,
    BackboneOption,
    BackboneWeightsOption,
    DeviceOption,
    DtypeOption,
    OutOption,
    SettingsOption,
    SideOption,
    compute_in,
    parse_dtype,
    parse_settings,
    parse_size,
)
from upfeat.cli.output import check_pictures, print_table, save_picture, tell

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from upfeat.backbones import Backbone
    from upfeat.data.mask_sets import Masks
    from upfeat.evaluation.methods import Method
    from upfeat.viz.targets import PseudoGroundTruthConfig, PseudoGroundTruths

MAKER = "upfeat show targets"
_TITLES = {
    "low": "features",
    "depth": "depth",
    "implicit": "implicit (FeatUp)",
    "doubled": "doubled image",
    "mask_refined": "mask-refined",
    "self_distilled": "self-distilled",
}


def targets_command(
    photo: Annotated[Path, typer.Argument(help="The image; best larger than 448 pixels.")],
    backbone: BackboneOption = DEFAULT_BACKBONE,
    out: OutOption = DEFAULT_OUT,
    teacher: Annotated[
        str,
        typer.Option(
            help="Upsampler for the self-distilled target: NAME.TAG or a saved folder; "
            "'auto': our LoftUp for this backbone (its first stage if available); 'none'."
        ),
    ] = "auto",
    masks: Annotated[
        str,
        typer.Option(help="felzenszwalb, slic, a label image, or a .json file in SA-1B's format."),
    ] = "felzenszwalb",
    depth: Annotated[
        Path | None, typer.Option(help="Depth map of the photo: a PNG or a .npy file.")
    ] = None,
    targets: Annotated[
        str, typer.Option(help="Targets to draw, separated by commas, or 'all'.")
    ] = "all",
    fit_on: Annotated[
        str, typer.Option(help="Map to fit the PCA colours on: low, a target, 'all'.")
    ] = "low",
    input_size: Annotated[
        str, typer.Option(help="Input size of the student: 224 or 224x320.")
    ] = "224",
    settings: SettingsOption = None,
    side: SideOption = 320,
    backbone_weights: BackboneWeightsOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Draw the training targets that LoftUp's paper compares (pseudo ground truths) for a photo."""
    import upfeat
    from upfeat.data import read_image
    from upfeat.viz.targets import TARGETS, PseudoGroundTruthConfig, make_pseudo_ground_truths

    picture = out / f"{photo.stem}_targets.png"
    check_pictures([picture], MAKER)
    size = parse_size(input_size, "--input-size")
    config = PseudoGroundTruthConfig(**{"input_size": size} | parse_settings(settings))
    names = TARGETS if targets == "all" else tuple(t.strip() for t in targets.split(","))
    pixels = read_image(photo)
    kind = parse_dtype(dtype, "--dtype")
    network = upfeat.create_backbone(backbone, weights=backbone_weights).to(device)
    method = find_teacher(teacher, network, device)
    compute_in(kind, network, [] if method is None else [method])
    made = make_pseudo_ground_truths(
        config,
        pixels,
        network,
        read_masks(masks, photo, pixels),
        teacher=None if method is None else method.upsampler,
        depth=None if depth is None else read_depth(depth),
        names=names,
        on_start=lambda name: tell(f"making {name}"),
    )
    panel = _panel(config, made, network, method, masks, fit_on, side)
    options: dict[str, Any] = {"photo": photo.name, "masks": Path(masks).name, "fit_on": fit_on}
    options |= {"depth": None if depth is None else depth.name, "dtype": dtype}
    record = json.dumps(_record(config, options, made, network, method), indent=1)
    _print(made)
    save_picture(picture, panel, record, MAKER)


def find_teacher(choice: str, backbone: "Backbone", device: str) -> "Method | None":
    """Load the upsampler that makes the self-distilled target."""
    import upfeat
    from upfeat.errors import WeightsNotFoundError
    from upfeat.evaluation.methods import load_methods
    from upfeat.upsamplers.registry import get_checkpoint

    if choice == "none":
        return None
    if choice != "auto":
        return load_methods(choice, backbone, device=device)[0]
    for name in sorted(upfeat.list_upsamplers("loftup.*", pretrained=True), reverse=True):
        record = get_checkpoint(name)
        if record is not None and record.ours and record.backbone == backbone.name:
            with suppress(WeightsNotFoundError):
                return load_methods(name, backbone, device=device)[0]
    return None


def read_masks(choice: str, photo: Path, pixels: "Tensor") -> "Masks":
    """Read or compute the masks of a photo."""
    import torch

    from upfeat.data import SuperpixelMaskSource
    from upfeat.data.mask_sets import LabelMasks, RleMasks, read_labels
    from upfeat.data.records import FilePart, ImageRecord

    if choice in ("felzenszwalb", "slic"):
        source = SuperpixelMaskSource("slic" if choice == "slic" else "felzenszwalb")
        return source(ImageRecord(photo.stem, FilePart(photo)), pixels, torch.Generator())
    path = Path(choice)
    if not path.is_file():
        raise FileNotFoundError(
            f"--masks must be felzenszwalb, slic, or a file of masks; there is none at {choice}"
        )
    try:
        if path.suffix == ".json":
            return RleMasks.from_json(path.read_bytes())
        return LabelMasks(read_labels(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"--masks {choice}: {error}") from error


def read_depth(path: Path) -> "Tensor":
    """Read a depth map (H, W) in the units of its file; 0 is unknown."""
    from upfeat.data.depth import DepthMapFolder
    from upfeat.data.records import FilePart, ImageRecord

    if not path.is_file():
        raise FileNotFoundError(f"no depth map at {path}; check --depth")
    return DepthMapFolder(path.parent, path.name)(ImageRecord(path.stem, FilePart(path)))[0]


def _panel(
    config: "PseudoGroundTruthConfig",
    made: "PseudoGroundTruths",
    backbone: "Backbone",
    teacher: "Method | None",
    masks: str,
    fit_on: str,
    side: int,
) -> "Image.Image":
    """Draw everything; all maps in one basis."""
    from upfeat.viz.panel import PanelPicture
    from upfeat.viz.pictures import depth_picture, mask_picture, shared_basis, targets_panel

    regions = mask_picture(made.image.cpu(), made.masks.cpu())
    others = [PanelPicture(regions, f"{len(made.masks)} masks ({Path(masks).name})")]
    maps = {"low": made.low.cpu()}
    for target in made.targets:
        if target.name == "depth":
            others.append(PanelPicture(depth_picture(target.map[0]), "depth"))
        else:
            maps[target.name] = target.map.cpu()
    captions = {
        name: f"{_TITLES[name]}  {values.shape[1]}x{values.shape[2]}"
        for name, values in maps.items()
    }
    notes = [
        f"{backbone.name}; one PCA basis, fitted to {_TITLES.get(fit_on, fit_on)}, and one scaling "
        f"(1st to 99th percentile) for all; {made.feature_space} space."
    ]
    if "mask_refined" in maps:
        notes.append(f"Mask-refined: alpha {config.alpha}.")
    if "self_distilled" in maps and teacher is not None:
        notes.append(
            f"Self-distilled: mean of {config.crops_per_side**2} crops of an image "
            f"{config.scale:g} times as large, by {teacher.label}, alpha {config.teacher_alpha}."
        )
    if "implicit" in maps:
        notes.append(f"Implicit: {config.implicit_steps} steps on {config.implicit_views} views.")
    notes += [f"Left out: {_TITLES[name]} ({reason})." for name, reason in made.left_out.items()]
    basis = shared_basis(maps, fit_on)
    return targets_panel(
        made.image, maps, basis, captions=captions, others=others, side=side, notes=notes
    )


def _record(
    config: "PseudoGroundTruthConfig",
    options: dict[str, Any],
    made: "PseudoGroundTruths",
    backbone: "Backbone",
    teacher: "Method | None",
) -> dict[str, Any]:
    """All settings, versions and numbers, as JSON."""
    from upfeat.data.feature_cache import weights_fingerprint
    from upfeat.evaluation.results import describe_environment

    return {
        "task": "targets",
        "settings": config.model_dump(mode="json") | options,
        "backbone": {
            "name": backbone.name,
            "layer": backbone.layer,
            "weights": weights_fingerprint(backbone.state_dict()),
        },
        "teacher": None if teacher is None else {"label": teacher.label, **teacher.identity},
        "feature_space": made.feature_space,
        "masks": len(made.masks),
        "targets": [
            {
                "name": target.name,
                "size": list(target.map.shape[1:]),
                "seconds": target.seconds,
                "agreement": target.agreement,
            }
            for target in made.targets
        ],
        "left_out": made.left_out,
        "environment": describe_environment(),
    }


def _print(made: "PseudoGroundTruths") -> None:
    rows = []
    for target in made.targets:
        agreement = "-" if target.agreement is None else f"{target.agreement:.4f}"
        size = f"{target.map.shape[1]}x{target.map.shape[2]}"
        rows.append([target.name, size, agreement, f"{target.seconds:.2f}"])
    print_table(["target", "size", "cosine with the features", "seconds"], rows)
    for name, reason in made.left_out.items():
        typer.echo(f"left out: {name}: {reason}")
