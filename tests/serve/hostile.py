"""Uploads as strangers send them: odd, damaged, lying or malicious, endlessly many, and the same for the same seed."""

import functools
import io
import itertools
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

Random = np.random.Generator
Fields = list[tuple[str, bytes]]
READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A request's body. `readable`: there is nothing wrong with it, and it must be answered."""

    kind: str
    content_type: str
    body: bytes
    readable: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def uploads(seed: int, sane: Fields, hostile: Callable[[Random], tuple[str, bytes]]) -> Iterator[Upload]:
    """Endless. Every kind of picture, of framing and of field has its turn; what varies within a kind is drawn.

    Args:
        sane: fields with which a good picture is answered.
        hostile: draws a field that the route knows, with a value that is likely wrong.
    """
    rng = np.random.default_rng(seed)
    pictures, framings = itertools.cycle(PICTURES), itertools.cycle(FRAMINGS)
    while True:
        # Few kinds of framings, many of pictures: so that a few hundred hold all of them.
        for _ in range(3):
            make = next(pictures)
            yield Upload(
                kind=f"picture: {make.__name__}",
                content_type="multipart/form-data; boundary=b",
                body=form([("image", make(rng)), *sane]),
                readable=make in READABLE,
            )
        framing = next(framings)
        content_type, body = framing(rng, [("image", _noise_file(rng, "PNG")), *sane])
        yield Upload(kind=f"framing: {framing.__name__}", content_type=content_type, body=body)
        name, value = hostile(rng)
        picture: Fields = [] if name == "image_url" else [("image", _noise_file(rng, "PNG"))]
        others = [(other, sent) for other, sent in sane if other != name]
        yield Upload(
            kind=f"field: {name}={value[:60]!r}",
            content_type="multipart/form-data; boundary=b",
            body=form([*picture, *others, (name, value)]),
        )


def any_picture(seed: int) -> bytes:
    """A good or a bad one; good ones are about as many."""
    rng = np.random.default_rng(seed)
    kinds = PICTURES if rng.integers(2) else READABLE
    return kinds[rng.integers(len(kinds))](rng)


def classify_uploads(seed: int) -> Iterator[Upload]:
    """For `/v1/classify`."""

    def hostile(rng: Random) -> tuple[str, bytes]:
        return str(rng.choice(["top_k", "image", "image_url", "prompts", *STRANGE_NAMES])), _text(rng)

    return uploads(seed, [("top_k", b"1")], hostile)


def segment_uploads(seed: int, mask_format: str = "rle") -> Iterator[Upload]:
    """For `/v1/segment`."""
    names = ("prompts", "threshold", "refine", "max_instances", "format", "explain", "image_url", *STRANGE_NAMES)

    def hostile(rng: Random) -> tuple[str, bytes]:
        return str(rng.choice(names)), _text(rng)

    sane = [("prompts", b"red circle"), ("prompts", b"star"), ("format", mask_format.encode()), ("explain", b"1")]
    return uploads(seed, sane, hostile)


def form(fields: Fields, boundary: bytes = b"b") -> bytes:
    """A well-formed body; `image` is sent as a file."""
    parts = []
    for name, value in fields:
        file = b'; filename="p.png"\r\nContent-Type: image/png' if name == "image" else b""
        quoted = name.encode()
        parts.append(
            b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (boundary, quoted, file, value)
        )
    return b"".join([*parts, b"--%s--\r\n" % boundary])


def _text(rng: Random) -> bytes:
    """A value for a field of any type."""
    return TEXTS[rng.integers(len(TEXTS))]


STRANGE_NAMES = ("", "\x00", "\u202e", "a" * 5000, "__proto__", "image[]", "prompts.0")


TEXTS = (
    *(b"", b" ", b"\0", b"\r\n", b"\x1b[31m\x07\x08", b"\xff\xfe", b"\xed\xa0\x80", b"a" * 100_000, b"9" * 5000),
    *(b"nan", b"inf", b"-inf", b"1e309", b"-1", b"0", b"0x10", b"1_0", b"1.5", b"2147483648", b"True", b"null"),
    *(b"[]", b"{}", b"{{7*7}}", b"${jndi:ldap://127.0.0.1/a}", b"' OR 1=1 --", b"<script>alert(1)</script>"),
    *(b"../../../etc/passwd", b"%s%n%x", b"file:///etc/passwd", b"http://127.0.0.1:1/", b"http://[::1"),
    "\u202e\u200b\ufeff\U0001f600\u0301".encode(),
    "Z\u0351\u036b".encode() * 3000,
)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _size(rng: Random) -> tuple[int, int]:
    return int(rng.integers(1, 48)), int(rng.integers(1, 48))


