"""The papers' figures: the pictures of ``upfeat show``, and panels that protocols leave."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfeat.cli.reproduce.running import Runner, load_backbone
from upfeat.evaluation.papers.plan import SMALL_BACKBONE, TableJob, not_ready, small_settings
from upfeat.evaluation.papers.records import PublishedFigure, PublishedRow
from upfeat.evaluation.papers.reproductions import Ran, Reproduction, changed_method
from upfeat.evaluation.papers.sources import SMALL, SmallTask
from upfeat.evaluation.results import describe_environment

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.backbones import Backbone
    from upfeat.evaluation.methods import Method
    from upfeat.evaluation.tables.panels import Panel

__all__ = ["draw_figure"]

MAKER = "upfeat reproduce"
_TASKS = {
    "cam": ("cam", "jafar"),
    "segmentation": ("seg-probe", "pixel-sample"),
    "depth": ("depth-probe", "pixel-sample"),
}
# Settings of the quick probes whose panels are shown.
_QUICK: dict[str, Any] = {"limit": 6, "steps": 50, "pixels_per_image": 64, "seeds": (0,)}
_QUICK_SETS = {"voc": "msrc", "cityscapes": "camvid"}  # pixel-sample's own sizes are of these
_IMAGES = 2


def draw_figure(figure: PublishedFigure, runner: Runner) -> Reproduction:
    """Draw a figure; pictures and record lie in the runner's folder."""
    start = time.perf_counter() - Reproduction.seconds_before(figure.id, runner.out)
    if figure.kind in _TASKS:
        backbone, ran, pictures = _panels(figure, runner)
    else:
        backbone, ran, pictures = _photos(figure, runner)
    record = Reproduction(
        id=figure.id,
        small=runner.small,
        backbone=backbone,
        ran=tuple(ran),
        pictures=tuple(pictures),
        seconds=round(time.perf_counter() - start, 1),
        environment=describe_environment(),
    )
    record.save(runner.out)
    return record


def _problem(figure: PublishedFigure, row: str, problem: str) -> Ran:
    return Ran(row=row, columns=(), task=figure.kind, data=figure.data, problem=problem)


def _methods(
    figure: PublishedFigure, runner: Runner, backbone: "Backbone", name: str
) -> tuple[list["Method"], list[Ran]]:
    """Load the figure's methods; those that cannot be had are named."""
    from upfeat.evaluation.registry import get_protocol

    source = runner.methods(backbone, name)
    loaded, failed = [], []
    for method in figure.methods:
        row = PublishedRow(method=method, uses=method, key=method, values=())
        try:
            loaded.append(source.load(row, get_protocol("faithfulness")))
        except (ValueError, OSError, RuntimeError) as error:
            failed.append(_problem(figure, method, " ".join(str(error).split())))
    return loaded, failed


def _drawn(methods: "list[Method]", task: str, data: str, small: bool) -> list[Ran]:
    """Return the records of the methods in a figure, with in what each differs from the paper's."""
    return [
        Ran(
            row=method.label,
            columns=(),
            task=task,
            data=data,
            differs=changed_method(method.label, small=small),
        )
        for method in methods
    ]


# -- pictures of photos --------------------------------------------------------------------------


def _photos(figure: PublishedFigure, runner: Runner) -> tuple[str, list[Ran], list[str]]:
    """Draw features, targets or attended regions of a few photos."""
    from upfeat.data import find_images
    from upfeat.evaluation.registry import get_protocol

    name = SMALL_BACKBONE if runner.small else figure.backbone
    missing = runner.roots.missing(figure.data)
    if missing is not None:
        return name, [_problem(figure, row, missing) for row in figure.methods], []
    folder = runner.roots.find(figure.data)
    assert folder is not None
    backbone = load_backbone(get_protocol("faithfulness"), name, runner.roots, runner.device)
    assert backbone is not None
    methods, failed = _methods(figure, runner, backbone, name)
    records = find_images(folder)
    side = 96 if runner.small else 448
    pictures = []
    for number in range(min(_IMAGES, len(records))):
        record = records[number]
        file = f"{figure.id.replace(':', '-')}-{record.name.replace('/', '_')}.png"
        draw = {"features": _features, "targets": _targets, "attention": _attention}[figure.kind]
        panel = draw(backbone, methods, record.read_image(), side, runner.small)
        _save(runner.out / file, panel, figure, backbone.name, methods)
        pictures.append(file)
    ran = _drawn(methods, figure.kind, figure.data, runner.small)
    return name, [*ran, *failed], pictures


def _features(
    backbone: "Backbone", methods: list["Method"], image: "Tensor", side: int, small: bool
) -> Any:
    """All methods in one PCA basis, as ``upfeat show compare`` draws them."""
    from upfeat.viz import compare_upsamplers
    from upfeat.viz.comparison import Candidate

    candidates = [Candidate(method.label, method.upsampler) for method in methods]
    return compare_upsamplers(backbone, image, candidates, input_size=side, fit="resize").panel


