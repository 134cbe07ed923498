"""Listing image files: files, folders and globs become one ordered list with output names.

Pictures of kinds that are not read here, and what is no file at all, are left out of folders and
globs; a warning of the logger ``upfeat.data.folders`` names which and how many.
"""

import fnmatch
import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from upfeat._files import STATE, OwnFiles, OwnFolders
from upfeat.errors import check_file, special_file

__all__ = ["IMAGE_SUFFIXES", "LeftOut", "image_files", "match_glob"]

logger = logging.getLogger(__name__)


def _suffixes(text: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in text.split())


# The pictures of pixels that Pillow decodes without other programs.
IMAGE_SUFFIXES = _suffixes(
    "apng avif avifs blp bmp bw cur dcx dds dib flc fli ftc ftu gif icb icns ico im j2c j2k jfif "
    "jp2 jpc jpe jpeg jpf jpg jpx mpo msp pbm pcx pfm pgm png pnm ppm psd pxr qoi ras rgb rgba sgi "
    "tga tif tiff vda vst webp xbm xpm"
)

# Read once a plugin of Pillow for them is loaded, such as pillow-heif.
_PLUGIN_SUFFIXES = _suffixes(
    "3fr ari arw bay bpg cr2 cr3 crw dcr dng erf exr fff flif hdp hdr heic heics heif heifs hif "
    "iiq jxl jxr k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw wdp x3f"
)

# Pictures all the same, so they are not left out in silence.
_OTHER_SUFFIXES = _suffixes(
    "3gp ai avi dcm dicom emf eps fit fits gbr jls kra m4v mkv mov mp4 mpeg mpg mts pcd pdf ps psb "
    "svg svgz webm wmf wmv xcf"
)


@dataclass
class LeftOut:
    """What a listing leaves out, counted for one warning."""

    # Files of kinds that are not read here; sets, for a glob may reach a file in several ways.
    pictures: set[Path] = field(default_factory=set)
    # Named pipes, sockets and devices that are named like images.
    special: set[Path] = field(default_factory=set)
    # Folders that may not be read, with the reason.
    closed: dict[str, str] = field(default_factory=dict)
    # How many files and folders were written by upfeat; not in the warning.
    results: int = 0

    def takes(self, path: Path) -> bool:
        """Return whether a path is an image by its suffix; note what is a picture all the same."""
        suffix = path.suffix.lower()
        if suffix not in IMAGE_SUFFIXES and not _has_plugin(suffix):
            if suffix in _PLUGIN_SUFFIXES or suffix in _OTHER_SUFFIXES:
                self.pictures.add(path)
            return False
        if special_file(path) is not None:
            self.special.add(path)
            return False
        return True

    def refuse(self, error: OSError) -> None:
        """Note a folder that ``os.walk`` could not read."""
        self.closed[str(error.filename)] = error.strerror or str(error)

    def __str__(self) -> str:
        """Return what was left out and why, in words; empty if nothing was."""
        reasons = []
        if self.pictures:
            kinds = Counter(path.suffix.lower() for path in self.pictures)
            counts = " and ".join(f"{kinds[suffix]} {suffix}" for suffix in sorted(kinds))
            files = "file, a kind" if len(self.pictures) == 1 else "files, kinds"
            reasons.append(f"{counts} {files} not read here; convert them to PNG or JPEG")
        reasons += [f"{path}, {special_file(path) or 'no file'}" for path in sorted(self.special)]
        reasons += [f"the folder {name} ({reason})" for name, reason in self.closed.items()]
        return "; ".join(reasons)

    def report(self, place: str | os.PathLike[str]) -> None:
        """Log a warning if anything was left out of a place."""
        if text := str(self):
            logger.warning("left out of %s: %s", os.fspath(place), text)


def _has_plugin(suffix: str) -> bool:
    """Return whether somebody loaded a plugin of Pillow that reads a suffix."""
    if suffix not in _PLUGIN_SUFFIXES:
        return False
    from PIL import Image

    return Image.EXTENSION.get(suffix, "") in Image.OPEN


