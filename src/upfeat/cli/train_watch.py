"""What watches a training from the command line: progress, pictures, a probe."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn

from upfeat._files import OwnFiles
from upfeat.cli.output import duration_text, progress_bar
from upfeat.errors import ForeignFileError
from upfeat.pipeline import Pipeline
from upfeat.training import Callback, CsvLog, StepReport, TrainConfig, Trainer, is_main_process
from upfeat.training.run_folder import MAKER

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

PROBE_FILE = "probe.csv"
# A look in passing: seconds, not minutes, for each checkpoint.
PROBE = {"steps": 300, "seeds": (0,), "pixels_per_image": 512, "limit": 50}


@contextmanager
def training_bar(config: TrainConfig, console: Console) -> Iterator[Callback]:
    """Show steps, loss, images/s and time left while the block runs, and the validation losses."""
    columns = MofNCompleteColumn(), TextColumn("{task.fields[numbers]}")
    with progress_bar(*columns, console=console, hidden=not is_main_process()) as progress:
        task = progress.add_task("training", total=config.steps, numbers="")

        class Bar(Callback):
            def on_start(self, trainer: Trainer, step: int) -> None:
                progress.update(task, completed=step)

            def on_step(self, trainer: Trainer, report: StepReport) -> None:
                numbers = (
                    f"loss {report.numbers['loss']:.4g}, {report.images_per_second:.3g} images/s, "
                    f"{duration_text(report.seconds_left)} left"
                )
                progress.update(task, completed=report.step, numbers=numbers)

            def on_validation(
                self, trainer: Trainer, step: int, numbers: Mapping[str, float]
            ) -> None:
                text = f"step {step}: validation loss {numbers['loss']:.4g}"
                console.print(text, highlight=False)

        yield Bar()


class Panels(Callback):
    """Draws fixed images at each checkpoint: the image, its features, the upsampled ones.

    These are the first ``count`` training images, unless ``files`` names others.
    """

    def __init__(self, config: TrainConfig, count: int, files: Sequence[Path] | None) -> None:
        self.images = _panel_images(config, count, files)
        self.size = config.data.crop_size

    def complete(self, out: Path, step: int) -> bool:
        """Whether a folder has all pictures of a step."""
        return all(self._file(out, name, step).exists() for name in self.images)

    def on_start(self, trainer: Trainer, step: int) -> None:
        """Draw what a kill between a checkpoint and its pictures left out."""
        if step and not self.complete(trainer.out, step):
            self._draw(trainer, step)

    def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
        """Draw the images."""
        self._draw(trainer, step)

    def _file(self, out: Path, name: str, step: int) -> Path:
        return out / "panels" / f"{name}-step{step:08d}.png"

    def _draw(self, trainer: Trainer, step: int) -> None:
        from upfeat.viz import pca_picture
        from upfeat.viz.pca import png_bytes

        pipe = Pipeline(
            trainer.networks.backbones[0],
            trainer.current_model(),
            input_size=self.size,
            output_size=self.size,
            fit="resize",
        )
        own = OwnFiles(trainer.out / "panels")
        for name, image in self.images.items():
            picture = png_bytes(pca_picture(pipe, image).panel)
            try:
                own.write(self._file(trainer.out, name, step).name, picture, MAKER)
            except ForeignFileError as error:  # no reason to stop the training
                logger.warning("a panel was not written: %s", error)


def _panel_images(
    config: TrainConfig, count: int, files: Sequence[Path] | None
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


class Probe(Callback):
    """Scores the upsampler at each checkpoint by a small linear segmentation probe.

    The mIoU of the first backbone's features goes into ``probe.csv``, beside that of bilinear
    interpolation, which the upsampler should leave behind. ``root`` holds labelled images, as
    ``upfeat eval seg-probe --data folder`` takes them.
    """

    def __init__(self, root: Path, console: Console) -> None:
        from upfeat.data import load_segmentation
        from upfeat.data.own import set_name
        from upfeat.evaluation.protocols.seg_probe import own_settings, seg_probe_preset

        preset = "pixel-sample"
        settings = own_settings(preset, root) | PROBE
        self.config = seg_probe_preset(preset, set_name(root), reader="folder", **settings)
        self.train = load_segmentation("folder", root, "train")
        self.val = load_segmentation("folder", root, "val")
        self.console = console
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.log: CsvLog | None = None

    def on_start(self, trainer: Trainer, step: int) -> None:
        """Open the log: a run that continues goes on in it."""
        self.folder = tempfile.TemporaryDirectory(prefix="upfeat-probe-")
        self.log = CsvLog(trainer.out / PROBE_FILE, step)

    def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
        """Run the probe; features and the baseline's score are kept from the first time on."""
        from upfeat.evaluation.methods import Method
        from upfeat.evaluation.protocols.seg_probe import run_seg_probe
        from upfeat.upsamplers import create_upsampler

        if self.folder is None or self.log is None:
            raise RuntimeError("a probe is a callback of a trainer; pass it to one")
        model = trainer.current_model()
        device = next(model.parameters()).device
        methods = [
            Method("bilinear", create_upsampler("bilinear").to(device)),
            Method(f"step {step}", model),
        ]
        place = Path(self.folder.name)
        baseline, ours = run_seg_probe(
            self.config,
            self.train,
            self.val,
            trainer.networks.backbones[0],
            methods,
            out=place / "results",
            cache=place / "cache",
        )
        row = {"miou": ours.scores["miou"].mean, "miou_bilinear": baseline.scores["miou"].mean}
        known = {name: value for name, value in row.items() if value is not None}
        self.log.write({"step": float(step)} | known)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
        self.console.print(f"step {step}: probe {shown}", highlight=False)

    def on_end(self, trainer: Trainer, result: object) -> None:
        """Remove what was kept."""
        if self.folder is not None:
            self.folder.cleanup()
