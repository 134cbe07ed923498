"""What is in a file and must not end a run: pipes, plugins' exceptions, broken metadata, size."""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from upfeat.data import image_size, read_image
from upfeat.data import images as images_module
from upfeat.data.depth import DepthMapFolder
from upfeat.data.layouts import hash_files, read_npy, read_numbers
from upfeat.data.mask_sets import RleMasks, read_labels
from upfeat.data.opening import read_picture, stored_orientation, without_metadata
from upfeat.data.records import FilePart, ImageRecord, shorter_sides
from upfeat.data.segmentation import read_label
from upfeat.data.sets.bsds500 import RegionData, RegionFile
from upfeat.data.tar_shards import TarRecords

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


@pytest.fixture
def _deadline() -> Iterator[None]:
    """Turn waiting for a pipe into a failure."""

    def late(*_: object) -> None:
        raise TimeoutError("no answer in 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# -- what is no file -------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "read_image": read_image,
    "image_size": image_size,
    "read_label": read_label,
    "read_numbers": lambda path: read_numbers(path, "label", ""),
    "read_npy": read_npy,
    "hash_files": lambda path: hash_files([path]),
    "file_part": lambda path: FilePart(path).read(),
    "record": lambda path: ImageRecord("a", FilePart(path)).read_image(),
    "record_of_a_shard": lambda path: ImageRecord("a", FilePart(path, 0, 9)).read_image(),
    "depth_map": lambda path: DepthMapFolder(path.parent, path.name)(
        ImageRecord("a", FilePart(path))
    ),
    "regions": lambda path: RegionData("set", ()).read(RegionFile("a", _photo(path), (path,))),
    "shard": lambda path: TarRecords([path]),
}


def _photo(beside: Path) -> Path:
    path = beside.with_name("photo.ppm")
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.mark.usefixtures("_deadline")
@pytest.mark.parametrize("suffix", ["png", "npy", "mat", "tar"])
@pytest.mark.parametrize("reader", READERS)
def test_nobody_waits_for_a_pipe(tmp_path: Path, reader: str, suffix: str) -> None:
    path = tmp_path / f"pipe.{suffix}"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=rf"pipe\.{suffix} is a named pipe"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_folders_and_links_to_nowhere_are_named(tmp_path: Path, reader: str) -> None:
    folder, loop = tmp_path / "folder.png", tmp_path / "loop.png"
    folder.mkdir()
    loop.symlink_to(loop)
    with pytest.raises(ValueError, match=r"folder\.png is a folder"):
        READERS[reader](folder)
    with pytest.raises((ValueError, FileNotFoundError), match=r"loop\.png"):
        READERS[reader](loop)


def test_sizes_of_a_collection_pass_over_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    records = [ImageRecord("a", FilePart(tmp_path / name)) for name in ("pipe.png", "loop.png")]
    assert shorter_sides(records).tolist() == [-1, -1]  # type: ignore[arg-type]


# -- what decoders raise ---------------------------------------------------------------------------


@pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow with AVIF")
def test_an_avif_that_its_plugin_cannot_decode(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((96, 64), 60).convert("RGB").save(stream, "AVIF")
    path = tmp_path / "bad.avif"
    path.write_bytes(stream.getvalue().replace(b"iloc", b"xxxx"))
    with pytest.raises(Exception) as pillow, Image.open(path) as image:  # noqa: PT011
        image.load()
    assert not isinstance(pillow.value, OSError | SyntaxError)
    for read in (read_image, image_size, read_label):
        with pytest.raises(ValueError, match=r"bad\.avif cannot be read"):
            read(path)


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError(), ZeroDivisionError("0")])
@pytest.mark.parametrize("reader", ["read_image", "image_size", "read_label", "record"])
def test_any_exception_of_a_plugin_is_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reader: str
) -> None:
    Image.init()

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setitem(Image.OPEN, "PPM", (refuse, lambda prefix: prefix[:1] == b"P"))
    path = tmp_path / "bad.ppm"
    Image.fromarray(PIXELS).save(path)
    with pytest.raises(ValueError, match=r"bad\.ppm"):
        READERS[reader](path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff{", b"[" * 100_000, bytes(range(256)) * 4],
)
def test_any_content_of_label_and_depth_files(tmp_path: Path, content: bytes) -> None:
    for name in ("a.png", "a.npy"):
        (tmp_path / name).write_bytes(content)
        record = ImageRecord("a", FilePart(tmp_path / name))
        with pytest.raises(ValueError, match="no depth of a"):
            DepthMapFolder(tmp_path, name)(record)
    with pytest.raises(ValueError, match="label image"):
        read_labels(content)
    with pytest.raises(ValueError):  # noqa: PT011  (the caller names the file)
        RleMasks.from_json(content)


def test_depth_of_the_other_byte_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.5, 2]], ">f4"))
    depth = DepthMapFolder(tmp_path, "{stem}.npy")(ImageRecord("a", FilePart(tmp_path / "a.png")))
    assert depth.tolist() == [[[1.5, 2]]]
    np.save(tmp_path / "a.npy", np.array([["x"]]))
    with pytest.raises(ValueError, match=r"a\.npy holds <U1, expected numbers"):
        read_npy(tmp_path / "a.npy")


# -- broken metadata -------------------------------------------------------------------------------

FORMATS = {
    "PNG": {},
    "JPEG": {"quality": 95, "comment": b"hello"},
    "WEBP": {"lossless": True},
    "AVIF": {},
    "TIFF": {},
}


