"""Tables and figures as files for a paper: ``--tables DIR`` and ``--figures DIR``."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upfeat.cli.options import checked_folder

if TYPE_CHECKING:
    from PIL import Image

    from upfeat.evaluation.report import PictureGroup, Scene
    from upfeat.evaluation.tables import Table

MAKER = "upfeat report"
SIDE = 448  # longer side of a picture of a figure, in pixels
DPI = 300

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


def write_tables(folder: Path, tables: "Sequence[Table]") -> list[Path]:
    """Write tables into a folder as Markdown, CSV and LaTeX.

    Args:
        folder: of the files.
        tables: of :func:`upfeat.evaluation.tables.build_tables`.

    Returns:
        The files.

    Raises:
        ForeignFileError: a file of that name was not written by upfeat; nothing is written then.
    """
    from upfeat.evaluation.tables.grid import table_files

    texts = table_files(tables)
    return _write(folder, {name: text.encode() for name, text in texts.items()})


def write_figures(folder: Path, scenes: "Iterable[Scene]") -> list[Path]:
    """Write the pictures of scenes, side by side under their names, as PNG and PDF.

    Args:
        folder: of the files.
        scenes: of :func:`upfeat.evaluation.report.content.panel_scenes`.

    Returns:
        The files, two for each group of pictures.

    Raises:
        ForeignFileError: a file of that name was not written by upfeat; nothing is written then.
    """
    content: dict[str, bytes] = {}
    for scene in scenes:
        for group in scene.groups:
            figure = draw_figure(scene, group)
            stem = "--".join(_slug(text) for text in (scene.title, group.title.partition(",")[0]))
            content[f"{stem}.png"] = _encoded(figure, "PNG", optimize=True)
            content[f"{stem}.pdf"] = _encoded(figure, "PDF", resolution=DPI, quality=95)
    return _write(folder, content)


def draw_figure(scene: "Scene", group: "PictureGroup") -> "Image.Image":
    """Return the pictures of a group in rows of at most five, with the classes below.

    Args:
        scene: whose size the pictures have.
        group: what is drawn.
    """
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