def _noise(rng: Random, mode: str = "RGB") -> Image.Image:
    width, height = _size(rng)
    if mode in ("I;16", "F"):
        values = rng.integers(0, 65536, (height, width))
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.float32))
    pixels = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return pixels.convert("RGB").convert("LA" if mode == "PA" else mode) if mode not in ("RGBA",) else pixels


def save(picture: Image.Image, picture_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, picture_format, **options)
    return file.getvalue()


def _noise_file(rng: Random, picture_format: str, **options: Any) -> bytes:
    return save(_noise(rng), picture_format, **options)


def _any_file(rng: Random) -> bytes:
    return _noise_file(rng, str(rng.choice(READ_FORMATS)))


def _chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def _png(width: int, height: int, pixels: bytes, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _jpeg_with(rng: Random, marker: int, content: bytes) -> bytes:
    """A good JPEG with one more segment at its start."""
    data = _noise_file(rng, "JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def one_of_each_mode(rng: Random) -> bytes:
    mode = str(rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]))
    return save(_noise(rng, mode), "PNG")


def cmyk(rng: Random) -> bytes:
    return save(_noise(rng, "CMYK"), "JPEG")


def transparent_palette(rng: Random) -> bytes:
    options = {"transparency": bytes(rng.integers(0, 256, 256, dtype=np.uint8))} if rng.integers(2) else {}
    return save(_noise(rng, "P"), "PNG", **options)


def animation(rng: Random) -> bytes:
    first, rest = _noise(rng), [_noise(rng) for _ in range(5)]
    frames = [frame.resize(first.size) for frame in rest]
    return save(first, str(rng.choice(["GIF", "WEBP", "PNG"])), save_all=True, append_images=frames)


def extreme_proportions(rng: Random) -> bytes:
    long = int(rng.integers(2000, 16000))
    return save(Image.new("RGB", (long, 1) if rng.integers(2) else (1, long), "red"), str(rng.choice(["PNG", "JPEG"])))


def with_something_behind(rng: Random) -> bytes:
    return _any_file(rng) + bytes(rng.integers(0, 256, 5000, dtype=np.uint8))


def picture_that_is_an_archive(rng: Random) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../evil.py", "import os")
    return _any_file(rng) + archive.getvalue()


def picture_that_is_a_page(rng: Random) -> bytes:
    return _jpeg_with(rng, 0xFE, b"--><script>alert(1)</script><!--" + bytes(100))


def harmless_segments(rng: Random) -> bytes:
    return _jpeg_with(rng, 0xEF, bytes(rng.integers(0, 256, 60_000, dtype=np.uint8)))


def broken_exif(rng: Random) -> bytes:
    start = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if rng.integers(2) else b"MM\0*\0\0\0\x08")
    return _jpeg_with(rng, 0xE1, start + bytes(rng.integers(0, 256, rng.integers(0, 300), dtype=np.uint8)))


def exif_that_points_at_itself(rng: Random) -> bytes:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    orientation = struct.pack("<HHII", 0x0112, int(rng.integers(0, 14)), int(rng.integers(0, 2**32)), 8)
    return _jpeg_with(
        rng, 0xE1, b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + entry + b"\x08\0\0\0"
    )


def broken_tables_of_other_pictures(rng: Random) -> bytes:
    noise = bytes(rng.integers(0, 256, 200, dtype=np.uint8))
    tag = (b"MPF\0MM\0*\0\0\0\x08", b"MPF\0II*\0\x08\0\0\0", b"ICC_PROFILE\0\x01\x01", b"Adobe", b"JFIF\0")
    return _jpeg_with(rng, int(rng.choice([0xE0, 0xE2, 0xED, 0xEE])), tag[rng.integers(len(tag))] + noise)


def nothing(rng: Random) -> bytes:
    return b""


def random_bytes(rng: Random) -> bytes:
    magic = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBPVP8 ", b"GIF89a", b"BM", b"II*\0")
    return magic[rng.integers(len(magic))] + bytes(rng.integers(0, 256, rng.integers(1, 3000), dtype=np.uint8))


def other_files(rng: Random) -> bytes:
    texts = (
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file\n",
        b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
        b"push graphic-context\nfill 'url(https://127.0.0.1/|id)'\n",
        b"\x7fELF\x02\x01\x01" + bytes(200),
        b"PK\x03\x04" + bytes(100),
    )
    return texts[rng.integers(len(texts))]


