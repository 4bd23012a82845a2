"""Awkward pictures: each is either read as a person sees it or refused with a sentence."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from core.images import PictureError, PictureTooLargeError, as_rgb, cost, decode, resize

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(picture: Image.Image, picture_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, picture_format, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return decode(data, max_pixels=1_000_000)


def png_header(width: int, height: int) -> bytes:
    """A PNG that is cut off after claiming its size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)
    )


@pytest.mark.parametrize("picture_format", ["PNG", "WEBP", "BMP", "GIF", "JPEG"])
def test_reads_each_format_as_rgb(picture_format: str) -> None:
    options = {"lossless": True} if picture_format == "WEBP" else {}
    image = read(encode(Image.new("RGB", (6, 4), RED), picture_format, **options))
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.abs(image.astype(int) - RED).max() <= 2  # JPEG's colours are not exact


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stands_upright(orientation: int) -> None:
    # EXIF: which side of the stored rows and columns are top and left. Stored so, they all show `upright`.
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert image[..., 0].tolist() == upright.tolist()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    data = encode(Image.new("RGB", (6, 4), RED), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read(data).shape == (4, 6, 3)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 8])
def test_the_orientation_is_that_of_exif_and_not_of_xmp(picture_format: str, orientation: int | None) -> None:
    """Editors leave the old one in XMP when they turn a picture; browsers read EXIF alone."""
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    options: dict[str, Any] = {"xmp": xmp}
    if picture_format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": text}
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    data = encode(Image.new("RGB", (6, 4), RED), picture_format, **options)
    shape = (6, 4, 3) if orientation == 8 else (4, 6, 3)
    assert read(data).shape == shape
    with Image.open(io.BytesIO(data)) as image:
        assert as_rgb(image).shape == shape
        assert "tiff:Orientation" in str(image.info)  # the image is the caller's: it keeps what it has


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (4, 4), (*RED, 128))
    half.putpixel((0, 0), (0, 0, 255, 0))
    image = read(encode(half))
    assert tuple(image[0, 0]) == WHITE
    assert np.abs(image[1, 1].astype(int) - (255, 127, 127)).max() <= 1


def test_a_transparent_palette_colour_is_laid_over_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((0, 0), 0)
    image = read(encode(palette, transparency=0))
    assert tuple(image[0, 0]) == WHITE
    assert tuple(image[1, 1]) == RED


def test_grey_with_alpha() -> None:
    assert tuple(read(encode(Image.new("LA", (2, 2), (0, 0))))[0, 0]) == WHITE


def test_sixteen_bits_keep_their_upper_eight() -> None:
    deep = np.array([[0x0000, 0x00FF], [0x8000, 0xFFFF]], np.uint16)
    assert read(encode(Image.fromarray(deep)))[..., 1].tolist() == [[0x00, 0x00], [0x80, 0xFF]]


@pytest.mark.parametrize(("mode", "colour", "seen"), [("1", 1, 255), ("L", 90, 90)])
def test_grey_becomes_three_equal_channels(mode: str, colour: int, seen: int) -> None:
    assert (read(encode(Image.new(mode, (3, 3), colour))) == seen).all()


