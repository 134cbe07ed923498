"""A picture and the JSON beside it, as several commands write them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["check_pictures", "save_picture"]


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
