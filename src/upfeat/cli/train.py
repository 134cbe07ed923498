"""``upfeat train``: an upsampler for a backbone, from a recipe and a folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from upfeat.cli.errors import INTERRUPTED
from upfeat.cli.options import (
    BackboneWeightsOption,
    check_folder,
    checked_device,
    checked_folder,
)
from upfeat.cli.output import duration_text

if TYPE_CHECKING:
    from upfeat.training import Callback, CostEstimate, TrainConfig, Trainer, TrainResult

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def train_command(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe (see --list) or a configuration file (.json)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH=VALUE]...",
            help="Settings to change: optimizer.lr=1e-4, objective.scale=[0.5,0.5], "
            "upsampler.config.qk_dim=64.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Images: folder, list file or tar shards; repeat for several."),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="Backbone to train for, timm/NAME or upfeat/NAME; repeat for a universal "
            "upsampler. Default: the recipe's."
        ),
    ] = None,
    backbone_weights: BackboneWeightsOption = None,
    val: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of validation images; repeat for several. Default: some of --data."
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labelled images (images/ and labels/): train and score a small "
            "segmentation probe at each checkpoint."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="The same as the argument PATH=VALUE, written as in upfeat eval."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", callback=checked_folder, help="Folder of the run. Default: runs/RECIPE."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in the folder, or start it if there is none."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the run's settings and measured cost, then stop."),
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as JSON, then stop.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(callback=checked_device, help="auto, cpu or cuda.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Data type of the computation: float32, bfloat16, float16.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine (not under torchrun).")
    ] = None,
    panels: Annotated[
        int, typer.Option(min=0, help="Number of images drawn as PCA pictures at each checkpoint.")
    ] = 3,
    panel_image: Annotated[
        list[Path] | None,
        typer.Option(help="Image to draw instead of the first of --data; repeat for several."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List recipes to start with, and when to use each.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="List all recipes.")] = False,
) -> None:
    """Train an upsampler for a backbone; first shows the measured cost."""
    if list_ or all_:
        _print_recipes(all_)
        return
    changes = [*(overrides or ()), *(settings or ())]
    if recipe is not None and "=" in recipe:  # an override, where --resume goes without a recipe
        recipe, changes = None, [recipe, *changes]
    named = {"device": device, "devices": devices, "precision": _precision(dtype)}
    changes += [f"{name}={value}" for name, value in named.items() if value is not None]
    config = _configuration(recipe, out, resume)
    config = _with_options(config, data, backbone, backbone_weights, val, changes)
    if print_config:
        typer.echo(config.to_json().rstrip())
        return
    _train(config, out or Path("runs") / config.recipe, resume, dry_run, panels, panel_image, probe)


def _train(
    config: "TrainConfig",
    folder: Path,
    resume: bool,
    dry_run: bool,
    panels: int,
    panel_image: Sequence[Path] | None,
    probe: Path | None,
) -> None:
    """Show what will run, then run it."""
    from upfeat.cli.train_watch import Panels, Probe, training_bar
    from upfeat.training import Trainer, is_main_process, measure_cost, pick_device
    from upfeat.training.run_folder import check_run_folder

    check_folder(folder, "the run's folder")
    check_run_folder(folder)
    pick_device(config)
    console = Console(stderr=True)
    callbacks: list[Callback] = []
    if is_main_process():
        pictures = Panels(config, panels, panel_image) if panels or panel_image else None
        if resume and _is_finished(config, folder, pictures):
            typer.echo(
                f"this run is finished: {config.steps} steps; model in {folder / 'model'}. To go "
                f"on, give more steps: upfeat train --resume --out {folder} steps="
                f"{2 * config.steps}"
            )
            return
        callbacks += [] if pictures is None else [pictures]
        callbacks += [] if probe is None else [Probe(probe, console)]
        _print_summary(config, folder, measure_cost(config))
    if dry_run:
        return
    trainer = Trainer(config, folder, callbacks=callbacks)
    try:
        with training_bar(config, console) as bar:
            trainer.callbacks += (bar,)
            result = trainer.fit(resume=resume)
    except KeyboardInterrupt:
        if is_main_process():
            typer.echo(
                f"stopped after step {trainer.step}, with a checkpoint; continue with "
                f"--resume --out {folder}",
                err=True,
            )
        raise typer.Exit(INTERRUPTED) from None
    if is_main_process():
        _print_result(trainer, result)


# -- settings --------------------------------------------------------------------------------------


def _configuration(recipe: str | None, out: Path | None, resume: bool) -> "TrainConfig":
    """Return the settings of the recipe, file or interrupted run."""
    from upfeat.training import TrainConfig, create_recipe

    if recipe is None:
        saved = None if out is None else out / "config.json"
        if not resume or saved is None or not saved.is_file():
            raise ValueError(
                "name a recipe (upfeat train --list shows them) or a configuration file; only "
                "--resume --out FOLDER of an earlier run goes without"
            )
        return TrainConfig.load(saved)
    return TrainConfig.load(recipe) if recipe.endswith(".json") else create_recipe(recipe)


def _with_options(
    config: "TrainConfig",
    data: Sequence[str] | None,
    backbones: Sequence[str] | None,
    weights: Path | None,
    val: Sequence[str] | None,
    changes: Sequence[str],
) -> "TrainConfig":
    """Return the settings with what the command line changes."""
    from upfeat.training import BackboneConfig, ValidationConfig, apply_overrides

    updates: dict[str, Any] = {}
    if data:
        updates["data"] = config.data.model_copy(update={"paths": tuple(data)})
    if backbones:
        updates["backbones"] = tuple(BackboneConfig(name=name) for name in backbones)
    if weights is not None:
        wanted = updates.get("backbones", config.backbones)
        if len(wanted) > 1:
            raise ValueError(
                f"--backbone-weights is a file of one backbone, and there are {len(wanted)}; write "
                "--set backbones.0.weights=FILE for the first"
            )
        updates["backbones"] = (wanted[0].model_copy(update={"weights": str(weights)}),)
    if val:
        content = config.validation or ValidationConfig()
        updates["validation"] = content.model_copy(update={"paths": tuple(val)})
    return apply_overrides(config.model_copy(update=updates), changes)


def _precision(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    if dtype not in PRECISIONS:
        raise ValueError(f"--dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    return PRECISIONS[dtype]


def _is_finished(config: "TrainConfig", folder: Path, pictures: Any) -> bool:
    """Whether a folder holds all that this run would leave."""
    from upfeat.training import TrainConfig
    from upfeat.training.engine import RESUMABLE
    from upfeat.training.run_folder import CONFIG_FILE, finished_steps

    done = finished_steps(folder)
    if done is None or done < config.steps or not (folder / CONFIG_FILE).is_file():
        return False
    same = TrainConfig.load(folder / CONFIG_FILE).model_dump(exclude=set(RESUMABLE))
    if same != config.model_dump(exclude=set(RESUMABLE)):
        return False  # the run itself says what differs
    return pictures is None or bool(pictures.complete(folder, done))


# -- words -----------------------------------------------------------------------------------------


def _print_recipes(everything: bool) -> None:
    """Print one line for each recipe, or for those that most people need."""
    from upfeat.training import describe_recipe, list_recipes, when_to_take

    names = sorted(list_recipes(), key=lambda name: not name.endswith("_small"))
    chosen = names if everything else [name for name in names if when_to_take(name)]
    width = max(map(len, chosen))
    for name in chosen:
        text = describe_recipe(name) if everything else when_to_take(name)
        typer.echo(f"{name:<{width}}  {text}")
    if not everything:
        typer.echo(
            f"\nAny of them takes --backbone B. {len(names) - len(chosen)} more, such as those of "
            "the papers' tables: upfeat train --all"
        )


def _print_summary(config: "TrainConfig", folder: Path, cost: "CostEstimate") -> None:
    """Say in a few lines what will run, what it takes, and how that is known."""
    from upfeat.training.processes import slow_bfloat16

    kind = "GPU memory" if cost.device.startswith("cuda") else "memory of the process"
    backbones = ", ".join(backbone.name for backbone in config.backbones)
    height, width = config.data.crop_size
    upsampler, validation = config.upsampler, config.validation
    held = "no validation"
    if validation is not None and validation.paths:
        held = f"validation on {', '.join(validation.paths)}"
    elif validation is not None:
        held = f"a tenth of them, at most {validation.images}, held out for validation"
    lines = {
        "recipe": f"{config.recipe}: {upsampler.name} for {backbones}, objective "
        f"{config.objective.name}",
        "images": f"{', '.join(config.data.paths)}, cut to {height} x {width}; {held}",
        "run": f"{config.steps} steps of {config.batch_size} images, {config.optimizer.name}, "
        f"learning rate {config.optimizer.lr:g} ({config.schedule.name}), {config.precision}, "
        f"{cost.device}",
        "cost": f"{cost.step_seconds:.3g} s a step, {duration_text(cost.seconds)} in all "
        f"({config.batch_size / cost.step_seconds:.3g} images/s), peak {kind} "
        f"{cost.peak_bytes / 1e9:.2f} GB; estimated by two real steps on {cost.device} of which "
        "the second was timed",
        "settings": f"--print-config shows all; a run keeps them in {folder / 'config.json'}",
    }
    if config.precision == "bf16" and slow_bfloat16(cost.device):
        lines["precision"] = "this processor has no fast bfloat16; precision=fp32 takes less time"
    for name, text in lines.items():
        typer.echo(f"{name:<9} {text}")


def _print_result(trainer: "Trainer", result: "TrainResult") -> None:
    from upfeat.training import read_log
    from upfeat.training.run_folder import VALIDATION_FILE

    rows = read_log(result.folder / VALIDATION_FILE)
    validation = f" (validation {rows[-1]['loss']:.5g})" if rows else ""
    typer.echo(
        f"loss {result.loss:.5g}{validation} after {trainer.config.steps} steps, "
        f"{duration_text(result.seconds)}; model in {result.model}"
    )
