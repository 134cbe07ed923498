"""Every kind of image, made here with Pillow, against the pixels that were put in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from upfeat.data import image_size, read_image

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)


def grey(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).expand(3, -1, -1)


def check(image: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    assert image.dtype == torch.float32
    assert image.shape == expected.shape
    assert image.is_contiguous()
    torch.testing.assert_close(image, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    check(read_image(path), as_tensor(RGB))
    check(read_image(str(path)), as_tensor(RGB))
    with Image.open(path) as image:
        check(read_image(image), as_tensor(RGB))


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    check(read_image(tmp_path / "a.jpg"), as_tensor(smooth), atol=0.04)


# How Pillow must turn the upright picture so that the orientation tag turns it back.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(RGB)
    turn = STORED[orientation]
    stored = image if turn is None else image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    check(read_image(tmp_path / f"a.{suffix}"), as_tensor(RGB))
    assert image_size(tmp_path / f"a.{suffix}") == (7, 5)


def test_exif_orientation_of_a_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 40, 30)


def test_grey_and_bilevel(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    check(read_image(tmp_path / "grey.png"), grey(RGB[..., 0] / 255))
    Image.fromarray(RGB[..., 0] > 127).save(tmp_path / "bilevel.png")
    check(read_image(tmp_path / "bilevel.png"), grey(RGB[..., 0] > 127))


def on_white(color: np.ndarray, alpha: np.ndarray) -> torch.Tensor:
    a = alpha[..., None].astype(np.float32) / 255
    mixed = color.astype(np.float32) / 255 * a + (1 - a)
    return torch.from_numpy(mixed.transpose(2, 0, 1))


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    alpha = RGB[..., 1]
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "rgba.png")
    check(read_image(tmp_path / "rgba.png"), on_white(RGB, alpha))
    light = np.repeat(RGB[..., :1], 3, axis=2)
    Image.fromarray(np.dstack([RGB[..., 0], alpha]), mode=None).save(tmp_path / "la.png")
    with Image.open(tmp_path / "la.png") as image:
        assert image.mode == "LA"
    check(read_image(tmp_path / "la.png"), on_white(light, alpha))


def test_premultiplied_modes() -> None:
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    check(read_image(Image.fromarray(opaque).convert("RGBa")), as_tensor(RGB))
    light = Image.fromarray(opaque[..., [0, 3]])
    check(read_image(light.convert("La")), grey(RGB[..., 0] / 255))


def test_palette(tmp_path: Path) -> None:
    indices = np.arange(35, dtype=np.uint8).reshape(7, 5) % 4
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    image = Image.fromarray(indices, mode=None).convert("P")
    image.putpalette(colors.tobytes())
    image.putdata(indices.ravel().tolist())
    image.save(tmp_path / "opaque.png")
    check(read_image(tmp_path / "opaque.png"), as_tensor(colors[indices]))

    image.save(tmp_path / "clear.png", transparency=2)
    expected = colors[indices].copy()
    expected[indices == 2] = 255
    check(read_image(tmp_path / "clear.png"), as_tensor(expected))

    image.save(tmp_path / "levels.png", transparency=bytes([255, 0, 128, 255]))
    levels = np.array([255, 0, 128, 255], np.uint8)[indices]
    check(read_image(tmp_path / "levels.png"), on_white(colors[indices], levels))


def test_transparent_color_of_a_plain_image(tmp_path: Path) -> None:
    pixels = RGB.copy()
    pixels[0, 0] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    expected = pixels.copy()
    expected[0, 0] = 255
    check(read_image(tmp_path / "a.png"), as_tensor(expected))


def test_sixteen_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (7, 5), dtype=np.uint16)
    values[0, :2] = 0, 65535
    for suffix in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
        check(read_image(tmp_path / f"deep.{suffix}"), grey(values / 65535))
    big_endian = Image.frombytes("I;16B", (5, 7), values.astype(">u2").tobytes())
    check(read_image(big_endian), grey(values / 65535))
    check(read_image(Image.fromarray(values.astype(np.int32))), grey(values / 65535))
    check(read_image(values), grey(values / 65535))


def test_integer_images_without_a_known_range() -> None:
    with pytest.raises(ValueError, match="70000 have no known range"):
        read_image(Image.fromarray(np.array([[0, 70000]], np.int32)))
    with pytest.raises(ValueError, match="from -5"):
        read_image(Image.fromarray(np.array([[-5, 7]], np.int32)))


def test_float_image() -> None:
    values = np.random.default_rng(2).random((7, 5), dtype=np.float32)
    check(read_image(Image.fromarray(values)), grey(values))
    with pytest.raises(ValueError, match="looks like 0 to 255"):
        read_image(Image.fromarray(values * 255))


def test_cmyk(tmp_path: Path) -> None:
    flat = np.empty((16, 16, 3), np.uint8)
    flat[:] = (200, 40, 90)
    cmyk = Image.fromarray(flat).convert("CMYK")
    cmyk.save(tmp_path / "a.tiff")
    check(read_image(tmp_path / "a.tiff"), as_tensor(flat))
    # Pillow writes CMYK JPEGs as Adobe does: inverted, with the marker that says so.
    cmyk.save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    check(read_image(tmp_path / "a.jpg"), as_tensor(flat), atol=0.03)
    check(read_image(Image.fromarray(flat).convert("YCbCr")), as_tensor(flat), atol=0.01)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    check(read_image(path), as_tensor(red))


# -- arrays and tensors --------------------------------------------------------------------------


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.bool_]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    ),
    st.sampled_from([None, 1, 3]),
)
def test_arrays(array: np.ndarray, channels: int | None) -> None:
    top = 1 if array.dtype == np.bool_ else np.iinfo(array.dtype).max
    shaped = array if channels is None else np.repeat(array[..., None], channels, axis=2)
    check(read_image(shaped), grey(array / top))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_with_and_without_alpha(dtype: type) -> None:
    values = np.random.default_rng(3).random((4, 6, 4)).astype(dtype)
    color, alpha = values[..., :3].astype(np.float32), values[..., 3:].astype(np.float32)
    check(read_image(values[..., :3]), torch.from_numpy(color.transpose(2, 0, 1)))
    mixed = (color * alpha + 1 - alpha).transpose(2, 0, 1)
    check(read_image(values), torch.from_numpy(mixed))


@pytest.mark.parametrize("kind", ["u2", "f2", "f4", "f8"])
def test_both_byte_orders(kind: str) -> None:
    values = np.random.default_rng(4).random((4, 6, 3))
    if kind == "u2":
        values = (values * 65535).round()
    little, big = values.astype(f"<{kind}"), values.astype(f">{kind}")
    assert torch.equal(read_image(big), read_image(little))


def test_strided_arrays_are_not_changed() -> None:
    array = RGB[::-1, ::2]
    before = array.copy()
    image = read_image(array)
    image.zero_()
    assert np.array_equal(array, before)


def test_tensors(device: torch.device) -> None:
    tensor = torch.rand(3, 4, 6, device=device)
    image = read_image(tensor)
    assert image.device == tensor.device
    check(image, tensor)
    check(read_image(tensor[:1]), tensor[:1].expand(3, -1, -1))
    check(read_image(tensor.double()), tensor)
    eight_bit = (tensor * 255).round().to(torch.uint8)
    check(read_image(eight_bit), eight_bit.float() / 255)
    check(read_image(tensor.requires_grad_()), tensor.detach())


def test_a_hair_outside_the_range_is_clamped() -> None:
    image = read_image(torch.tensor([-5e-4, 0.5, 1 + 5e-4]).expand(3, 1, 3))
    assert (image.min(), image.max()) == (0, 1)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.randn(3, 8, 8).sub(0.5), "looks normalised"),
        (torch.rand(3, 8, 8) * 255, "looks like 0 to 255"),
        (torch.rand(3, 8, 8) * 3000, "scale it first"),
        (torch.full((3, 2, 2), float("nan")), "NaN"),
        (torch.full((3, 2, 2), float("inf")), "must be in"),
        (torch.rand(8, 8), r"must be \(3, H, W\)"),
        (torch.rand(1, 3, 8, 8), "one image of the batch at a time"),
        (torch.rand(8, 9, 3), "channels-last"),
        (torch.rand(3, 0, 8), "got"),
        (torch.ones(3, 2, 2, dtype=torch.int64), "torch.int64"),
    ],
)
def test_tensor_errors(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_image(tensor)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), "channels-first"),
        (np.zeros((2, 8, 8, 3), np.uint8), "list of images"),
        (np.zeros((8, 8, 5), np.uint8), "5"),
        (np.zeros((0, 8, 3), np.uint8), "not empty"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8), 200, np.int64), r"from 200 to 200: if 255 is white, \.astype\(np.uint8\)"),
        (np.full((8, 8), 4095, ">i4"), r"if 65535 is white, \.astype\(np.uint16\)"),
        (np.full((8, 8), 70_000, np.uint32), "70000 to 70000; divide it by the value of white"),
        (np.full((8, 8), -1, np.int16), "-1 to -1; divide it"),
        (np.full((8, 8), "x"), "got <U1$"),
        (np.full((8, 8, 3), -1.5), "looks normalised"),
        (np.full((8, 8, 3), 200.0), "divide it by 255"),
    ],
)
def test_array_errors(array: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_image(array)


def test_other_types() -> None:
    with pytest.raises(ValueError, match="dict"):
        read_image({"image": 1})  # type: ignore[arg-type]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def encoded(suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(stream, suffix)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    content = encoded(suffix)
    path = tmp_path / f"broken.{suffix.lower()}"
    for keep in (0, 3, 40, len(content) // 2):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"broken\."):
            read_image(path)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png cannot be read.*convert it to PNG"):
        read_image(path)
    with pytest.raises(ValueError, match=r"text\.png cannot be read.*convert it to PNG"):
        image_size(path)


def test_damaged_data(tmp_path: Path) -> None:
    content = bytearray(encoded("PNG"))
    content[60:] = bytes(len(content) - 60)
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.png"):
        read_image(path)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((4, 5), 200, np.float32), "looks like 0 to 255"),
        (np.full((4, 5), -0.5, np.float32), "looks normalised"),
        (np.full((4, 5), np.nan, np.float32), "holds NaN"),
        (np.full((4, 5), 70_000, np.int32), "no known range"),
    ],
)
def test_values_out_of_range_are_no_broken_file(
    tmp_path: Path, pixels: np.ndarray, words: str
) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=rf"a\.tiff: .*{words}") as error:
        read_image(path)
    assert "broken" not in str(error.value)
    assert image_size(path) == (4, 5)


def test_truncated_pil_image(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded("JPEG")[:1500])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(path) as image, pytest.raises(ValueError, match=r"half\.jpg"):
        read_image(image)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png claims more pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    assert read_image(path).shape == (3, 100, 100)
