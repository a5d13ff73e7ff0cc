"""A recording: the images of one topic of a bag, each with the CameraInfo that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samfeat_ros.replay.bags import Bag, BagError
from samfeat_ros.stamps import NS_PER_S, cdr_stamp_ns
from samfeat_ros.topics import CAMERA_INFO, IMAGE_TYPES


@dataclass(frozen=True)
class ImageMessage:
    """One image message as the bag holds it: not decoded, and maybe not usable.

    Attributes:
        stamp_ns: of the header. time_ns: of recording.
        image: CDR bytes of the Image or CompressedImage. camera_info: CDR bytes of the CameraInfo, None without one.
        number: in the topic, 0 = first.
    """

    stamp_ns: int
    time_ns: int
    image: bytes
    camera_info: bytes | None = None
    number: int = 0


class Recording:
    """The images of one topic of a bag, each with the last CameraInfo recorded before it (the first one, until then).

    Args:
        path: bag folder or file, ROS 2 (MCAP, sqlite3) or ROS 1.
        image_topic: None = the only image topic of the bag; those with "depth" in their name do not count.
        camera_info_topic: None = `camera_info` beside the image topic, or the only one of the bag, or none.
        limit: read at most that many images.
        start_s, duration_s: leave out images recorded earlier than so many seconds after the first one, and take those
            of so many seconds from there on; None = all.

    Raises:
        BagError: no such bag or topic; the line lists the image topics that are there.
    """

    def __init__(
        self,
        path: str | Path,
        image_topic: str | None = None,
        camera_info_topic: str | None = None,
        limit: int | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> None:
        self.bag, self.limit = Bag(path), limit
        self._start_ns = round(start_s * NS_PER_S)
        self._end_ns = None if duration_s is None else self._start_ns + round(duration_s * NS_PER_S)
        topics = self.bag.image_topics
        topics = [topic for topic in topics if "depth" not in topic.name] or topics
        if image_topic is None and not topics:
            raise BagError(f"{self.bag.path}: holds no topic of type Image or CompressedImage")
        if image_topic is None and len(topics) > 1:
            names = ", ".join(sorted(topic.name for topic in topics))
            raise BagError(f"{self.bag.path}: name the image topic; image topics there: {names}")
        topic = self.bag.require(image_topic or topics[0].name, IMAGE_TYPES)
        self.image_topic, self.image_type = topic.name, topic.type
        self.count = topic.count if limit is None else min(limit, topic.count)
        if not self.count:
            raise BagError(f"{self.bag.path}: topic {topic.name!r} holds no images")
        self.camera_info_topic = self._camera_info_topic(camera_info_topic)

    def _camera_info_topic(self, asked: str | None) -> str | None:
        if asked is not None:
            return self.bag.require(asked, (CAMERA_INFO,)).name
        infos = [topic.name for topic in self.bag.topics.values() if topic.type == CAMERA_INFO and topic.count]
        namespace = self.image_topic.rsplit("/", 1)[0]
        # image transports append their name to the topic: /camera/image_raw/compressed belongs to /camera/camera_info
        for candidate in (f"{namespace}/camera_info", f"{namespace.rsplit('/', 1)[0]}/camera_info"):
            if candidate in infos:
                return candidate
        return infos[0] if len(infos) == 1 else None

    def messages(self) -> Iterator[ImageMessage]:
        """The image messages in order of recording; each call reads the bag again."""
        info = self._first_camera_info()
        wanted = [self.image_topic, *([self.camera_info_topic] if self.camera_info_topic else [])]
        number, taken, first_ns = -1, 0, None
        for message in self.bag.messages(wanted):
            if message.topic == self.camera_info_topic:
                info = message.data
                continue
            try:
                stamp = cdr_stamp_ns(message.data)
            except ValueError:
                self.bag.problems.append(f"{self.image_topic} at {message.time_ns} ns: too short to be an image")
                continue
            number += 1
            first_ns = message.time_ns if first_ns is None else first_ns
            since_first = message.time_ns - first_ns
            if self._end_ns is not None and since_first >= self._end_ns:
                return
            if since_first < self._start_ns:
                continue
            yield ImageMessage(stamp, message.time_ns, message.data, info, number)
            taken += 1
            if taken == self.limit:
                return

    def _first_camera_info(self) -> bytes | None:
        if not self.camera_info_topic:
            return None
        return next((message.data for message in self.bag.messages([self.camera_info_topic])), None)

    @property
    def first(self) -> ImageMessage:
        """The first image message.

        Raises:
            BagError: not one image could be read.
        """
        message = next(self.messages(), None)
        if message is None:
            raise BagError(f"{self.bag.path}: no image of topic {self.image_topic!r} could be read")
        return message

    def close(self) -> None:
        self.bag.close()