def _attention(
    backbone: "Backbone", methods: list["Method"], image: "Tensor", side: int, small: bool
) -> Any:
    """The cells that the middle pixel takes from, as ``upfeat show attention`` draws them."""
    import upfeat
    from upfeat.viz import Attended, attended_regions, attention_panel

    encoded = upfeat.Pipeline(backbone, input_size=side, fit="resize").encode(image)
    seen, features = encoded.prepared.clone(), encoded.features.clone()
    size = (seen.shape[2], seen.shape[3])
    pixel = (size[0] // 2, size[1] // 2)
    attended = []
    for method in methods:
        guidance = method.upsampler.guidance_image(seen, backbone)
        weights = attended_regions(method.upsampler, guidance, features, pixel, size)
        attended.append(Attended(method.label, weights.cpu()))
    place = ((pixel[0] + 0.5) / size[0], (pixel[1] + 0.5) / size[1])
    return attention_panel(seen[0].cpu(), attended, place)


def _targets(
    backbone: "Backbone", methods: list["Method"], image: "Tensor", side: int, small: bool
) -> Any:
    """The pseudo ground truths of a photo, as ``upfeat show targets`` draws them."""
    import torch

    from upfeat.data import SuperpixelMaskSource
    from upfeat.data.records import FilePart, ImageRecord
    from upfeat.ops.images import resize_bilinear
    from upfeat.viz.pictures import shared_basis, targets_panel
    from upfeat.viz.targets import PseudoGroundTruthConfig, make_pseudo_ground_truths

    config = PseudoGroundTruthConfig(
        input_size=side // 2,
        implicit_steps=2 if small else 100,
        implicit_views=10 if small else 100,
    )
    if small:  # superpixels of a large photo take most of the time
        image = resize_bilinear(image[None], (2 * side, 2 * side))[0]
    source = SuperpixelMaskSource("felzenszwalb")
    masks = source(ImageRecord("photo", FilePart(Path("photo"))), image, torch.Generator())
    teacher = methods[0].upsampler if methods else None
    made = make_pseudo_ground_truths(config, image, backbone, masks, teacher=teacher)
    maps = {"low": made.low.cpu()} | {target.name: target.map.cpu() for target in made.targets}
    basis = shared_basis(maps, "low")
    captions = {name: name.replace("_", " ") for name in maps}
    return targets_panel(made.image, maps, basis, captions=captions)


def _save(
    path: Path, panel: Any, figure: PublishedFigure, backbone: str, methods: list["Method"]
) -> None:
    from upfeat._files import OwnFiles
    from upfeat.viz.pca import png_bytes

    record = {
        "figure": figure.id,
        "backbone": backbone,
        "methods": [{"label": method.label, **method.identity} for method in methods],
        "environment": describe_environment(),
    }
    own = OwnFiles(path.parent)
    own.write(path.name, png_bytes(panel), MAKER)
    beside = path.with_suffix(".picture.json")
    own.write(beside.name, f"{json.dumps(record, indent=1)}\n".encode(), MAKER)


# -- panels of protocols -------------------------------------------------------------------------


def _panels(figure: PublishedFigure, runner: Runner) -> tuple[str, list[Ran], list[str]]:
    """Run a protocol on a few images and put its panels side by side."""
    from upfeat.evaluation.registry import get_protocol
    from upfeat.evaluation.tables.panels import FOLDER, load_panel, panel_files

    task, preset = _TASKS[figure.kind]
    job = _job(figure, task, preset, runner.small)
    assert job.data is not None
    problem = not_ready(task, preset) or runner.roots.missing(job.data)
    if problem is not None:
        return job.backbone, [_problem(figure, row, problem) for row in figure.methods], []
    protocol = get_protocol(task)
    backbone = load_backbone(protocol, job.backbone, runner.roots, runner.device)
    assert backbone is not None
    methods, failed = _methods(figure, runner, backbone, job.backbone)
    config = protocol.settings(preset, job.data, **job.changes)
    out = runner.out / "figures" / figure.id.replace(":", "-")
    protocol.run(
        config=config,
        backbone=backbone,
        methods=methods,
        out=out,
        on_progress=runner.show,
        **runner.inputs(protocol, job),
    )
    panels = [load_panel(file) for file in panel_files(out / FOLDER)]
    pictures = []
    for name in sorted({panel.image for panel in panels})[:_IMAGES]:
        file = f"{figure.id.replace(':', '-')}-{Path(name).stem}.png"
        order = ["image", "target", *(method.label for method in methods)]
        members = [panel for panel in panels if panel.image == name and panel.label in order]
        members.sort(key=lambda panel: order.index(panel.label))
        _save(runner.out / file, _side_by_side(members), figure, backbone.name, methods)
        pictures.append(file)
    ran = _drawn(methods, task, job.data, runner.small)
    return job.backbone, [*ran, *failed], pictures


def _job(figure: PublishedFigure, task: str, preset: str, small: bool) -> TableJob:
    """Return the call whose panels are shown."""
    from upfeat.evaluation.registry import get_protocol

    data = _QUICK_SETS.get(figure.data, figure.data) if task == "seg-probe" else figure.data
    changes: dict[str, Any] = {}
    backbone = figure.backbone
    if small:
        stand_in = SMALL.get(task, SmallTask())
        backbone = stand_in.backbones.get(preset, SMALL_BACKBONE)
        changes = _QUICK
        if task == "cam":
            known = type(get_protocol(task).settings(preset, data)).model_fields
            changes = small_settings(stand_in, preset, {}, known)
    return TableJob(task, preset, data, figure.data, changes, {}, backbone, (), ())


def _side_by_side(panels: "list[Panel]") -> Any:
    """Draw panels of one image in a row; measures share one scale."""
    from upfeat.evaluation.tables.panels import panel_colors, shared_scale
    from upfeat.viz.panel import PanelPicture, draw_panel

    scale = shared_scale(panels)
    cells = [PanelPicture(panel_colors(panel, scale), panel.label) for panel in panels]
    size = (panels[0].values.shape[-2], panels[0].values.shape[-1])
    return draw_panel(cells, size, 320)
