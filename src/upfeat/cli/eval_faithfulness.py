"""``upfeat eval faithfulness``: how far upsampled features leave the backbone's own."""

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
    load_networks,
    parse_seeds,
    parse_settings,
    score_table,
    show_progress,
)

_COLUMNS = {
    "pooled_cosine": "pooled cosine",
    "pooled_mse": "pooled MSE",
    "agreement_cosine": "cosine to larger input",
    "transfer_miou_labelled": "mIoU, low-res probe",
    "own_miou_labelled": "mIoU, own probe",
}


def faithfulness_command(
    upsampler: UpsamplerOption,
    data: Annotated[str, typer.Option(help="Data set: camvid, msrc, nyuv2_13.")],
    root: RootOption,
    backbone: BackboneOption,
    out: OutOption = DEFAULT_OUT,
    settings: SettingsOption = None,
    seeds: SeedsOption = "0,1,2",
    limit: LimitOption = None,
    backbone_weights: BackboneWeightsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Compare upsampled features with the backbone's own (--set transfer=false: no training)."""
    from upfeat.checkpoints import cache_dir
    from upfeat.data import load_segmentation
    from upfeat.evaluation.faithfulness import faithfulness_preset, run_faithfulness

    changes = {"seeds": parse_seeds(seeds), "limit": limit} | parse_settings(settings)
    config = checked_settings(partial(faithfulness_preset, data), changes)
    network, methods = load_networks(backbone, backbone_weights, upsampler, device)
    with show_progress() as show:
        results = run_faithfulness(
            config,
            load_segmentation(data, root, "train"),
            load_segmentation(data, root, "val"),
            network,
            methods,
            out=out,
            cache=cache or cache_dir() / "eval",
            on_progress=show,
        )
    caption = "cosines and mIoU in percent; deviation over images, of mIoU over seeds"
    if limit is not None:
        caption += f"; a quick look: {limit} images of each split"
    title = f"faithfulness, {data}, {network.name}"
    Console(width=160).print(score_table(results, _COLUMNS, title, caption))
    typer.echo(f"settings and numbers of each method in {out}")
