"""``upfeat eval vos``: masks of a video's first frame, handed on by upsampled features."""

from typing import Annotated

import typer
from rich.console import Console

from upfeat.cli.eval import (
    DEFAULT_OUT,
    BackboneOption,
    BackboneWeightsOption,
    CacheOption,
    DeviceOption,
    OutOption,
    RootOption,
    SettingsOption,
    UpsamplerOption,
    load_rows,
    parse_settings,
    score_table,
    show_progress,
)

_COLUMNS = {
    "jf": "J&F",
    "j": "J",
    "j_recall": "J recall",
    "j_decay": "J decay",
    "f": "F",
    "f_recall": "F recall",
    "f_decay": "F decay",
}


def vos_command(
    upsampler: UpsamplerOption,
    root: RootOption,
    backbone: BackboneOption,
    data: Annotated[str, typer.Option(help="Data set: davis2016, davis2017.")] = "davis2017",
    split: Annotated[str, typer.Option(help="Its list of videos: train, val.")] = "val",
    out: OutOption = DEFAULT_OUT,
    preset: Annotated[str, typer.Option(help="The protocol: loftup, naf.")] = "loftup",
    settings: SettingsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Quick look: so many videos.")] = None,
    backbone_weights: BackboneWeightsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Hand the masks of a video's first frame on; palette PNGs and DAVIS scores.

    Finished videos and methods are skipped. The entry low-res of --upsampler is the backbone's own
    grid.
    """
    import upfeat
    from upfeat.checkpoints import cache_dir
    from upfeat.evaluation.vos import DATA_SETS, run_vos, vos_preset

    config = vos_preset(preset, data, **{"limit": limit} | parse_settings(settings))
    network = upfeat.create_backbone(backbone, weights=backbone_weights).to(device)
    rows = load_rows(upsampler, network.dim, device)
    with show_progress() as show:
        results = run_vos(
            config,
            DATA_SETS[data](root, split),
            network,
            rows,
            out=out,
            cache=cache or cache_dir() / "eval",
            on_progress=show,
        )
    caption = "percent, mean over all objects; decay: low is good"
    if config.limit is not None:
        caption += f"; a quick look: {config.limit} videos"
    title = f"{preset}, {data}, {network.name}"
    Console(width=160).print(score_table(results, _COLUMNS, title, caption))
    typer.echo(f"masks, settings and numbers of each method in {out}")
