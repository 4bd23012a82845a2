"""Counts the parts of a picture file before it is read: millions of tiny ones keep a decoder busy for minutes.

Neither the number of pixels nor that of bytes bounds them. Pillow reads a JPEG's segments, a PNG's chunks and a GIF's
extensions in Python, some of them in quadratic time; a JPEG's scans are each a pass over all its pixels, for a dozen
bytes. Damage is not reported here: what cannot be followed is left to the decoder.
"""

import re
import struct

# Each several times what large real files have: ICC profiles and depth maps in JPEGs, text and animations in PNGs.
MAX_SEGMENTS = 500
MAX_SCANS = 64
MAX_LOOSE_BYTES = 100_000
MAX_CHUNKS = 20_000
# Writers cut a PNG's pixels into chunks of this size or more, as many as there are pixels for.
_PIXEL_CHUNK = 1024
MAX_BLOCKS = 100_000

# Neither a stuffed zero nor a restart, both of which belong to the pixels.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Of these a length follows. Others are taken to have no content, as Pillow does, or it would be a place to hide parts.
_HAVE_LENGTH = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE} - {0xC8}
_GIF_EXTENSION, _GIF_COMMENT = 0x21, b"\xfe"


def has_too_many(data: bytes) -> bool:
    """Whether the file is made of more parts than any program writes; False for formats other than those three."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_has(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_has(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif_has(data)
    return False


def _jpeg_has(data: bytes) -> bool:
    segments = scans = loose = 0
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        if not scans:  # bytes between segments, which a reader passes over one by one; later they are pixels
            loose += marker.start() - position
        code = data[marker.start() + 1]
        if code == _END_OF_IMAGE and scans:
            return False
        position = marker.end()
        if code in _HAVE_LENGTH:
            position += int.from_bytes(data[position : position + 2])
        segments += 1
        scans += code == _START_OF_SCAN
        if segments > MAX_SEGMENTS or scans > MAX_SCANS or loose > MAX_LOOSE_BYTES:
            return True
    return not scans and len(data) - position > MAX_LOOSE_BYTES


def _png_has(data: bytes) -> bool:
    position, chunks = 8, 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        chunks += kind != b"IDAT" or length < _PIXEL_CHUNK
        if chunks >= MAX_CHUNKS:
            return True
    return False


def _gif_has(data: bytes) -> bool:
    """Follows Pillow step by step, its liberties included: where the two part ways, parts could hide."""
    position = 13
    if len(data) > position and data[10] & 0x80:
        position += 3 << (data[10] & 7) + 1  # the palette
    inside, may_be_empty = False, 0
    for _ in range(MAX_BLOCKS):
        if position >= len(data):
            return False
        byte = data[position]
        if inside:
            position += 1 + byte
            if may_be_empty:
                may_be_empty -= 1
            else:
                inside = byte != 0
        elif byte == _GIF_EXTENSION:
            label = data[position + 1 : position + 2]
            position += 2
            first = data[position + 1 : position + 1 + data[position]] if position < len(data) else b""
            is_loop = label == b"\xff" and first.startswith(b"NETSCAPE2.0")
            inside, may_be_empty = True, 0 if label == _GIF_COMMENT else 1 + is_loop
        elif byte in b",;":  # the first picture, or the end
            return False
        else:
            position += 1
    return True
