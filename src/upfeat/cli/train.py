"""``upfeat train``: an upsampler for a backbone, from a recipe and a folder of images."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from upfeat.cli.errors import INTERRUPTED
from upfeat.cli.options import check_folder, checked_folder

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.training import Callback, CostEstimate, TrainConfig

logger = logging.getLogger(__name__)


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
        typer.Option("--data", help="Folder, list or shards of images; repeat for several."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="As PATH=VALUE, spelled as in upfeat eval."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", callback=checked_folder, help="Folder of the run. Default: runs/RECIPE."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, or begin it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings and cost, then stop.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine (not under torchrun).")
    ] = None,
    panels: Annotated[
        int, typer.Option(min=0, help="Images shown as PCA pictures at each checkpoint.")
    ] = 3,
    panel_image: Annotated[
        list[Path] | None,
        typer.Option(help="An image to show instead of the first of --data; repeat for several."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
) -> None:
    """Train an upsampler; print all settings and the measured cost first."""
    from upfeat.training import Trainer, is_main_process, measure_cost, pick_device
    from upfeat.training.run_folder import check_run_folder

    if list_:
        _print_recipes()
        return
    changes = [*(overrides or ()), *(settings or ())]
    if recipe is not None and "=" in recipe:  # an override, where --resume goes without a recipe
        recipe, changes = None, [recipe, *changes]
    config = _configuration(recipe, data, changes, devices, out, resume)
    folder = out or Path("runs") / config.recipe
    check_folder(folder, "the run's folder")
    check_run_folder(folder)
    pick_device(config)
    callbacks: list[Callback] = []
    console = Console(stderr=True)
    if is_main_process():
        typer.echo(config.to_json().rstrip())
        _print_cost(config, measure_cost(config))
        if panels or panel_image:
            callbacks.append(_panels(config, panels, panel_image))
    if dry_run:
        return
    trainer = Trainer(config, folder, callbacks=callbacks)
    try:
        with _progress(config, console) as bar:
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
        typer.echo(
            f"loss {result.loss:.5g} after {config.steps} steps, "
            f"{_duration(result.seconds)}; model in {result.model}"
        )


def _configuration(
    recipe: str | None,
    data: Sequence[str] | None,
    changes: list[str],
    devices: int | None,
    out: Path | None,
    resume: bool,
) -> "TrainConfig":
    """Return the settings of the recipe, file or interrupted run, with all changes."""
    from upfeat.training import TrainConfig, apply_overrides, create_recipe

    if recipe is None:
        saved = None if out is None else out / "config.json"
        if not resume or saved is None or not saved.is_file():
            raise ValueError(
                "name a recipe (upfeat train --list shows them) or a configuration file; only "
                "--resume --out FOLDER of an earlier run goes without"
            )
        config = TrainConfig.load(saved)
    elif recipe.endswith(".json"):
        config = TrainConfig.load(recipe)
    else:
        config = create_recipe(recipe)
    if data:
        content = config.data.model_copy(update={"paths": tuple(data)})
        config = config.model_copy(update={"data": content})
    if devices is not None:
        changes = [*changes, f"devices={devices}"]
    return apply_overrides(config, changes)


def _print_recipes() -> None:
    from upfeat.training import describe_recipe, list_recipes

    for name in list_recipes():
        typer.echo(f"{name:<24} {describe_recipe(name)}")


def _print_cost(config: "TrainConfig", cost: "CostEstimate") -> None:
    """Say what the run will take, and how that is known."""
    kind = "GPU memory" if cost.device.startswith("cuda") else "memory of the process"
    typer.echo(
        f"estimated, by two real steps on {cost.device} of which the second was timed: "
        f"{cost.step_seconds:.3g} s a step, {_duration(cost.seconds)} for {config.steps} steps "
        f"({config.batch_size / cost.step_seconds:.3g} images/s), peak {kind} "
        f"{cost.peak_bytes / 1e9:.2f} GB"
    )


def _duration(seconds: float) -> str:
    """Write seconds as people do.

    Example:
        >>> from upfeat.cli.train import _duration
        >>> _duration(42.4), _duration(600), _duration(9000)
        ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def _progress(config: "TrainConfig", console: Console) -> Iterator["Callback"]:
    """Show steps, loss, images/s and time left while the block runs."""
    from upfeat.training import Callback, StepReport, Trainer, is_main_process

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    hidden = not (console.is_terminal and is_main_process())
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task("training", total=config.steps, numbers="")

        class Bar(Callback):
            def on_start(self, trainer: Trainer, step: int) -> None:
                progress.update(task, completed=step)

            def on_step(self, trainer: Trainer, report: StepReport) -> None:
                numbers = (
                    f"loss {report.numbers['loss']:.4g}, {report.images_per_second:.3g} images/s, "
                    f"{_duration(report.seconds_left)} left"
                )
                progress.update(task, completed=report.step, numbers=numbers)

        yield Bar()


def _panels(config: "TrainConfig", count: int, files: Sequence[Path] | None) -> "Callback":
    """Return a callback that pictures fixed images at each checkpoint."""
    from upfeat._files import OwnFiles
    from upfeat.errors import ForeignFileError
    from upfeat.pipeline import Pipeline
    from upfeat.training import Callback, Trainer
    from upfeat.training.run_folder import MAKER
    from upfeat.viz import pca_picture
    from upfeat.viz.pca import png_bytes

    images = _panel_images(config, count, files)
    size = config.data.crop_size

    class Panels(Callback):
        def on_start(self, trainer: Trainer, step: int) -> None:
            # A kill may have come between the checkpoint and its pictures.
            if step and not all(self._file(trainer, name, step).exists() for name in images):
                self._draw(trainer, step)

        def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
            self._draw(trainer, step)

        def _file(self, trainer: Trainer, name: str, step: int) -> Path:
            return trainer.out / "panels" / f"{name}-step{step:08d}.png"

        def _draw(self, trainer: Trainer, step: int) -> None:
            backbone = trainer.networks.backbones[0]
            pipe = Pipeline(
                backbone, trainer.current_model(), input_size=size, output_size=size, fit="resize"
            )
            own = OwnFiles(trainer.out / "panels")
            for name, image in images.items():
                picture = png_bytes(pca_picture(pipe, image).panel)
                try:
                    own.write(self._file(trainer, name, step).name, picture, MAKER)
                except ForeignFileError as error:  # no reason to stop the training
                    logger.warning("a panel was not written: %s", error)

    return Panels()


def _panel_images(
    config: "TrainConfig", count: int, files: Sequence[Path] | None
) -> dict[str, "Tensor"]:
    """Read the images that are shown: those asked for, or the first readable ones of the data."""
    from upfeat.data import find_images, read_image

    if files:
        return {file.stem: read_image(file) for file in files}
    images: dict[str, Tensor] = {}
    for record in (record for path in config.data.paths for record in find_images(path)):
        if len(images) == count:
            break
        try:
            images[record.name.replace("/", "_")] = record.read_image()
        except ValueError:
            continue  # the run itself reports broken images
    return images
