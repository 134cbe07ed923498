"""``upfeat eval cam``: class activation maps at full resolution, and how faithful they are."""

from typing import Annotated

import typer
from rich.console import Console

from upfeat.cli.eval import (
    DEFAULT_OUT,
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
    "average_drop": "drop",
    "average_increase": "increase",
    "average_gain": "gain",
    "coherency": "coherency",
    "complexity": "complexity",
    "adcc": "ADCC",
    "complexity_l1": "complexity L1",
    "adcc_l1": "ADCC L1",
}


def cam_command(
    upsampler: UpsamplerOption,
    root: RootOption,
    backbone: Annotated[str, typer.Option(help="Classifier: timm/NAME.")],
    data: Annotated[str, typer.Option(help="Data set: imagenet, coco_objects.")] = "imagenet",
    out: OutOption = DEFAULT_OUT,
    preset: Annotated[str, typer.Option(help="The protocol: jafar.")] = "jafar",
    mask: Annotated[
        str | None, typer.Option(help="How the map masks the image: binary, soft.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Module of the network, such as blocks.-1.")
    ] = None,
    settings: SettingsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Quick look: so many images.")] = None,
    backbone_weights: BackboneWeightsOption = None,
    cache: CacheOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Upsample Grad-CAM in feature space; drop, increase, gain, coherency, complexity, ADCC.

    Finished methods are skipped. The entry low-res of --upsampler is the map of the layer's own
    grid.
    """
    from upfeat.checkpoints import cache_dir
    from upfeat.evaluation.cam import DATA_SETS, cam_preset, run_cam
    from upfeat.evaluation.cam_classifier import create_classifier

    given = {"limit": limit, "mask": mask, "layer": layer}
    changes = {name: value for name, value in given.items() if value is not None}
    config = cam_preset(preset, data, **changes | parse_settings(settings))
    network = create_classifier(backbone, backbone_weights).to(device)
    rows = load_rows(upsampler, network.dim, device)
    with show_progress() as show:
        results = run_cam(
            config,
            DATA_SETS[data](root),
            network,
            rows,
            out=out,
            cache=cache or cache_dir() / "eval",
            on_progress=show,
        )
    count = len(results[0].details["images"])
    caption = f"percent, mean over {count} images; drop and complexity: low is good"
    if config.limit is not None:
        caption += f"; a quick look: {config.limit} images"
    title = f"{preset}, {data}, {network.name}, {config.mask} mask"
    Console(width=160).print(score_table(results, _COLUMNS, title, caption))
    typer.echo(f"settings, images and numbers of each method in {out}")