def formats_that_are_not_read(rng: Random) -> bytes:
    kind = str(rng.choice(["TIFF", "PPM", "TGA", "ICO", "PCX", "SGI", "float TIFF"]))
    return save(_noise(rng, "F"), "TIFF") if kind == "float TIFF" else _noise_file(rng, kind)


def cut_short(rng: Random) -> bytes:
    whole = _any_file(rng)
    return whole[: rng.integers(1, len(whole))]


def flipped_bits(rng: Random) -> bytes:
    data = np.frombuffer(_any_file(rng), np.uint8).copy()
    spots = rng.integers(0, len(data), rng.integers(1, 20))
    data[spots] ^= (1 << rng.integers(0, 8, len(spots))).astype(np.uint8)
    return data.tobytes()


def two_halves(rng: Random) -> bytes:
    first, second = _any_file(rng), _any_file(rng)
    return first[: rng.integers(4, len(first))] + second[rng.integers(0, len(second)) :]


def huge_claims(rng: Random) -> bytes:
    width, height = (int(side) for side in rng.integers(1, [2**31, 2**31]))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: _png(width, height, zlib.compress(bytes(100))),
        lambda: _png(int(rng.integers(0, 2)), 2**31 - 1, b""),
        lambda: b"GIF89a" + struct.pack("<HHBBB", width % 65536, height % 65536, 0x80, 0, 0) + bytes(200),
        lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0),
        lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 6 + b"VP8L" + bytes(8),
        lambda: b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01" + bytes(50),
    )
    return kinds[rng.integers(len(kinds))]()


@functools.cache
def _deflated_zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 2**20), 9)


def bombs(rng: Random) -> bytes:
    """Small files that unpack to much, in the pixels or beside them, or are made of countless parts."""
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: _png(16, 16, _deflated_zeros(80)),
        lambda: _png(8, 8, zlib.compress(bytes(200)), _chunk(b"zTXt", b"a\0\0" + _deflated_zeros(80))),
        lambda: _png(8, 8, zlib.compress(bytes(200)), _chunk(b"iCCP", b"a\0\0" + _deflated_zeros(80))),
        lambda: _png(8, 8, zlib.compress(bytes(200)), *[_chunk(b"tEXt", b"a\0" + bytes(5000))] * 100),
        lambda: _png(8, 8, zlib.compress(bytes(200)), *[_chunk(b"abCd", b"")] * 30_000),
        lambda: b"\xff\xd8" + b"\xff\xe1\0\x08Exif\0\0" * 30_000 + _noise_file(rng, "JPEG")[2:],
        lambda: _progressive_bomb(rng),
    )
    return kinds[rng.integers(len(kinds))]()


