"""A picture and the JSON beside it, as several commands write them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["check_pictures", "draw_each", "picture_places", "save_picture"]


def check_pictures(pictures: Iterable[Path], maker: str) -> None:
    """Refuse, before any work, pictures that would replace somebody else's files.

    Args:
        pictures: their paths, with ``.png``.
        maker: the command.

    Raises:
        ForeignFileError: such a picture, or the JSON beside it, was not written by this command.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.cli.pictures import check_pictures
        >>> check_pictures([Path("no-such-folder/a.png")], "a command")
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
        >>> from upfeat.cli.pictures import save_picture
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
        >>> from upfeat.cli.pictures import picture_places
        >>> [str(place) for place in picture_places([Path("a"), Path("a_pca")], Path("o"), "_pca")]
        ['o/a_pca_pca.png', 'o/a_pca_pca_pca.png']
    """
    whole, known = ending, set(names)
    while any(name.with_name(name.name + whole) in known for name in names):
        whole += ending
    return [out / name.parent / f"{name.name}{whole}.png" for name in names]


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