def image_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[tuple[Path, Path]]:
    """Expand files, folders and globs into image files, each with a relative name for its output.

    * A file is taken as it is, whatever its suffix.
    * A folder is searched recursively, in sorted order, for files with a suffix of
      ``IMAGE_SUFFIXES`` in any case; names that begin with a dot are left out and links to folders
      are not followed.
    * A glob (``*``, ``?``, ``[…]``, ``**`` for folders below) is expanded in sorted order; what it
      finds is treated as above, but files need a known suffix. ``**`` follows no links to folders.
    * What upfeat itself wrote is left out of folders and globs, so that results which lie below the
      folder that is read are no inputs of the next run; and of files, if anything else is named
      beside them, as by a shell's ``*``.

    What a folder or glob holds of other pictures (``.heic``, camera raw, …), of named pipes and
    devices, and of folders that may not be read is left out, with a warning in the log.
    A link that leads nowhere is listed: that its image cannot be read shows when it is read.

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
        ValueError: a folder or glob holds no image, or a path is a named pipe or a device.

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
    given, written = [Path(path).expanduser() for path in paths], OwnFolders()
    others = [path for path in given if not written[path.parent].wrote(path.name)]
    images: dict[str, tuple[Path, Path]] = {}
    for argument in others or given:
        for path, relative in _expand(argument):
            images.setdefault(os.path.realpath(path), (path, relative))
    if given and not images:
        names = ", ".join(map(str, given))
        raise ValueError(f"there is no image in {names} but what upfeat wrote; {_known()}")
    return _unique_names(list(images.values()))


def _expand(path: Path) -> list[tuple[Path, Path]]:
    """Return (path, path relative to the argument) of every image that one argument names."""
    if path.is_file():
        return [(path, Path(path.name))]
    left = LeftOut()
    if path.is_dir():
        images, problem = _walk(path, path, left), f"the folder {path} holds no image"
    elif os.path.lexists(path) or not glob.has_magic(str(path)):
        check_file(path, "image file or folder")
        return []  # it came into being since
    else:
        images, problem = _matches(path, left), f"no image matches {path}"
    if not images and not left.results:
        raise ValueError(f"{problem}; {f'left out: {left}; ' if str(left) else ''}{_known()}")
    left.report(path)
    return images


def _matches(pattern: Path, left: LeftOut) -> list[tuple[Path, Path]]:
    """Return the images that a glob names, itself or by a folder above them."""
    root = Path(*pattern.parts[: _magic_part(pattern)])
    images = []
    written = OwnFolders()
    for match in match_glob(pattern):
        if written.holds_result(match, root):
            left.results += 1
            continue
        if match.is_dir():
            if "**" not in pattern.parts or not match.is_symlink():
                images.extend(_walk(match, root, left))
        elif left.takes(match):
            images.append((match, match.relative_to(root)))
    return images


def _magic_part(pattern: Path) -> int:
    return next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))


def match_glob(pattern: str | os.PathLike[str]) -> list[Path]:
    """Return what a glob finds, sorted; ``**`` stands for any folders below but follows no links.

    The standard library's follows them, and links that lead back up multiply without end.

    Args:
        pattern: a path with ``*``, ``?``, ``[…]`` or ``**`` in it; as in a shell, wildcards find
            no names that begin with a dot.
    """
    path = Path(pattern)
    first = _magic_part(path)
    matches = [Path(*path.parts[:first])]
    for part in path.parts[first:]:
        # Each once: after two ** a folder is reached in several ways.
        below = (path for folder in matches for path in _below(folder, part))
        matches = list(dict.fromkeys(below))
    return sorted(matches)


def _below(folder: Path, part: str) -> Iterator[Path]:
    """Yield what one part of a glob finds in a folder."""
    if part == "**":
        yield folder
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = (Path(parent, n) for n in (*folders, *names) if not n.startswith("."))
            yield from (path for path in inside if not (path.is_symlink() and path.is_dir()))
    elif not glob.has_magic(part):
        yield from [folder / part] if os.path.lexists(folder / part) else []
    else:
        try:
            names = os.listdir(folder)
        except OSError:  # no folder, or one that may not be read: nothing matches in it
            return
        hidden = part.startswith(".")
        yield from (
            folder / name
            for name in fnmatch.filter(names, part)
            if hidden or not name.startswith(".")
        )


def _walk(folder: Path, root: Path, left: LeftOut) -> list[tuple[Path, Path]]:
    images = []
    for parent, folders, names in os.walk(folder, onerror=left.refuse):
        written = OwnFiles(parent) if STATE in folders else None
        if written is not None and written.all:
            left.results += 1
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if written is not None and written.wrote(name):
                left.results += 1
                continue
            path = Path(parent, name)
            if left.takes(path):
                images.append((path, path.relative_to(root)))
    return sorted(images)


def _known() -> str:
    known = " ".join(sorted(IMAGE_SUFFIXES))
    return f"known suffixes: {known}; results that upfeat wrote are left out"


def _unique_names(images: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Drop suffixes where that keeps names apart; lengthen names where even suffixes do not."""
    names = [relative.with_suffix("") for _, relative in images]
    extra = 0
    while (counts := Counter(names)).total() > len(counts):
        for i in [i for i, name in enumerate(names) if counts[name] > 1]:
            # First the suffix comes back, then one more folder of the absolute path a round.
            parts = Path(os.path.realpath(images[i][0])).parts[1:]
            length = extra + len(images[i][1].parts)
            names[i] = images[i][1] if extra == 0 else Path(*parts[-length:])
        extra += 1
    return [(path, name) for (path, _), name in zip(images, names, strict=True)]
