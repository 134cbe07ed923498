"""``upfeat report``: results and pictures on one page; tables and figures as files for a paper."""

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfeat.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_UPSAMPLER,
    BackboneWeightsOption,
    DeviceOption,
    DtypeOption,
    checked_file,
    checked_folder,
    load_networks,
    parse_size,
)

if TYPE_CHECKING:
    from PIL import Image

    from upfeat.evaluation.report import PictureGroup, Scene
    from upfeat.evaluation.tables import Table
    from upfeat.viz import Comparison

MAKER = "upfeat report"
SIDE = 448  # longer side of a picture of a figure, in pixels
DPI = 300
PAGE = "index.html"
REMARKS = "remarks.md"

TablesOption = Annotated[
    Path | None,
    typer.Option(
        callback=checked_folder,
        help="Write each table to this folder as Markdown, CSV and LaTeX (booktabs), with the IoU "
        "of each class where there is one.",
    ),
]
FiguresOption = Annotated[
    Path | None,
    typer.Option(
        callback=checked_folder,
        help="Write each image's pictures, side by side, to this folder as PNG and PDF.",
    ),
]


def report_command(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders or files that upfeat eval wrote; pictures in their panels/ are shown."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", callback=checked_folder, help=f"Folder for the page, {PAGE}."),
    ] = Path("report"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Feature upsamplers",
    markdown: Annotated[
        Path | None,
        typer.Option(
            callback=checked_file,
            help="Also write the tables to this Markdown file; sections of a file remarks.md "
            "beside the results are inserted under the same headings.",
        ),
    ] = None,
    tables: TablesOption = None,
    figures: FiguresOption = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Show upsampled features of photos: file, folder or glob; repeatable."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Backbone of --image: timm/NAME or upfeat/NAME.")
    ] = DEFAULT_BACKBONE,
    upsampler: Annotated[
        str,
        typer.Option(
            help="Upsamplers of --image, separated by commas: NAME, NAME.TAG, a saved folder, or "
            "LABEL=any of these; low-res and bilinear are always shown."
        ),
    ] = DEFAULT_UPSAMPLER,
    backbone_weights: BackboneWeightsOption = None,
    input_size: Annotated[
        str | None,
        typer.Option(help="Size of --image: shorter side (448) or HxW. Default: at most 448."),
    ] = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Write one HTML page of results and pictures, to open from disk or to print."""
    from upfeat._files import OwnFiles
    from upfeat.evaluation.report import report_page
    from upfeat.evaluation.report.content import panel_scenes, report_content
    from upfeat.evaluation.tables import build_tables, gather_results
    from upfeat.evaluation.tables.markdown import results_page
    from upfeat.evaluation.tables.panels import load_panel, panel_files

    paths = results or []
    if not paths and not image:
        raise ValueError("nothing to report: name a folder of results, or a photo with --image")
    targets = [out / PAGE] + ([] if markdown is None else [markdown])
    for target in targets:
        OwnFiles(target.parent).check(target.name, MAKER)
    files = [file for path in paths for file in panel_files(path)]
    only_panels = {file.parent for file in files}
    read = [p for p in paths if not (_has_panels(p, only_panels) and not any(p.glob("*.json")))]
    found = build_tables(gather_results(read))
    scenes = panel_scenes([load_panel(file) for file in files])
    if image:
        scenes += _feature_scenes(
            image, backbone, backbone_weights, upsampler, input_size, device, dtype
        )
    page = report_page(report_content(title, found, scenes))
    link = _link(paths, markdown)
    text = results_page(found, remarks=_remarks(paths), link=link, classes=True)
    for target, content in zip(targets, (page, text), strict=False):
        OwnFiles(target.parent).write(target.name, content.encode(), MAKER)
        typer.echo(target)
    written = [] if tables is None else write_tables(tables, found)
    written += [] if figures is None else write_figures(figures, scenes)
    for file in written:
        typer.echo(file)


def _has_panels(path: Path, folders: set[Path]) -> bool:
    return path in folders or path / "panels" in folders


def _remarks(paths: Sequence[Path]) -> str:
    """Return what was written by hand beside the results."""
    files = [path / REMARKS for path in paths]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def _link(paths: Sequence[Path], markdown: Path | None) -> str:
    """Return the way from the Markdown file to the only folder of results, else nothing."""
    if markdown is None or len(paths) != 1 or not paths[0].is_dir():
        return ""
    return Path(os.path.relpath(paths[0], markdown.parent)).as_posix() + "/"


def _feature_scenes(
    images: Sequence[str],
    backbone: str,
    weights: Path | None,
    upsamplers: str,
    input_size: str | None,
    device: str,
    dtype: str,
) -> list["Scene"]:
    """Upsample the features of photos, all methods of a photo in one PCA basis."""
    import upfeat
    from upfeat.data import image_files
    from upfeat.evaluation.methods import Method
    from upfeat.viz.comparison import Candidate, compare_upsamplers

    network, methods = load_networks(backbone, weights, upsamplers, device, dtype)
    if "bilinear" not in [method.identity["name"] for method in methods]:
        methods.insert(0, Method("bilinear", upfeat.create_upsampler("bilinear")))
    candidates = [Candidate(method.label, method.upsampler) for method in methods]
    size = parse_size(input_size, "--input-size")
    return [
        comparison_scene(
            f"{name.name} · {network.name.rsplit('/', 1)[-1]}",
            compare_upsamplers(network, path, candidates, input_size=size, device=device),
        )
        for path, name in image_files(images)
    ]


def comparison_scene(title: str, comparison: "Comparison") -> "Scene":
    """Return a scene of feature pictures that share one PCA basis."""
    from upfeat.evaluation.report import Picture, PictureGroup, Scene
    from upfeat.evaluation.tables.panels import covered_part, png_bytes

    low = covered_part(comparison.low, comparison.low_extent, comparison.input_size)
    cells = f"{comparison.low.shape[-2]}×{comparison.low.shape[-1]} cells"
    drawn = [
        ("image", comparison.photo, "", False),
        ("low-res", low, cells, True),
    ]
    for entry in comparison.entries:
        seconds = entry.seconds
        time = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
        drawn.append(
            (entry.name, entry.picture, ", ".join(filter(None, (time, entry.note))), False)
        )
    pictures = []
    for label, colors, note, blocks in drawn:
        png, size = png_bytes(colors)
        pictures.append(Picture(label, png, size, note, blocks))
    remark = "; ".join(f"{left.name} left out: {left.reason}" for left in comparison.left_out)
    # image, low-res, bilinear, then the methods: the slider starts between low-res and the first
    right = 3 if len(pictures) > 3 else -1
    group = PictureGroup("features, one PCA basis for all", tuple(pictures), left=1, right=right)
    return Scene(title, comparison.output_size, (group,), remark)


# -- tables and figures ---------------------------------------------------------------------------


def write_tables(folder: Path, tables: "Sequence[Table]") -> list[Path]:
    """Write tables into a folder as Markdown, CSV and LaTeX."""
    from upfeat.evaluation.tables.grid import table_files

    texts = table_files(tables)
    return _write(folder, {name: text.encode() for name, text in texts.items()})


def write_figures(folder: Path, scenes: "Iterable[Scene]") -> list[Path]:
    """Write the pictures of scenes, side by side under their names, as PNG and PDF."""
    content: dict[str, bytes] = {}
    for scene in scenes:
        for group in scene.groups:
            figure = draw_figure(scene, group)
            stem = "--".join(_slug(text) for text in (scene.title, group.title.partition(",")[0]))
            content[f"{stem}.png"] = _encoded(figure, "PNG", optimize=True)
            content[f"{stem}.pdf"] = _encoded(figure, "PDF", resolution=DPI, quality=95)
    return _write(folder, content)


def draw_figure(scene: "Scene", group: "PictureGroup") -> "Image.Image":
    """Return the pictures of a group in rows of at most five, with the classes below."""
    import numpy as np
    import torch
    from PIL import Image

    from upfeat.viz.panel import PanelPicture, draw_grid, with_legend

    cells = []
    for picture in group.pictures:
        pixels = np.array(Image.open(io.BytesIO(picture.png)).convert("RGB"))
        colors = torch.from_numpy(pixels).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        caption = f"{picture.label} ({picture.note})" if picture.note else picture.label
        cells.append(PanelPicture(colors, caption, picture.blocks))
    legend = group.legend
    notes = [f"{legend.low} (dark) to {legend.high} (light)"] if legend.low or legend.high else []
    grid = draw_grid(cells, scene.size, SIDE, columns=min(5, len(cells)), notes=notes)
    return with_legend(grid, legend.classes) if legend.classes else grid


def _encoded(figure: "Image.Image", kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    figure.save(stream, kind, **options)
    return stream.getvalue()


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text.replace(" · ", "--")).strip("-.")


def _write(folder: Path, content: Mapping[str, bytes]) -> list[Path]:
    from upfeat._files import OwnFiles

    own = OwnFiles(folder)
    for name in content:
        own.check(name, MAKER)
    for name, data in content.items():
        own.write(name, data, MAKER)
    return [folder / name for name in content]
