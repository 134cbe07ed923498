"""What commands print and write: tables of any width, and pictures with the JSON beside them."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from upfeat.pipeline import Encoded
    from upfeat.viz import PCABasis

__all__ = [
    "Colors",
    "TableColumn",
    "answer_places",
    "check_pictures",
    "draw_each",
    "picture_places",
    "print_table",
    "save_picture",
]

_PROSE_WIDTH = 30  # a column of prose narrower than this is not worth reading
_HEAD_WIDTH = 7  # heads are broken between words to about this, where room is scarce


@dataclass(frozen=True)
class TableColumn:
    """A column's head, and whether its cells are prose that may be wrapped."""

    head: str
    prose: bool = False


def print_table(
    columns: Sequence[TableColumn],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """Print rows under their columns; no cell is ever cut, and only prose is wrapped.

    In a terminal, columns that do not fit are left out from the right, and a line says which;
    the first one stays in any case. Elsewhere every row is one line, its cells two spaces apart or
    more, so that other programs can read it.

    Args:
        columns: in order of importance.
        rows: a text for each column.
        title: a line above.
        console: where to; default standard output.

    Example:
        >>> from upfeat.cli.output import TableColumn, print_table
        >>> print_table([TableColumn("name"), TableColumn("year")], [["jafar", "2025"]])
        name   year
        jafar  2025
    """
    console = console or Console()
    if title is not None:
        typer.echo(title)
    if not console.is_terminal:
        for line in _plain([[column.head for column in columns], *rows]):
            typer.echo(line)
        return
    heads, shown = _fit(columns, rows, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for index in shown:
        prose = columns[index].prose
        width = None if prose else max(map(len, _column(heads, rows, index)))
        table.add_column(heads[index], width=width, no_wrap=not prose, overflow="fold")
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    if len(shown) > 1:
        console.print(table)
    else:  # possibly wider than the terminal, which rich would cut
        typer.echo("\n".join(_column(heads, rows, 0)))
    if left := [column.head for index, column in enumerate(columns) if index not in shown]:
        typer.echo(f"not shown for want of room: {', '.join(left)}; see 'upfeat info NAME'")


def _plain(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _fit(
    columns: Sequence[TableColumn], rows: Sequence[Sequence[str]], room: int
) -> tuple[list[str], list[int]]:
    """Return the heads, broken where that helps, and the columns that fit from the left."""
    plain = [column.head for column in columns]
    shown = _shown(columns, plain, rows, room)
    if len(shown) == len(columns):
        return plain, shown
    broken = ["\n".join(textwrap.wrap(head, _HEAD_WIDTH, break_long_words=False)) for head in plain]
    return broken, _shown(columns, broken, rows, room)


def _shown(
    columns: Sequence[TableColumn], heads: Sequence[str], rows: Sequence[Sequence[str]], room: int
) -> list[int]:
    shown, used = [0], max(map(len, _column(heads, rows, 0))) + 2
    for index in range(1, len(columns)):
        wide = max(map(len, _column(heads, rows, index)))
        need = min(wide, _PROSE_WIDTH) if columns[index].prose else wide
        if used + need + 1 > room:
            break
        used += need + 1
        shown.append(index)
    return shown


def _column(heads: Sequence[str], rows: Sequence[Sequence[str]], index: int) -> list[str]:
    """The lines of a head and the cells below it."""
    return [*heads[index].splitlines(), *(row[index] for row in rows)]


# -- pictures ------------------------------------------------------------------------------------


def check_pictures(pictures: Iterable[Path], maker: str) -> None:
    """Refuse, before any work, pictures that would replace somebody else's files.

    Args:
        pictures: their paths, with ``.png``.
        maker: the command.

    Raises:
        ForeignFileError: such a picture, or the JSON beside it, was not written by this command.
    """
    from upfeat._files import OwnFolders

    own = OwnFolders()
    for picture in pictures:
        for file in (picture, picture.with_suffix(".json")):
            own[file.parent].check(file.name, maker)


def save_picture(path: Path, picture: "Image.Image | Tensor", record: str, maker: str) -> None:
    """Write a picture and its record, and print where.

    Args:
        path: of the picture, with ``.png``.
        picture: a PIL image, or (3, H, W) uint8.
        record: JSON.
        maker: as in :func:`check_pictures`.

    Raises:
        ForeignFileError: as in :func:`check_pictures`.

    Example:
        >>> import contextlib, io, pathlib, tempfile, torch
        >>> from upfeat.cli.output import save_picture
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ...     path = pathlib.Path(folder, "a.png")
        ...     save_picture(path, torch.zeros(3, 2, 2, dtype=torch.uint8), "{}", "a command")
        ...     written = sorted(p.name for p in pathlib.Path(folder).glob("a.*"))
        >>> written
        ['a.json', 'a.png']
    """
    from upfeat._files import OwnFiles
    from upfeat.viz.pca import png_bytes

    own = OwnFiles(path.parent)
    own.write(path.name, png_bytes(picture), maker)
    beside = own.write(path.with_suffix(".json").name, f"{record}\n".encode(), maker)
    typer.echo(f"{path}\n{beside}")


def picture_places(names: Sequence[Path], out: Path, ending: str) -> list[Path]:
    """Return where pictures go: all with one ending, repeated until it makes no image's name.

    Args:
        names: of the images, relative, without suffix.
        out: folder of the results.
        ending: such as ``_pca``.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.cli.output import picture_places
        >>> [str(place) for place in picture_places([Path("a"), Path("a_pca")], Path("o"), "_pca")]
        ['o/a_pca_pca.png', 'o/a_pca_pca_pca.png']
    """
    whole, known = ending, set(names)
    while any(name.with_name(name.name + whole) in known for name in names):
        whole += ending
    return [out / name.parent / f"{name.name}{whole}.png" for name in names]


def answer_places(out: Path, names: Sequence[str]) -> list[Path]:
    """Return where the pictures of a command go: into a folder, or one where ``out`` says.

    Args:
        out: a folder, or a file ending in ``.png``.
        names: of the pictures, with ``.png``.

    Raises:
        ValueError: one file is named for several pictures.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.cli.output import answer_places
        >>> [str(path) for path in answer_places(Path("results"), ["a.png"])]
        ['results/a.png']
        >>> [str(path) for path in answer_places(Path("mine.png"), ["a.png"])]
        ['mine.png']
    """
    if out.suffix.lower() != ".png":
        return [out / name for name in names]
    if len(names) > 1:
        raise ValueError(f"--out {out} is one picture and there are {len(names)}; name a folder")
    return [out]


def draw_each(
    files: Sequence[tuple[Path, Path]],
    places: Sequence[Path],
    draw: "Callable[[Tensor, Path, Path], None]",
) -> None:
    """Draw every image that can be read; name the others.

    Args:
        files: images and the relative names of their results.
        places: of the pictures.
        draw: called with the pixels (3, H, W) in [0, 1], the image's and the picture's path.

    Raises:
        typer.Exit: with 1, an image could not be read; the others have their pictures.
    """
    from upfeat.data import read_image

    failed = False
    for (source, _), place in zip(files, places, strict=True):
        try:
            pixels = read_image(source)
        except Exception as error:  # noqa: BLE001  (readers raise anything; the others go on)
            failed = True
            text = f"failed: {source}: {type(error).__name__}: {error}"
            console = Console(stderr=True)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            continue
        draw(pixels, source, place)
    if failed:
        raise typer.Exit(1)


class Colors:
    """The basis of the pictures: each image's own, the first image's for all, or a file's."""

    def __init__(self, choice: str, out: Path) -> None:
        from upfeat._files import STATE
        from upfeat.viz import PCABasis

        self.choice = choice
        self.path = out / STATE / "basis.json"
        self.basis: PCABasis | None = None
        if choice == "first" and self.path.is_file():
            self.basis = PCABasis.load(self.path)
        elif choice not in ("image", "first"):
            if not Path(choice).is_file():
                raise ValueError(f"--basis must be image, first or a basis file, got {choice!r}")
            self.basis = PCABasis.load(choice)

    def of(self, encoded: "Encoded") -> "PCABasis | None":
        """Return the basis for an image; None lets the picture fit its own."""
        from upfeat.viz import PCABasis

        if self.choice == "first" and self.basis is None:
            self.keep(PCABasis.fit(encoded.low))
        return self.basis

    def keep(self, basis: "PCABasis") -> None:
        """Take a basis for all further images, and for later runs into the same folder."""
        self.basis = basis
        self.path.parent.mkdir(parents=True, exist_ok=True)
        basis.save(self.path)
