"""Stamps of ROS messages as nanoseconds.

Needs no ROS: the messages of rclpy and those of rosbags have the same fields, and a serialised message is bytes.
"""

from __future__ import annotations

import struct
from typing import Any

NS_PER_S = 1_000_000_000
_CDR_STAMP = slice(4, 12)  # the encapsulation header has 4 bytes, a std_msgs/Header begins with its stamp


def join_ns(sec: int, nanosec: int) -> int:
    """Seconds and nanoseconds to nanoseconds."""
    return int(sec) * NS_PER_S + int(nanosec)


def split_ns(nanoseconds: int) -> tuple[int, int]:
    """Nanoseconds to (seconds, nanoseconds), the fields of a builtin_interfaces/Time."""
    return divmod(int(nanoseconds), NS_PER_S)


def stamp_to_ns(stamp: Any) -> int:
    """builtin_interfaces/Time to nanoseconds."""
    return join_ns(stamp.sec, stamp.nanosec)


def cdr_stamp_ns(cdr: bytes) -> int:
    """Stamp in nanoseconds of a serialised message that begins with a std_msgs/Header.

    Raises:
        ValueError: there are too few bytes for a header.
    """
    if len(cdr) < _CDR_STAMP.stop:
        raise ValueError(f"{len(cdr)} bytes are too few for a message with a header")
    return join_ns(*struct.unpack(_cdr_format(cdr), cdr[_CDR_STAMP]))


def with_cdr_stamp(cdr: bytes, stamp_ns: int) -> bytes:
    """The serialised message with another stamp in its header."""
    return cdr[: _CDR_STAMP.start] + struct.pack(_cdr_format(cdr), *split_ns(stamp_ns)) + cdr[_CDR_STAMP.stop :]


def _cdr_format(cdr: bytes) -> str:
    """int32 seconds and uint32 nanoseconds; the second byte of a CDR message tells the byte order."""
    return "<iI" if cdr[1] & 1 else ">iI"