def _progressive_bomb(rng: Random) -> bytes:
    """The last scan over and over: each costs a pass over all pixels."""
    whole = _noise_file(rng, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 200 + b"\xff\xd9"


def odd_headers(rng: Random) -> bytes:
    """Sizes of nothing, depths and colour types that do not exist."""
    width, height = _size(rng)
    depth, colour = int(rng.choice([0, 1, 2, 3, 8, 16, 255])), int(rng.choice([0, 1, 2, 3, 4, 6, 7]))
    rows = zlib.compress(bytes(rng.integers(0, 256, height * (width * 8 + 1), dtype=np.uint8)))
    palette = _chunk(b"PLTE", bytes(rng.integers(0, 800)))
    transparency = _chunk(b"tRNS", bytes(rng.integers(0, 300)))
    return _png(width * int(rng.integers(2)), height, rows, palette, transparency, depth=depth, colour=colour)


READABLE = (
    one_of_each_mode,
    cmyk,
    transparent_palette,
    animation,
    extreme_proportions,
    with_something_behind,
    picture_that_is_an_archive,
    picture_that_is_a_page,
    harmless_segments,
    broken_exif,
    exif_that_points_at_itself,
)
PICTURES = (
    *READABLE,
    broken_tables_of_other_pictures,
    nothing,
    random_bytes,
    other_files,
    formats_that_are_not_read,
    cut_short,
    flipped_bits,
    two_halves,
    huge_claims,
    bombs,
    odd_headers,
)


# --- framings ---------------------------------------------------------------------------------------------------------


def no_boundary(rng: Random, fields: Fields) -> tuple[str, bytes]:
    kinds = ("", "; boundary", "; boundary=", '; boundary=""', "; boundary=\x80", "; charset=utf-16")
    return f"multipart/form-data{rng.choice(kinds)}", form(fields)


def another_boundary(rng: Random, fields: Fields) -> tuple[str, bytes]:
    boundary = str(rng.choice(["c", "bb", "b" * 5000, "b b", '"b"', "-" * 70, "b; boundary=c"]))
    return f"multipart/form-data; boundary={boundary}", form(fields)


def other_types(rng: Random, fields: Fields) -> tuple[str, bytes]:
    kinds = ("application/json", "image/png", "text/plain", "multipart/mixed; boundary=b", "*/*", "", "x" * 5000)
    body = json.dumps({"image": "x"}).encode() if rng.integers(2) else form(fields)
    return str(rng.choice(kinds)), body


def other_charsets(rng: Random, fields: Fields) -> tuple[str, bytes]:
    """Codecs that are slow, unpack, are none, or hide behind quotes; the last of a name counts."""
    kinds = ("punycode", '"punycode"', "utf-8; charset=idna", "UTF-8", "us-ascii", "utf-7", "zlib", "", "nonsense")
    long = [("prompts", b"a" * 20_000 + b"-" + b"b" * 20_000)]
    return f"multipart/form-data; boundary=b; Charset={rng.choice(kinds)}", form([*fields, *long])


def cut_anywhere(rng: Random, fields: Fields) -> tuple[str, bytes]:
    whole = form(fields)
    return "multipart/form-data; boundary=b", whole[: rng.integers(0, len(whole) - 4)]


def bare_newlines(rng: Random, fields: Fields) -> tuple[str, bytes]:
    return "multipart/form-data; boundary=b", form(fields).replace(b"\r\n", bytes(rng.choice([b"\n", b"\r", b""])))


def bad_part_headers(rng: Random, fields: Fields) -> tuple[str, bytes]:
    headers = (
        b"",
        b"Content-Disposition",
        b"Content-Disposition: form-data",
        b'Content-Disposition: attachment; name="image"; filename="x"',
        b'Content-Disposition: form-data; name=""',
        b'Content-Disposition: form-data; name="image; filename=x',
        b"Content-Disposition: form-data; name=\"image\"; filename*=utf-8''%ff%fe",
        b'Content-Disposition: form-data; name="image"; filename*=nonsense',
        b'Content-Disposition: form-data; name="image"; filename="../../../etc/passwd"',
        b'Content-Disposition: form-data; name="image"; filename="\xff\0\x1b"',
        b'Content-Disposition: form-data; name="%s"' % (b"n" * 100_000),
        b'Content-Disposition: form-data; name="image"; filename="%s"' % (b"f" * 100_000),
        b'Content-Disposition: form-data; name="image"; filename="x"\r\nContent-Transfer-Encoding: base64',
        b'Content-Disposition: form-data; name="image"; filename="x"\r\nContent-Type: text/plain; charset=nonsense',
        b'Content-Disposition: form-data; name="top_k"\r\nContent-Type: text/plain; charset=utf-16',
        b"Bad Header: x\r\n" * 5 + b'Content-Disposition: form-data; name="image"',
        b"X: y\r\n" * 5000 + b'Content-Disposition: form-data; name="image"',
        b"X: " + b"y" * 100_000 + b'\r\nContent-Disposition: form-data; name="image"',
    )
    part = b"--b\r\n" + headers[rng.integers(len(headers))] + b"\r\n\r\n" + fields[0][1] + b"\r\n"
    return "multipart/form-data; boundary=b", part + form(fields[1:])


def many_parts(rng: Random, fields: Fields) -> tuple[str, bytes]:
    name = str(rng.choice(["image", "top_k", "prompts", "x"]))
    return "multipart/form-data; boundary=b", form([*fields, *[(name, b"1")] * int(rng.integers(2, 3000))])


def picture_as_text(rng: Random, fields: Fields) -> tuple[str, bytes]:
    return "multipart/form-data; boundary=b", form(fields).replace(b'; filename="p.png"', b"")


def no_picture(rng: Random, fields: Fields) -> tuple[str, bytes]:
    return "multipart/form-data; boundary=b", form(fields[1:])


def body_within_a_body(rng: Random, fields: Fields) -> tuple[str, bytes]:
    return "multipart/form-data; boundary=b", form([("image", form(fields, b"inner")), *fields[1:]])


def anything(rng: Random, fields: Fields) -> tuple[str, bytes]:
    noise = bytes(rng.integers(0, 256, rng.integers(0, 2000), dtype=np.uint8))
    return "multipart/form-data; boundary=b", b"--b" + noise


FRAMINGS = (
    no_boundary,
    another_boundary,
    other_types,
    other_charsets,
    cut_anywhere,
    bare_newlines,
    bad_part_headers,
    many_parts,
    picture_as_text,
    no_picture,
    body_within_a_body,
    anything,
)