def _described(kind: str) -> tuple[bytes, slice]:
    """A file with EXIF, and where the EXIF lies in it."""
    stream, image = io.BytesIO(), Image.fromarray(PIXELS)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if kind == "TIFF":
        tags = ImageFileDirectory_v2()
        tags[0x8769] = {0x9003: "2020:01:01 00:00:00", 0x829A: 0.01}
        tags[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
        image.save(stream, "TIFF", tiffinfo=tags, icc_profile=profile)
        content = stream.getvalue()
        with Image.open(io.BytesIO(content)) as stored:
            start = stored.tag_v2[0x8769]  # type: ignore[attr-defined]
        return content, slice(start, start + 30)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 1, "Maker", 72.0
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0x829A: 0.01})
    image.save(stream, kind, exif=exif, icc_profile=profile, **FORMATS[kind])
    content, block = stream.getvalue(), exif.tobytes().removeprefix(b"Exif\x00\x00")
    start = content.index(block)
    return content, slice(start, start + len(block))


def _with_right_sums(content: bytes) -> bytes:
    """Correct the checksum of a PNG's EXIF chunk."""
    start = content.find(b"eXIf")
    if start < 0:
        return content
    end = start + 4 + struct.unpack_from(">I", content, start - 4)[0]
    return content[:end] + struct.pack(">I", zlib.crc32(content[start:end])) + content[end + 4 :]


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_broken_exif_does_not_condemn_the_picture(tmp_path: Path, kind: str, sums: bool) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("needs a Pillow with AVIF")
    content, place = _described(kind)
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(content)
    expected, length = read_image(path), place.stop - place.start
    draw = random.Random(0)
    for _ in range(12):
        damaged = bytearray(content)
        first = draw.randrange(length // 2)
        for i in range(place.start + first, place.start + draw.randrange(first + 1, length + 1)):
            damaged[i] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(_with_right_sums(bytes(damaged)) if sums else bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about corrupt EXIF
            image, turned = read_image(path), stored_orientation(path)
            assert image_size(path) == tuple(image.shape[1:])
        if turned == 1:  # the damage may have hit the orientation itself
            assert torch.equal(image, expected)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"eXIf", b"\x00\x08\x00\x02\x01\x12\x00\x03\x00\x00"),
        (b"eXIf", b""),
        (b"pHYs", b"\x00"),
        (b"iCCP", b"name"),
        (b"iTXt", b"XML:com.adobe.xmp\x00\x01\x00\x00\x00broken"),
        (b"zTXt", b"Raw profile type exif\x00\x00broken"),
        (b"tEXt", b"Raw profile type exif\x00\n\n\nzz"),
        (b"cHRM", b"\x01\x02\x03"),
        (b"acTL", b"\x00"),
        (b"tIME", b""),
    ],
)
@pytest.mark.parametrize("sound", [True, False])
def test_broken_chunks_beside_the_pixels_of_a_png(
    tmp_path: Path, kind: bytes, body: bytes, sound: bool
) -> None:
    sums = zlib.crc32(kind + body) ^ (0 if sound else 1)
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", sums)
    path = tmp_path / "a.png"
    for read, pixels in ((read_image, PIXELS), (read_label, PIXELS[..., 0])):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        content = stream.getvalue()
        path.write_bytes(content)
        expected = read(path)
        for at in (33, len(content) - 12):  # behind the header, before the end
            path.write_bytes(content[:at] + chunk + content[at:])
            assert torch.equal(read(path), expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_broken_pixels_are_still_an_error(tmp_path: Path, kind: str) -> None:
    """Leaving metadata out repairs nothing else."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("needs a Pillow with AVIF")
    content, _ = _described(kind)
    path = tmp_path / f"broken.{kind.lower()}"
    for keep in (20, len(content) // 3):
        path.write_bytes(content[:keep])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=r"broken\."):
                read_image(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_metadata_are_really_left_out(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("needs a Pillow with AVIF")
    content, _ = _described(kind)
    plain = without_metadata(content)
    assert plain is not None
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(plain)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        if kind == "TIFF":
            assert 0x8769 in before.getexif()
            assert 0x8769 not in after.getexif()
        else:
            assert before.getexif().get(0x010F) == "Maker"
            assert kind == "PNG" or 0x010F not in after.getexif()
    assert without_metadata(b"GIF89a") is None
    assert without_metadata(content[:5]) is None


# -- sizes and threads -----------------------------------------------------------------------------


@pytest.fixture
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # an error above 1000, a warning above 500


@pytest.mark.usefixtures("_small_limit")
def test_max_pixels_of_one_call(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png claims more pixels.*50 x 40.*--max-pixels"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=2000).shape == (3, 40, 50)
    with pytest.raises(ValueError, match="limit 1999"):
        read_image(tmp_path / "a.png", max_pixels=1999)
    for reader in ("image_size", "read_label", "record"):
        with pytest.raises(ValueError, match="claims more pixels"):
            READERS[reader](tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.usefixtures("_small_limit")
def test_threads_leave_the_warnings_of_the_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large pictures warn in the user's own calls, before, while and after ours are read."""
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    decode, during = images_module._pixels, []

    def slow(image: Image.Image) -> object:
        during.append(list(warnings.filters))
        return decode(image)

    monkeypatch.setattr(images_module, "_pixels", slow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            shapes = {tuple(image.shape) for image in pool.map(read_image, [path] * 64)}
        assert shapes == {(3, 20, 30)}
        assert all(filters == before for filters in during)
        assert warnings.filters == before
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(path)


def test_threads_may_load_the_plugins(tmp_path: Path) -> None:
    """The rarer formats are known to Pillow only after a second round of imports."""
    Image.fromarray(PIXELS).save(tmp_path / "a.tga")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(read_image, [tmp_path / "a.tga"] * 32))
    assert all(torch.equal(image, read[0]) for image in read)
    assert read_picture(tmp_path / "a.tga", lambda image: image.format) == "TGA"
