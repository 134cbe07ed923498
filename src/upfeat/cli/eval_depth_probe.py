"""``upfeat eval depth-probe``: linear depth heads on upsampled features."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from upfeat.cli.eval import (
    DEFAULT_OUT,
    BackboneOption,
    BackboneWeightsOption,
    CacheOption,
    DeviceOption,
    LimitOption,
    OutOption,
    RootOption,
    SeedsOption,
    SettingsOption,
    UpsamplerOption,
    checked_settings,
    load_trainable,
    parse_seeds,
    parse_settings,
    score_table,
    show_progress,
)

if TYPE_CHECKING:
    from upfeat.data import DepthData, SegmentationData

_COLUMNS = {
    "d1": "d1, %",
    "d2": "d2, %",
    "abs_rel": "abs rel",
    "rmse": "RMSE",
    "log10": "log10",
    "silog": "SILog",
    "si_d1": "scale-inv. d1, %",
    "si_rmse": "scale-inv. RMSE",
}


def depth_probe_command(
    upsampler: UpsamplerOption,
    data: Annotated[
        str,
        typer.Option(help="Set with depth: nyuv2; with a teacher any set of seg-probe."),
    ],
    root: RootOption,
    backbone: BackboneOption,
    out: OutOption = DEFAULT_OUT,
    preset: Annotated[
        str, typer.Option(help="The protocol: pixel-sample, nyu, jafar.")
    ] = "pixel-sample",
    teacher: Annotated[
        Path | None,
        typer.Option(help="Folder with Depth Anything V2, for pseudo depth (preset jafar)."),
    ] = None,
    settings: SettingsOption = None,
    seeds: SeedsOption = "0,1,2",
    limit: LimitOption = None,
    backbone_weights: BackboneWeightsOption = None,
    cache: CacheOption = None,
    keep_pixels: Annotated[
        bool, typer.Option("--keep-pixels", help="Keep the sampled pixels of finished methods.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Train linear depth heads on upsampled features; finished methods are skipped."""
    import upfeat
    from upfeat.checkpoints import cache_dir
    from upfeat.evaluation.depth_probe import depth_probe_preset, run_depth_probe
    from upfeat.evaluation.depth_teacher import DepthTeacher

    changes = {"seeds": parse_seeds(seeds), "limit": limit} | parse_settings(settings)
    config = checked_settings(partial(depth_probe_preset, preset, data), changes)
    folder = cache or cache_dir() / "eval"
    train, val = (load_depth(data, root, split, teacher) for split in ("train", "val"))
    network = upfeat.create_backbone(backbone, weights=backbone_weights).to(device)
    methods = load_trainable(upsampler, network.dim, device)
    with show_progress() as show:
        results = run_depth_probe(
            config,
            train,
            val,
            network,
            methods,
            out=out,
            cache=folder,
            teacher=None if teacher is None else DepthTeacher(teacher, folder, device),
            keep_pixels=keep_pixels,
            on_progress=show,
        )
    caption = f"mean over images; mean ± deviation over {len(config.seeds)} seeds"
    if limit is not None:
        caption += f"; a quick look: {limit} images of each split"
    title = f"{preset}, {data}, {network.name}, depth in {results[0].unit} units"
    Console(width=160).print(score_table(results, _COLUMNS, title, caption, digits=3))
    typer.echo(f"settings and numbers of each method in {out}")


def load_depth(
    data: str, root: Path, split: str, teacher: Path | None
) -> "DepthData | SegmentationData":
    """List a split of a set with depth, or with a teacher of any labelled set.

    Raises:
        UnknownNameError: no such set, or one without depth and without a teacher.
        FileNotFoundError: the folder is not the set; shows the expected tree.
    """
    from upfeat.data import load_segmentation, nyuv2_depth
    from upfeat.errors import UnknownNameError

    if teacher is not None:
        return load_segmentation(data, root, split)
    sets = {"nyuv2": nyuv2_depth}
    if data not in sets:
        raise UnknownNameError("data set with depth (without --teacher)", data, sets)
    return sets[data](root, "train" if split == "train" else "val")
