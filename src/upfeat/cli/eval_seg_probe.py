"""``upfeat eval seg-probe``: linear segmentation heads on upsampled features."""

from functools import partial
from typing import Annotated

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

_COLUMNS = {
    "miou": "mIoU",
    "miou_labelled": "mIoU labelled",
    "accuracy": "accuracy",
    "band_miou": "band mIoU",
    "band_miou_labelled": "band mIoU labelled",
    "band_accuracy": "band accuracy",
}


def seg_probe_command(
    upsampler: UpsamplerOption,
    data: Annotated[
        str, typer.Option(help="Data set: camvid, msrc, nyuv2_13, voc, ade20k_151, cityscapes, …")
    ],
    root: RootOption,
    backbone: BackboneOption,
    out: OutOption = DEFAULT_OUT,
    preset: Annotated[
        str, typer.Option(help="The protocol: pixel-sample, jafar, anyup, naf, loftup.")
    ] = "pixel-sample",
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
    """Train linear segmentation heads on upsampled features; finished methods are skipped."""
    import upfeat
    from upfeat.checkpoints import cache_dir
    from upfeat.data import load_segmentation
    from upfeat.evaluation.seg_probe import run_seg_probe, seg_probe_preset

    changes = {"seeds": parse_seeds(seeds), "limit": limit} | parse_settings(settings)
    config = checked_settings(partial(seg_probe_preset, preset, data), changes)
    network = upfeat.create_backbone(backbone, weights=backbone_weights).to(device)
    methods = load_trainable(upsampler, network.dim, device)
    with show_progress() as show:
        results = run_seg_probe(
            config,
            load_segmentation(data, root, "train"),
            load_segmentation(data, root, "val"),
            network,
            methods,
            out=out,
            cache=cache or cache_dir() / "eval",
            keep_pixels=keep_pixels,
            on_progress=show,
        )
    caption = f"percent, mean ± deviation over {len(config.seeds)} seeds"
    if limit is not None:
        caption += f"; a quick look: {limit} images of each split"
    title = f"{preset}, {data}, {network.name}"
    Console(width=160).print(score_table(results, _COLUMNS, title, caption))
    typer.echo(f"settings and numbers of each method in {out}")
