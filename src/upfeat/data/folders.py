"""Listing image files: files, folders and globs become one ordered list with output names."""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "image_files"]

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)


def image_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[tuple[Path, Path]]:
    """Expand files, folders and globs into image files, each with a relative name for its output.

    * A file is taken as it is, whatever its suffix.
    * A folder is searched recursively, in sorted order, for files with a suffix of
      ``IMAGE_SUFFIXES`` in any case; names that begin with a dot are left out and links to folders
      are not followed.
    * A glob (``*``, ``?``, ``[…]``, ``**`` for folders below) is expanded in sorted order; what it
      finds is treated as above, but files need a known suffix.

    The output name is the path below the folder, or below the fixed part of the glob, without
    suffix; for a file its stem. Where two images would share a name the suffix is kept, and where
    that is not enough folder names are put in front, so all names differ. A file that is reached
    twice is listed once.

    Args:
        paths: one path or several.

    Returns:
        ``(path, name)`` pairs in the order of ``paths``; ``out / name`` plus a suffix is where the
        result belongs.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder or glob holds no image.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.data import image_files
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = pathlib.Path(folder)
        ...     (root / "cats").mkdir()
        ...     for name in ("b.png", "cats/a.JPG", "notes.txt"):
        ...         (root / name).touch()
        ...     [name.as_posix() for _, name in image_files(root)]
        ['b', 'cats/a']
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[Path, tuple[Path, Path]] = {}
    for given in paths:
        for path, relative in _expand(Path(given).expanduser()):
            found.setdefault(path.resolve(), (path, relative))
    return _unique_names(list(found.values()))


def _expand(path: Path) -> list[tuple[Path, Path]]:
    """Return (path, path relative to what was asked for) of every image that one argument names."""
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        if not (images := _walk(path, path)):
            raise ValueError(f"the folder {path} holds no image; {_known()}")
        return images
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"no file or folder at {path}; check the path")
    depth = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    root = Path(*path.parts[:depth])
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    images = []
    for match in matches:
        if match.is_dir():
            images.extend(_walk(match, root))
        elif match.suffix.lower() in IMAGE_SUFFIXES:
            images.append((match, match.relative_to(root)))
    if not images:
        raise ValueError(f"no image matches {path}; {_known()}")
    return images


def _walk(folder: Path, root: Path) -> list[tuple[Path, Path]]:
    images = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                images.append((path, path.relative_to(root)))
    return sorted(images)


def _known() -> str:
    return "known suffixes: " + " ".join(sorted(IMAGE_SUFFIXES))


def _unique_names(images: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Drop suffixes where that keeps names apart; lengthen names where even suffixes do not."""
    names = [relative.with_suffix("") for _, relative in images]
    extra = 0
    while clashes := _clashes(names):
        for i in clashes:
            # First the suffix comes back, then one more folder of the absolute path a round.
            parts = images[i][0].resolve().parts[1:]
            length = extra + len(images[i][1].parts)
            names[i] = images[i][1] if extra == 0 else Path(*parts[-length:])
        extra += 1
    return [(path, name) for (path, _), name in zip(images, names, strict=True)]


def _clashes(names: list[Path]) -> list[int]:
    counts = Counter(names)
    return [i for i, name in enumerate(names) if counts[name] > 1]
