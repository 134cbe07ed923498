"""What commands print and write: tables, progress bars, pictures with the JSON beside them."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from upfeat.pipeline import Encoded
    from upfeat.viz import PCABasis

_PROSE_WIDTH = 30  # a column of prose narrower than this is not worth reading
_HEAD_WIDTH = 7  # heads are broken between words to about this, where room is scarce


@dataclass(frozen=True)
class TableColumn:
    """A column's head, and whether its cells are prose that may be wrapped."""

    head: str
    prose: bool = False


def print_table(
    columns: Sequence[TableColumn | str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    console: Console | None = None,
) -> None:
    """Print rows under their columns, the most important first; only prose is ever wrapped.

    In a terminal, columns that do not fit are left out from the right, and a line names them.
    Elsewhere every row is one line, its cells two spaces apart or more, for other programs.

    Example:
        >>> from upfeat.cli.output import print_table
        >>> print_table(["name", "year"], [["jafar", "2025"]])
        name   year
        jafar  2025
    """
    console = console or Console()
    named = [TableColumn(each) if isinstance(each, str) else each for each in columns]
    plain = [column.head for column in named]
    if title is not None:
        typer.echo(title)
    if not console.is_terminal:
        widths = [max(map(len, cells)) for cells in zip(plain, *rows, strict=True)]
        for row in (plain, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            typer.echo("  ".join(cells).rstrip())
        return
    heads, shown = plain, _shown(named, plain, rows, console.width)
    if len(shown) < len(named):  # heads broken between words leave more room
        heads = [
            "\n".join(textwrap.wrap(head, _HEAD_WIDTH, break_long_words=False)) for head in plain
        ]
        shown = _shown(named, heads, rows, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for index in shown:
        prose = named[index].prose
        width = None if prose else max(map(len, _column(heads, rows, index)))
        table.add_column(heads[index], width=width, no_wrap=not prose, overflow="fold")
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    if len(shown) > 1:
        console.print(table)
    else:  # possibly wider than the terminal, which rich would cut
        typer.echo("\n".join(_column(heads, rows, 0)))
    if left := [head for index, head in enumerate(plain) if index not in shown]:
        typer.echo(f"not shown for want of room: {', '.join(left)}; see 'upfeat info NAME'")


def _shown(
    columns: Sequence[TableColumn], heads: Sequence[str], rows: Sequence[Sequence[str]], room: int
) -> list[int]:
    """Return the columns that fit, from the left; the first one in any case."""
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


def tell(text: str) -> None:
    """Print a line to standard error, as it is."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(
    *columns: ProgressColumn, console: Console | None = None, hidden: bool = False
) -> Iterator[Progress]:
    """Show a description, a bar and the columns on standard error, if that is a terminal."""
    console = console or Console(stderr=True)
    hidden = hidden or not console.is_terminal
    first = TextColumn("{task.description}"), BarColumn()
    with Progress(*first, *columns, console=console, disable=hidden) as progress:
        yield progress


def size_text(count: float) -> str:
    """Return a number of bytes with three digits.

    Example:
        >>> from upfeat.cli.output import size_text
        >>> size_text(78_643_200)
        '78.6 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration_text(seconds: float) -> str:
    """Return a duration as people write it.

    Example:
        >>> from upfeat.cli.output import duration_text
        >>> duration_text(42.4), duration_text(600), duration_text(9000)
        ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# -- pictures ------------------------------------------------------------------------------------


def check_pictures(pictures: Iterable[Path], maker: str) -> None:
    """Refuse, before any work, pictures that would replace somebody else's files."""
    from upfeat._files import OwnFolders

    own = OwnFolders()
    for picture in pictures:
        for file in (picture, picture.with_suffix(".json")):
            own[file.parent].check(file.name, maker)


def save_picture(path: Path, picture: "Image.Image | Tensor", record: str, maker: str) -> None:
    """Write a picture and its record, and print where."""
    from upfeat._files import OwnFiles
    from upfeat.viz.pca import png_bytes

    own = OwnFiles(path.parent)
    own.write(path.name, png_bytes(picture), maker)
    beside = own.write(path.with_suffix(".json").name, f"{record}\n".encode(), maker)
    typer.echo(f"{path}\n{beside}")


def picture_places(names: Sequence[Path], out: Path, ending: str) -> list[Path]:
    """Return where pictures go: all with one ending, repeated until it makes no image's name.

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
    """Return where the pictures of a command go: into a folder, or to the file that ``out`` names.

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
        raise ValueError(f"--out {out} is one picture, but there are {len(names)}; name a folder")
    return [out]


def draw_each(
    files: Sequence[tuple[Path, Path]],
    places: Sequence[Path],
    draw: "Callable[[Tensor, Path, Path], None]",
) -> None:
    """Draw every image that can be read; name the others."""
    from upfeat.data import read_image

    failed = False
    for (source, _), place in zip(files, places, strict=True):
        try:
            pixels = read_image(source)
        except Exception as error:  # noqa: BLE001  (readers raise anything; the others go on)
            failed = True
            tell(f"failed: {source}: {type(error).__name__}: {error}")
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
