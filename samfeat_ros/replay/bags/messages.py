"""What a bag is made of: topics and messages, and the one error about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from samfeat_core.errors import SamfeatError, one_line

MAX_UNPACKED = 2**30  # bytes of one decompressed chunk or message; more is damage, not data
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class BagError(SamfeatError):
    """A bag, or a topic of it, cannot be read. One line; names the file."""


@dataclass(frozen=True)
class BagTopic:
    """One topic of a bag: name, ROS 2 type (`sensor_msgs/msg/Image`), number of messages as the bag declares it."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class BagMessage:
    """One message: topic, ROS 2 type name, time of recording in nanoseconds, CDR bytes."""

    topic: str
    type: str
    time_ns: int
    data: bytes


@lru_cache(maxsize=1)
def typestore() -> Any:
    """The message types of rosbags; those of Jazzy, which for the types read here are those of every distribution."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


def decode(message: BagMessage) -> Any:
    """The message as a `rosbags` dataclass with the fields of the ROS message.

    Raises:
        BagError: its bytes are not a message of its type.
    """
    try:
        return typestore().deserialize_cdr(message.data, message.type)
    except Exception as error:  # rosbags leaks struct, Unicode, key and value errors
        raise BagError(f"{message.topic} at {message.time_ns} ns: not a {message.type} ({brief(error)})") from error


def brief(error: Exception) -> str:
    """Type and text of a foreign error in one line of at most 160 characters."""
    return one_line(f"{type(error).__name__}: {error}", 160)
