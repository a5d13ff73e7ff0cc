"""The node's publishers: the messages of one frame, on those topics that somebody listens to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image, PointCloud, PointCloud2
from std_msgs.msg import Bool

from samfeat_ros import messages
from samfeat_ros.node.overlay import Overlay, track_colors
from samfeat_ros.node.parameters import Parameters
from samfeat_ros.node.pipeline import ProcessedFrame
from samfeat_ros.qos import QOS_OVERRIDES, create_with_events, publisher_events, reliable
from samfeat_ros.topics import OUTPUTS, is_installed, message_class


class Outputs:
    """Lifecycle publishers of a node for all `samfeat_ros.topics.OUTPUTS` whose types are installed.

    Args:
        node: owns the publishers.
        warn: called with (key, text) when a topic cannot be served, as tracks without CameraInfo.
    """

    def __init__(self, node: Any, warn: Callable[[str, str], None]) -> None:
        self._node = node
        self._warn = warn
        self._drawing = Overlay()
        self._publishers = {
            name: create_with_events(
                node.create_lifecycle_publisher,
                message_class(output.type),
                f"~/{name}",
                reliable(),
                event_callbacks=publisher_events(node, f"~/{name}"),
                qos_overriding_options=QOS_OVERRIDES,
            )
            for name, output in OUTPUTS.items()
            if not output.optional or is_installed(output.type)
        }
        self._compose: dict[str, Callable[[ProcessedFrame, Parameters], Any]] = {
            "restart": self._restart,
            "keypoints": self._keypoints,
            "descriptors": self._descriptors,
            "matches": self._matches,
            "tracks": self._tracks,
            "overlay": self._overlay,
            "overlay/compressed": self._overlay_compressed,
            "annotations": self._annotations,
        }
        self._drawn: tuple[ProcessedFrame, np.ndarray] | None = None

    def destroy(self) -> None:
        """Remove the publishers from the graph."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def wanted(self) -> list[str]:
        """Names of the topics somebody listens to."""
        return [name for name, publisher in self._publishers.items() if publisher.get_subscription_count()]

    def publish(self, frame: ProcessedFrame, parameters: Parameters, restarted: bool) -> None:
        """Publish everything that is wanted of one frame.

        Args:
            parameters: layout of the tracks, length of the tails.
            restarted: tell on `~/restart` that earlier tracks ended.
        """
        wanted = [name for name in self.wanted() if name != "restart" or restarted]
        # All are composed before the first is published: a frame goes out whole or not at all.
        composed = [(name, self._compose[name](frame, parameters)) for name in wanted]
        for name, msg in composed:
            if msg is not None:
                self._publishers[name].publish(msg)

    def _restart(self, frame: ProcessedFrame, parameters: Parameters) -> Bool:
        return Bool(data=True)

    def _keypoints(self, frame: ProcessedFrame, parameters: Parameters) -> PointCloud2:
        return messages.keypoints_to_msg(frame.header, frame.features, frame.matches)

    def _descriptors(self, frame: ProcessedFrame, parameters: Parameters) -> PointCloud2:
        return messages.descriptors_to_msg(frame.header, frame.features)

    def _matches(self, frame: ProcessedFrame, parameters: Parameters) -> PointCloud2:
        return messages.matches_to_msg(
            frame.header, frame.features, frame.features_prev, frame.matches, frame.stamp_prev_ns
        )

    def _tracks(self, frame: ProcessedFrame, parameters: Parameters) -> PointCloud | None:
        if frame.camera is None:
            self._warn("tracks", "~/tracks needs normalised coordinates, but no usable CameraInfo came on camera_info")
            return None
        ids, rays, points, velocities = tracks(frame, parameters.tracks_min_length)
        return messages.tracks_to_msg(frame.header, ids, rays, points, velocities, parameters.tracks_layout)

    def _overlay(self, frame: ProcessedFrame, parameters: Parameters) -> Image:
        return messages.image_to_msg(frame.header, self._picture(frame, parameters))

    def _overlay_compressed(self, frame: ProcessedFrame, parameters: Parameters) -> CompressedImage:
        return messages.image_to_compressed_msg(frame.header, self._picture(frame, parameters))

    def _annotations(self, frame: ProcessedFrame, parameters: Parameters) -> Any:
        return messages.points_to_image_marker(
            frame.header, frame.features.keypoints, track_colors(frame.matches.lengths)
        )

    def _picture(self, frame: ProcessedFrame, parameters: Parameters) -> np.ndarray:
        """The overlay of a frame, drawn once for both of its topics."""
        if self._drawn is None or self._drawn[0] is not frame:
            self._drawing.tail = parameters.overlay_tail
            if frame.matches.restarted:
                self._drawing.reset()
            self._drawn = frame, self._drawing.draw(frame.image, frame.features, frame.matches)
        return self._drawn[1]


def tracks(frame: ProcessedFrame, min_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points that have been seen in at least `min_length` frames.

    Returns:
        ids (N,), rays (N, 2) undistorted normalised, points (N, 2) pixels, velocities (N, 2) of the rays in 1/s, zero
        for points that are new. Points for which the lens model has no ray are left out.
    """
    assert frame.camera is not None
    points = frame.features.keypoints
    rays = frame.camera.normalize(points)
    keep = (frame.matches.lengths >= min_length) & np.isfinite(rays).all(axis=1)
    return frame.matches.track_ids[keep], rays[keep], points[keep], _velocities(frame, rays)[keep]


def _velocities(frame: ProcessedFrame, rays: np.ndarray) -> np.ndarray:
    velocities = np.zeros_like(rays)
    if frame.features_prev is None or frame.stamp_prev_ns is None:
        return velocities
    elapsed = (messages.stamp_to_ns(frame.header.stamp) - frame.stamp_prev_ns) * 1e-9
    if elapsed <= 0:
        return velocities
    assert frame.camera is not None
    followed = frame.matches.inlier
    index, index_prev = frame.matches.index[followed], frame.matches.index_prev[followed]
    rays_prev = frame.camera.normalize(frame.features_prev.keypoints[index_prev])
    velocities[index] = np.nan_to_num((rays[index] - rays_prev) / elapsed)
    return velocities
