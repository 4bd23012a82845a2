"""Pictures from untrusted bytes: decoded within limits, upright, RGB."""

import struct
import zlib
from io import BytesIO
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from core.picture_parts import has_too_many

# Each is decoded by code that is fuzzed upstream; Pillow's rarer formats are not worth their risk.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Above this Pillow itself starts to warn of decompression bombs.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485

# What Pillow's decoders are known to raise on damaged bytes, beside the OSError that they document.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)

# Which Pillow unpacks in Python, at a hundredth of the others' speed.
_BMP_RUN_LENGTHS = (1, 2)

# What makes an EXIF orientation upright: T swaps rows and columns, then V turns top to bottom, H left to right.
_UPRIGHT = {2: "H", 3: "VH", 4: "V", 5: "T", 6: "TH", 7: "TVH", 8: "TV"}
# Where Pillow looks for an orientation that EXIF lacks, and browsers do not: many editors leave an old one there.
_XMP = ("xmp", "XML:com.adobe.xmp")
# Bytes a pixel that `decode` takes at its peak: Pillow's 4 and the result's 3; where that is more, before the result is
# made, what libjpeg keeps of a file in several scans, at worst four channels, and what libwebp keeps.
_PEAK_BYTES = {"JPEG": 13, "MPO": 13, "WEBP": 17}
_USUAL_PEAK_BYTES = 8
# Longest side, JPEG's own. Scaling and drawing take memory by the side, however short the other one is.
MAX_SIDE = 65_535
# Pixels that are converted at once.
_BAND_PIXELS = 2**16


class PictureError(ValueError):
    """The bytes are not a picture that can be used; the message is a sentence for whoever sent them."""


class PictureTooLargeError(PictureError):
    """The picture has more pixels than are allowed."""


class Cost(NamedTuple):
    """What `decode` takes: pixels of its result, and bytes of memory at its peak, the result's among them."""

    pixels: int
    peak_bytes: int


def cost(data: bytes, *, max_pixels: int) -> Cost:
    """Of decoding a file, by its header; nothing, if `decode` will refuse it."""
    if has_too_many(data):
        return Cost(0, 0)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            _check_size(picture, max_pixels)
            pixels = picture.width * picture.height
            peak_bytes = _PEAK_BYTES.get(picture.format or "", _USUAL_PEAK_BYTES)
    except Exception:  # Pillow raises all kinds on damaged bytes, and again when `decode` opens them, which names them
        return Cost(0, 0)
    return Cost(pixels, pixels * peak_bytes)


def decode(data: bytes, *, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture as a person sees it: EXIF orientation applied, first frame, transparency laid over white.

    Sixteen-bit pictures keep their upper eight bits; CMYK is converted without a colour profile.

    Args:
        max_pixels: width times height at most, compared with the file's header before any pixel is decoded.

    Raises:
        PictureTooLargeError: there are more pixels than that, or more than `MAX_SIDE` in a row or column.
        PictureError: the bytes are empty, damaged, cut short, of a format not in `FORMATS`, or of a form that hardly
            any program writes and that would take long to read.
    """
    if not data:
        raise PictureError("The picture is empty.")
    if has_too_many(data):
        raise PictureError("The picture's file is made of more parts than any program writes.")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            _check_size(picture, max_pixels)
            if picture.format == "BMP" and picture.info.get("compression") in _BMP_RUN_LENGTHS:
                raise PictureError("The picture is a compressed BMP, a form that is not read.")
            picture.load()
            return _upright_rgb(picture)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureTooLargeError(f"The picture has more than {max_pixels:,} pixels.") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"The bytes are not a picture in a known format ({', '.join(FORMATS)}).") from error
    except _DECODER_ERRORS as error:
        raise PictureError("The picture is damaged or cut short.") from error


def resize(image: np.ndarray, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Scale to a square, bicubic and antialiased; other proportions are stretched, so that nothing is cut off.

    Raises:
        PictureError: the array is not uint8 `[height, width, 3]`.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PictureError(f"A picture must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}.")
    if image.shape[:2] == (side, side):
        return image
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def as_rgb(image: object) -> UInt8[np.ndarray, "height width 3"]:
    """A picture that is already in memory, as uint8 RGB: an array, or a Pillow image.

    Arrays are `[height, width]`, or with 1, 3 or 4 channels last; uint8 in [0, 255], uint16 in [0, 65535], bool, or
    floats in [0, 1]. Transparency is laid over white. A Pillow image is turned upright by its EXIF block, and the first
    frame taken.

    Raises:
        PictureError: it is none of these, is empty, or holds values outside that range.
    """
    if isinstance(image, Image.Image):
        try:
            image.load()  # turns a TIFF upright by itself: only what it leaves of the EXIF block is to be applied
            return _upright_rgb(image)
        except _DECODER_ERRORS as error:
            raise PictureError("The picture is damaged or cut short.") from error
    if not isinstance(image, np.ndarray):
        raise PictureError(f"A picture must be an array or a Pillow image, got {type(image).__name__}.")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise PictureError(f"A picture must be [height, width, 1, 3 or 4] with some pixels, got {list(image.shape)}.")
    shares = _as_shares(pixels)
    if shares.shape[2] == 4:
        shares = shares[..., :3] * shares[..., 3:] + 1 - shares[..., 3:]
    return np.array(np.broadcast_to(shares * 255 + 0.5, (*shares.shape[:2], 3)), np.uint8)


def _as_shares(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    if not np.issubdtype(pixels.dtype, np.floating):
        raise PictureError(f"A picture's values must be uint8, uint16, bool or floats, got {pixels.dtype}.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also if one is NaN
        raise PictureError(f"A picture of floats must lie in [0, 1], got {low:.3g} to {high:.3g}.")
    return pixels.astype(np.float32)


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise PictureTooLargeError(
            f"The picture has {picture.width} x {picture.height} pixels; at most {max_pixels:,} are allowed."
        )
    if max(picture.size) > MAX_SIDE:
        raise PictureTooLargeError(
            f"The picture has {picture.width} x {picture.height} pixels; a side of at most {MAX_SIDE:,} is allowed."
        )


def _upright_rgb(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Band by band straight to where the pixels belong: a large picture is in memory twice, and never more often."""
    turns = _turns(picture)
    height, width = picture.height, picture.width
    upright = np.empty((width, height, 3) if "T" in turns else (height, width, 3), np.uint8)
    # The same pixels, in the order of the file.
    stored = upright[:: -1 if "V" in turns else 1, :: -1 if "H" in turns else 1]
    if "T" in turns:
        stored = stored.swapaxes(0, 1)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = np.asarray(_to_rgb(band))
    return upright


def _turns(picture: Image.Image) -> str:
    # Not ImageOps.exif_transpose: it also writes the EXIF block anew, which fails on blocks that are merely untidy.
    xmp = {key: picture.info.pop(key) for key in _XMP if key in picture.info}
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return ""  # a photograph with a broken EXIF block is still a photograph
    finally:
        picture.info.update(xmp)
    return _UPRIGHT.get(orientation, "") if isinstance(orientation, int) else ""


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
        upper_bits = np.asarray(picture).astype(np.uint32) >> 8
        return Image.fromarray(upper_bits.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")