def test_cmyk_becomes_rgb() -> None:
    image = read(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(image.astype(int) - RED).max() <= 6


@pytest.mark.parametrize("picture_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read(picture_format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if picture_format == "WEBP" else {}
    image = read(encode(frames[0], picture_format, save_all=True, append_images=frames[1:], **options))
    assert tuple(image[0, 0]) == RED


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_bands_do_not_show(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    if mode == "I;16":
        picture = Image.fromarray(random.integers(0, 65536, (23, 17), np.uint16))
    else:
        picture = Image.fromarray(random.integers(0, 256, (23, 17, 4), np.uint8))
        picture = picture if mode == "RGBA" else picture.convert("LA" if mode == "LA" else "RGB").convert(mode)
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    for orientation in (1, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(picture, "JPEG" if mode == "CMYK" else "PNG", exif=exif, **options)
        whole = read(data)
        with monkeypatch.context() as patch:
            patch.setattr("core.images._BAND_PIXELS", 70)
            assert np.array_equal(read(data), whole)


# How far the memory of a process rises while it decodes, in bytes a pixel, beside what is announced.
_MEASURE_PEAKS = """
import io, sys
from pathlib import Path
from PIL import Image
from core.images import cost, decode

def memory(kind):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])

def save(picture, *words, **options):
    file = io.BytesIO()
    picture.save(file, *words, exif=exif, **options)
    return file.getvalue()

side, exif = 1600, Image.Exif()
exif[0x0112] = 6
rgb, clear = Image.effect_noise((side, side), 50).convert("RGB"), Image.new("RGBA", (side, side))
files = {
    "JPEG": save(rgb, "JPEG"),
    "JPEG in scans": save(rgb.convert("CMYK"), "JPEG", progressive=True, subsampling=0),
    "MPO": save(rgb, "MPO", save_all=True, append_images=[rgb]),
    "PNG": save(clear, "PNG", compress_level=1),
    "grey PNG": save(clear.convert("LA"), "PNG", compress_level=1),
    "WebP": save(rgb, "WEBP", method=0),
    "lossless WebP": save(clear, "WEBP", lossless=True, method=0),
}
for name, data in files.items():
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    decode(data, max_pixels=side**2)
    peak = memory("VmHWM") - before
    print(name, round(peak / side**2, 1), cost(data, max_pixels=side**2).peak_bytes / side**2, sep=",")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_decoding_is_as_announced() -> None:
    # What is freed goes back to the system at once, or the next picture would find it there.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE_PEAKS],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in run.stdout.splitlines():
        _, peak, announced = line.split(",")
        assert 3 < float(peak) <= float(announced) <= 17, line
    assert len(run.stdout.splitlines()) == 7


def test_what_will_be_refused_costs_nothing() -> None:
    assert cost(png_header(10, 10), max_pixels=100).pixels == 100
    for data in (b"", b"%PDF-1.7", png_header(10, 11)):
        assert cost(data, max_pixels=100) == (0, 0)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    # Refused for its size: reading the pixels would have failed first, for there are none.
    with pytest.raises(PictureTooLargeError, match=r"1001 x 1000 pixels; at most 1,000,000"):
        read(png_header(1001, 1000))
    with pytest.raises(PictureError, match="damaged or cut short"):
        read(png_header(1000, 1000))


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_picture_that_is_long_and_thin_is_refused_though_its_pixels_are_few(size: tuple[int, int]) -> None:
    data = png_header(*size)
    with pytest.raises(PictureTooLargeError, match=r"a side of at most 65,535 is allowed"):
        read(data)
    assert cost(data, max_pixels=1_000_000) == (0, 0)
    assert cost(png_header(65_535, 1), max_pixels=1_000_000).pixels == 65_535


@pytest.mark.parametrize("side", [10_000, 15_000, 2**31 - 1])
def test_decompression_bombs_are_refused(side: int) -> None:
    # Pillow warns of the first, and refuses to open the others.
    with pytest.raises(PictureTooLargeError):
        decode(png_header(side, side), max_pixels=89_000_000)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "The picture is empty."),
        (b"%PDF-1.7 not a picture", "not a picture in a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture in a known format"),
        (encode(Image.new("RGB", (64, 64)), "TIFF"), "not a picture in a known format"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:-200], "damaged or cut short"),
        (encode(Image.effect_noise((64, 64), 50), "PNG")[:-200], "damaged or cut short"),
    ],
)
def test_what_is_not_a_picture_is_refused_with_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence):
        read(data)


def test_a_compressed_bmp_is_refused() -> None:
    palette, pixels = bytes(1024), b"\x08\x05" * 8 + b"\0\1"
    start = 54 + len(palette)
    header = struct.pack(
        "<2sIIIIiiHHIIiiII",
        *(b"BM", start + len(pixels), 0, start, 40, 8, 8, 1, 8, 1, len(pixels), 0, 0, 256, 0),
    )
    with pytest.raises(PictureError, match="compressed BMP"):
        read(header + palette + pixels)


@pytest.mark.parametrize("picture_format", ["PNG", "WEBP", "BMP", "GIF", "JPEG"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # damaged EXIF blocks and the like
def test_damaged_bytes_raise_nothing_but_a_picture_error(picture_format: str) -> None:
    random = np.random.default_rng(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if picture_format in ("GIF", "BMP") else {"exif": exif}
    whole = np.frombuffer(encode(Image.effect_noise((24, 16), 80), picture_format, **options), np.uint8)
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        spots = random.integers(0, len(whole), random.integers(1, 9))
        damaged[spots] = random.integers(0, 256, len(spots))
        try:
            image = read(damaged[: random.integers(1, len(whole) + 1)].tobytes())
        except PictureError:
            refused += 1
        else:
            assert image.ndim == 3
    assert refused > 0


def test_resize_keeps_the_whole_picture_and_leaves_the_right_size_alone() -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 30:] = 200
    small = resize(image, 10)
    assert small.shape == (10, 10, 3)
    assert small[:, :4].max() < 10
    assert small[:, 6:].min() > 190
    assert resize(small, 10) is small


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_resize_refuses_what_is_not_rgb(image: np.ndarray) -> None:
    with pytest.raises(PictureError, match="must be uint8"):
        resize(image, 4)


class TestAsRgb:
    def test_rgb_is_left_alone(self) -> None:
        image = np.zeros((4, 5, 3), np.uint8)
        assert as_rgb(image) is image

    @pytest.mark.parametrize("dtype, white", [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0), (bool, True)])
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
    def test_grey_and_deep_arrays_are_scaled(self, dtype: type, white: float, shape: tuple[int, ...]) -> None:
        image = np.zeros(shape, dtype)
        image[0] = white
        rgb = as_rgb(image)
        assert rgb.shape == (4, 5, 3) and rgb.dtype == np.uint8
        assert (rgb[0] == 255).all() and (rgb[1:] == 0).all()

    def test_transparency_is_laid_over_white(self) -> None:
        image = np.zeros((2, 2, 4), np.uint8)
        image[0, 0, 3] = 255
        rgb = as_rgb(image)
        assert (rgb[0, 0] == 0).all() and (rgb[1] == 255).all()

    @pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "TIFF"])
    def test_a_pillow_image_is_turned_upright_once(self, picture_format: str) -> None:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        stored = Image.new("RGB", (48, 32), "red")
        stored.paste("blue", (0, 0, 48, 16))  # the upper half, which is the right one of the upright picture
        stored.save(buffer, picture_format, exif=exif)
        image = as_rgb(Image.open(buffer))
        assert image.shape == (48, 32, 3)
        assert np.abs(image[:, :8].astype(int) - (255, 0, 0)).max() <= 2
        assert np.abs(image[:, -8:].astype(int) - (0, 0, 255)).max() <= 2

    @pytest.mark.parametrize(
        "image", [np.full((2, 2), np.nan), np.zeros((2, 2, 5), np.uint8), np.zeros(3), np.zeros((2, 2), int), "a.png"]
    )
    def test_anything_else_is_refused(self, image: object) -> None:
        with pytest.raises(PictureError):
            as_rgb(image)
