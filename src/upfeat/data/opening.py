"""The one way in which image files are opened: images, labels and headers alike.

Only regular files are opened. Whatever a decoder raises becomes one ``ValueError`` that names the
file; a picture whose metadata are broken is decoded without them. Nothing of the process changes,
so images may be read in threads.

Without metadata: EXIF, XMP, colour profiles, texts and thumbnails say nothing about the pixels, but
decoders read them first and give up where they are malformed. Only containers are rewritten; the
coded pixels stay byte for byte.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from upfeat.errors import check_file

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFile import ImageFile


# Of PNG's ancillary chunks: transparency, and the orientation, which is read with care.
_PNG_KEPT = (b"tRNS", b"eXIf")

# Of JPEG's application segments: JFIF's and Adobe's, which says how colours are stored.
_JPEG_KEPT = (0xE0, 0xEE)

# Entries of a TIFF directory: XMP, IPTC, Photoshop, EXIF, colour profile, GPS, interoperability.
_TIFF_DROPPED = (700, 33723, 34377, 34665, 34675, 34853, 40965)


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG, JPEG, WebP, AVIF or TIFF file without its metadata; None for other content."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(content)
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp(content)
        if content[4:8] == b"ftyp":
            return _avif(content)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(content)
    except (struct.error, IndexError):  # the container itself is broken
        return None
    return None


def _png(content: bytes) -> bytes:
    kept, at = [content[:8]], 8
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        kind, chunk = content[at + 4 : at + 8], content[at : at + size + 12]
        ancillary = bool(kind[0] & 0x20)
        sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if not ancillary or (kind in _PNG_KEPT and sound):
            kept.append(chunk)
        at += len(chunk)
    return b"".join(kept)


def _jpeg(content: bytes) -> bytes:
    kept, at = [content[:2]], 2
    while content[at] == 0xFF and content[at + 1] != 0xDA:  # up to the start of the scan
        marker = content[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD7:  # filling, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        (size,) = struct.unpack_from(">H", content, at + 2)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _JPEG_KEPT:
            kept.append(content[at : at + 2 + size])
        at += 2 + size
    return b"".join((*kept, content[at:]))


def _webp(content: bytes) -> bytes:
    kept, at = [b"WEBP"], 12
    while at + 8 <= len(content):
        kind, (size,) = content[at : at + 4], struct.unpack_from("<I", content, at + 4)
        chunk = content[at : at + 8 + size + size % 2]
        if kind == b"VP8X":  # its flags of ICCP, EXIF and XMP
            chunk = chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:]
        if kind not in (b"ICCP", b"EXIF", b"XMP "):
            kept.append(chunk)
        at += len(chunk)
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _avif(content: bytes) -> bytes:
    # Items of a type that nobody knows are passed over; so no offset in the file changes.
    short = re.sub(rb"(infe\x02.{3}.{2}.{2})(Exif|mime)", rb"\1skip", content, flags=re.DOTALL)
    return re.sub(rb"(infe\x03.{3}.{4}.{2})(Exif|mime)", rb"\1skip", short, flags=re.DOTALL)


def _tiff(content: bytes) -> bytes:
    order = "<" if content[:2] == b"II" else ">"
    changed = bytearray(content)
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    size = 12  # of an entry: tag, type, count, value or offset
    for at in range(start + 2, start + 2 + size * count, size):
        (tag,) = struct.unpack_from(f"{order}H", content, at)
        if tag in _TIFF_DROPPED:  # a private tag, one byte long
            struct.pack_into(f"{order}HHII", changed, at, 65000, 1, 1, 0)
    struct.pack_into(f"{order}I", changed, start + 2 + size * count, 0)  # no further pictures
    return bytes(changed)


T = TypeVar("T")


def read_picture(
    source: str | os.PathLike[str] | bytes,
    use: "Callable[[ImageFile], T]",
    *,
    what: str = "image file",
    name: str | None = None,
    max_pixels: int | None = None,
) -> T:
    """Open an image and return what ``use`` makes of it.

    Args:
        source: a path, or the content of a file.
        use: called with the opened image, whose pixels are not decoded yet; it is called a second
            time, without the file's metadata, if it fails the first time.
        what: the file's role, for messages.
        name: the file's name for messages; default its path.
        max_pixels: limit of height times width; default Pillow's, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``: 178,956,970.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file, no image, a broken or an implausibly large one.
        PermissionError: the file may not be read.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from upfeat.data.opening import read_picture
        >>> stream = io.BytesIO()
        >>> Image.new("L", (6, 4)).save(stream, "png")
        >>> read_picture(stream.getvalue(), lambda image: (image.mode, image.size))
        ('L', (6, 4))
    """
    from PIL import Image, UnidentifiedImageError

    if not isinstance(source, bytes):
        source = Path(source).expanduser()
        check_file(source, what)
    shown = name or (f"the {what}" if isinstance(source, bytes) else str(source))
    try:
        return _used(source, use, max_pixels)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{shown} claims more pixels than the safety limit allows ({error}); if you trust the "
            "file, raise max_pixels (--max-pixels of upfeat upsample) or "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except PermissionError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{shown} cannot be read, it may be broken, or of a kind that Pillow does not know; "
            "convert it to PNG or JPEG"
        ) from error
    except MemoryError as error:
        raise ValueError(f"{shown} takes more memory than there is; reduce its size") from error
    # Decoders of broken files raise whatever their parser stumbles over.
    except Exception as error:
        raise ValueError(
            f"{shown} cannot be read, it may be broken or truncated: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _used(source: Path | bytes, use: "Callable[[ImageFile], T]", max_pixels: int | None) -> T:
    """Decode as the file is and, if that fails, without its metadata; the first error counts."""
    from PIL import Image

    filename = "" if isinstance(source, bytes) else str(source)
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
        try:
            with _identified(stream, filename, max_pixels) as image:
                return use(image)
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            stream.seek(0)
            plain = without_metadata(stream.read())
            if plain is None:
                raise
            try:
                with _identified(io.BytesIO(plain), "", max_pixels) as image:
                    return use(image)
            except Exception:  # noqa: BLE001  (it was not the metadata)
                pass
            raise


def _identified(stream: IO[bytes], filename: str, max_pixels: int | None) -> "ImageFile":
    """Open an image by Pillow's registry of plugins.

    ``Image.open`` does the same, but its limit of pixels and its warning below that belong to the
    whole process: neither can be set for one call without disturbing other threads.
    """
    from PIL import Image, UnidentifiedImageError

    if max_pixels is None and Image.MAX_IMAGE_PIXELS is not None:
        max_pixels = 2 * Image.MAX_IMAGE_PIXELS
    prefix, tried = stream.read(16), set()
    for load_plugins in (Image.preinit, Image.init):  # the common ones first
        load_plugins()
        for name in [name for name in Image.ID if name not in tried]:
            tried.add(name)
            factory, accepts = Image.OPEN[name]
            try:
                # A string is the reason why an image of this format cannot be read.
                if accepts and (not (fits := accepts(prefix)) or isinstance(fits, str)):
                    continue
                stream.seek(0)
                image: ImageFile = factory(stream, filename)
            except (SyntaxError, IndexError, TypeError, struct.error):  # not of this format
                continue
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(
                    f"{image.width} x {image.height} pixels, limit {max_pixels}"
                )
            return image
    raise UnidentifiedImageError("no plugin of Pillow knows the file")


# -- orientation -----------------------------------------------------------------------------------


def orientation(image: "Image.Image") -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 where it is missing or unreadable."""
    from PIL import ExifTags

    try:
        number = image.getexif().get(ExifTags.Base.Orientation, 1)
    # EXIF is no part of the picture; parsers of broken ones raise whatever they stumble over.
    except Exception:  # noqa: BLE001
        return 1
    return number if isinstance(number, int) and 1 <= number <= 8 else 1


def upright(image: "Image.Image") -> "Image.Image":
    """Return an image turned and mirrored as its EXIF orientation says."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    number = orientation(image)
    return image if number == 1 else image.transpose(turns[number])


def turned(stored: Tensor, number: int) -> Tensor:
    """Return a map (…, H, W) in stored geometry as :func:`upright` turns its image.

    Example:
        >>> import torch
        >>> from upfeat.data.opening import turned
        >>> turned(torch.tensor([[1, 2, 3], [4, 5, 6]]), 6).tolist()
        [[4, 1], [5, 2], [6, 3]]
    """
    if number in (5, 6, 7, 8):
        stored = stored.transpose(-2, -1)
    flipped = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}
    return torch.flip(stored, flipped[number]) if number in flipped else stored


def stored_orientation(source: str | os.PathLike[str] | bytes) -> int:
    """Return the EXIF orientation that an image file names, 1 to 8."""
    return read_picture(source, orientation)
