"""Files of countless parts are refused at once; what programs write, however lavishly, is not."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.images import PictureError, decode
from core.picture_parts import has_too_many

MANY = 300_000


def encode(picture_format: str, side: int = 8, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(file, picture_format, **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg(*parts: bytes, **options: Any) -> bytes:
    """With these at its start."""
    data = encode("JPEG", **options)
    return data[:2] + b"".join(parts) + data[2:]


def scanned(times: int) -> bytes:
    """The last scan of a progressive JPEG, repeated."""
    data = encode("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + b"\xff\xd9"


def chunk(tag: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + tag + content + struct.pack(">I", zlib.crc32(tag + content))


def png(*chunks: bytes) -> bytes:
    data = encode("PNG")
    return data[:33] + b"".join(chunks) + data[33:]  # after the header


def gif(extensions: bytes) -> bytes:
    data = encode("GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + extensions + data[start:]


def in_pieces(data: bytes, size: int) -> bytes:
    """A PNG whose pixels stand in chunks of this size."""
    pixels, position = b"", 33
    while position < len(data):
        length, tag = struct.unpack_from(">I4s", data, position)
        if tag == b"IDAT":
            pixels += data[position + 8 : position + 8 + length]
        position += 12 + length
    pieces = [chunk(b"IDAT", pixels[start : start + size]) for start in range(0, len(pixels), size)]
    return data[:33] + b"".join(pieces) + chunk(b"IEND", b"")


LAVISH = {
    "photograph with profile, preview and depth map": jpeg(*[segment(0xE1, bytes(60_000))] * 300, side=64),
    "progressive JPEG": encode("JPEG", progressive=True),
    "large PNG in pieces of a kilobyte": in_pieces(encode("PNG", side=2700, compress_level=0), 1024),
    "JPEG with restarts": encode("JPEG", side=256, restart_marker_blocks=1),
    "JPEG and a film behind it": encode("JPEG") + np.random.default_rng(0).bytes(5_000_000),
    "JPEG with the markers of scans in its comment": jpeg(segment(0xFE, b"\xff\xda\0\2" * 10_000)),
    "JPEG cut short": encode("JPEG", side=64)[:-500],
    "PNG in small pieces": png(*[chunk(b"tEXt", b"a\0" + bytes(1000))] * 15_000),
    "GIF with a long comment": gif(b"\x21\xfe" + (b"\xff" + bytes([65] * 255)) * 80_000 + b"\0"),
    "animation": encode("GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")] * 200, loop=0),
    "WebP": encode("WEBP"),
    "BMP": encode("BMP"),
}


@pytest.mark.parametrize("name", LAVISH)
def test_what_programs_write_is_read(name: str) -> None:
    assert not has_too_many(LAVISH[name])
    if "cut short" not in name:
        assert decode(LAVISH[name], max_pixels=8_000_000).ndim == 3


BOMBS = {
    "empty segments": jpeg(segment(0xEF, b"") * MANY),
    "EXIF in pieces": jpeg(segment(0xE1, b"Exif\0\0" + b"a" * 20) * MANY),
    "empty segments after an early end": jpeg(b"\xff\xd9" + segment(0xFE, b"") * MANY),
    "bytes between segments": jpeg(b"a" * MANY),
    "fill bytes": jpeg(b"\xff" * MANY),
    "restarts between segments": jpeg(b"\xff\xd0" * MANY),
    "parts hidden in a marker without content": jpeg((b"\xff\xf0\xff\xff" + bytes(65533)) * 10),
    "nothing but bytes": b"\xff\xd8\xff" + b"a" * MANY,
    "scans": scanned(100),
    "empty chunks": png(chunk(b"abCd", b"") * MANY),
    "empty pieces of pixels": png(chunk(b"IDAT", b"") * MANY),
    "short pieces of pixels": png(chunk(b"IDAT", bytes(1023)) * 20_000),
    "large pieces of what is not pixels": png(chunk(b"abCd", bytes(1024)) * 20_000),
    "comments": gif(b"\x21\xfe\1a\0" * MANY),
    "short pieces of a comment": gif(b"\x21\xfe" + b"\1a" * MANY + b"\0"),
    "extensions": gif(b"\x21\1\1a\0" * MANY),
    "extensions behind a stray byte": gif(b"a" + b"\x21\xfe\1a\0" * MANY),
    "extensions behind an empty one": gif(b"\x21\1\0\1a\0" + b"\x21\xfe\1a\0" * MANY),
    "extensions behind an empty loop": gif(b"\x21\xff\x0bNETSCAPE2.0\0\1a\0" + b"\x21\xfe\1a\0" * MANY),
    "bytes between extensions": gif(b"a" * MANY),
}


@pytest.mark.parametrize("name", BOMBS)
def test_countless_parts_are_refused_at_once(name: str) -> None:
    started = time.process_time()
    with pytest.raises(PictureError, match="more parts than any program writes"):
        decode(BOMBS[name], max_pixels=100_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "GIF"])
def test_damaged_files_are_left_to_the_decoder(picture_format: str) -> None:
    random = np.random.default_rng(3)
    whole = np.frombuffer(encode(picture_format, side=32), np.uint8)
    for _ in range(300):
        damaged = whole.copy()
        spots = random.integers(0, len(whole), random.integers(1, 9))
        damaged[spots] = random.integers(0, 256, len(spots))
        assert not has_too_many(damaged[: random.integers(0, len(whole) + 1)].tobytes())
