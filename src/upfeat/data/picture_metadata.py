"""Image files without what describes them, for pictures whose description is broken.

EXIF, XMP, colour profiles, texts and thumbnails say nothing about the pixels, but decoders read
them first and give up where they are malformed. Only containers are rewritten here; the coded
pixels stay byte for byte.
"""

import re
import struct
import zlib

__all__ = ["without_metadata"]

# Of PNG's ancillary chunks: transparency, and the orientation, which is read with care.
_PNG_KEPT = (b"tRNS", b"eXIf")

# Of JPEG's application segments: JFIF's and Adobe's, which says how colours are stored.
_JPEG_KEPT = (0xE0, 0xEE)

# Entries of a TIFF directory: XMP, IPTC, Photoshop, EXIF, colour profile, GPS, interoperability.
_TIFF_DROPPED = (700, 33723, 34377, 34665, 34675, 34853, 40965)


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG, JPEG, WebP, AVIF or TIFF file without its metadata; None for other content.

    Args:
        content: the whole file.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from upfeat.data.picture_metadata import without_metadata
        >>> stream = io.BytesIO()
        >>> Image.new("RGB", (8, 8)).save(stream, "png", dpi=(300, 300))
        >>> b"pHYs" in stream.getvalue(), b"pHYs" in without_metadata(stream.getvalue())
        (True, False)
    """
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
