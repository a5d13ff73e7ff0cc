"""JPEG and PNG data to pixels, with every size bounded before memory is taken.

A few hundred bytes from the network can claim to be a picture of gigabytes. So the sizes are read first, by
libjpeg-turbo itself for JPEG (through simplejpeg) and from the checked chunks for PNG, and what cannot be read is
refused. A picture that its decoder warns of is refused too: it would look like a good one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np

from samfeat_core.errors import one_line
from samfeat_ros.image_error import ImageError, check_size

# Of the decoded picture and of what the decoder keeps beside it. 25 megapixels in colour.
MAX_DECODED_BYTES = 72 * 2**20
# A progressive JPEG has about ten. Each passes over the whole picture, however few bytes it has.
MAX_SCANS = 32

_JPEG_START, _PROGRESSIVE, _SCAN = b"\xff\xd8\xff", b"\xff\xc2", b"\xff\xda"
_JPEG_CHANNELS = {"Gray": 1, "YCbCr": 3, "RGB": 3}
_COEFFICIENT_BYTES = 2

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; 3, a palette, is no camera's
_PNG_FILTERS = 5
_INFLATE_STEP = 2**20


def decode(data: bytes) -> np.ndarray:
    """Pixels of a JPEG or PNG file, as it has them.

    Returns:
        (H, W) or (H, W, 3 or 4) in OpenCV's channel order, uint8 or uint16.

    Raises:
        ImageError: neither of the two, damaged, of a kind that no camera sends, or larger than the bounds.
    """
    if data.startswith(_JPEG_START):
        return _decode_jpeg(data)
    if data.startswith(_PNG_START):
        return _decode_png(data)
    raise ImageError("decode", f"{len(data)} bytes are neither JPEG nor PNG")


def _check_bytes(count: int, what: str) -> None:
    if count > MAX_DECODED_BYTES:
        raise ImageError("size", f"{what} decodes to {count} bytes, expected at most {MAX_DECODED_BYTES}")


# ---- JPEG ----


def _decode_jpeg(data: bytes) -> np.ndarray:
    try:
        import simplejpeg
    except ImportError:
        raise ImageError("encoding", "JPEG images need simplejpeg: pip install simplejpeg") from None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        check_size(width, height, "a JPEG image")
        if colours not in _JPEG_CHANNELS:
            raise ImageError("encoding", f"a JPEG image in {colours}, expected grey, YCbCr or RGB")
        _check_bytes(_jpeg_bytes(data, width, height, _JPEG_CHANNELS[colours]), f"a JPEG of {width}x{height}")
        image = simplejpeg.decode_jpeg(data, "GRAY" if colours == "Gray" else "BGR")
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError("decode", f"damaged JPEG of {len(data)} bytes: {one_line(error, 120)}") from error
    return image[..., 0] if colours == "Gray" else image


def _jpeg_bytes(data: bytes, width: int, height: int, channels: int) -> int:
    """What decoding takes: the pixels, and all coefficients too where the picture comes in several scans.

    Entropy-coded data never hold a marker, so counting markers can only find too many (those of a thumbnail).
    """
    scans = data.count(_SCAN)
    if scans > MAX_SCANS:
        raise ImageError("decode", f"a JPEG of {scans} scans, expected at most {MAX_SCANS}")
    buffered = scans > 1 or _PROGRESSIVE in data
    return width * height * channels * (1 + _COEFFICIENT_BYTES * buffered)


# ---- PNG ----


def _decode_png(data: bytes) -> np.ndarray:
    """Checks and inflates here, and hands OpenCV a file that holds nothing but correct rows."""
    chunks = list(_png_chunks(data))
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ImageError("decode", "damaged PNG: it does not begin with its header")
    header = chunks[0][1]
    width, height, depth, colour, *_, interlace = struct.unpack(">IIBBBBB", header)
    check_size(width, height, "a PNG image")
    if depth not in (8, 16) or colour not in _PNG_CHANNELS or interlace:
        kind = f"{depth} bits, colour type {colour}{', interlaced' * bool(interlace)}"
        raise ImageError("encoding", f"a PNG of {kind}; expected 8 or 16 bits, grey or colour, not interlaced")
    row_bytes = 1 + width * _PNG_CHANNELS[colour] * depth // 8
    _check_bytes(height * row_bytes, f"a PNG of {width}x{height}")
    rows = _inflate(b"".join(body for name, body in chunks if name == b"IDAT"), height * row_bytes)
    if rows.reshape(height, row_bytes)[:, 0].max() >= _PNG_FILTERS:
        raise ImageError("decode", "damaged PNG: a row has an unknown filter")
    stored = zlib.compress(rows.data, 0)
    image = cv2.imdecode(
        np.frombuffer(_PNG_START + _chunk(b"IHDR", header) + _chunk(b"IDAT", stored) + _chunk(b"IEND"), np.uint8),
        cv2.IMREAD_UNCHANGED,
    )
    if image is None:
        raise ImageError("decode", f"OpenCV cannot decode a PNG of {width}x{height}, {depth} bits, type {colour}")
    return image


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(name, content) of every chunk up to the end chunk. Lengths and checksums are right, or ImageError."""
    view, position, name = memoryview(data), len(_PNG_START), b""
    while name != b"IEND":
        if position + 12 > len(data):
            raise ImageError("decode", f"truncated PNG: {len(data)} bytes without an end chunk")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ImageError("decode", f"damaged PNG: a chunk of {length} bytes in a file of {len(data)}")
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ImageError("decode", f"damaged PNG: wrong checksum at byte {end}")
        yield name, view[position + 8 : end]
        position = end + 4


def _chunk(name: bytes, content: bytes | memoryview = b"") -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _inflate(data: bytes, size: int) -> np.ndarray:
    """(size,) uint8 of a zlib stream that holds exactly that much."""
    inflated, position, stream = np.empty(size, np.uint8), 0, zlib.decompressobj()
    try:
        while not stream.eof:
            part = stream.decompress(data, _INFLATE_STEP)
            data = stream.unconsumed_tail
            if position + len(part) > size or not (part or data or stream.eof):
                break
            inflated[position : position + len(part)] = np.frombuffer(part, np.uint8)
            position += len(part)
    except zlib.error as error:
        raise ImageError("decode", f"damaged PNG: {one_line(error)}") from error
    if not stream.eof or position != size:
        raise ImageError("decode", f"damaged PNG: its data are not the {size} bytes of its header")
    return inflated
