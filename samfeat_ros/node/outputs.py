"""The node's topics: what is published for one frame, and only where somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sensor_msgs.msg import Image, PointCloud, PointCloud2
from std_msgs.msg import Bool

from samfeat_ros import messages
from samfeat_ros.node.overlay import Overlay
from samfeat_ros.node.parameters import Parameters
from samfeat_ros.node.pipeline import Result
from samfeat_ros.qos import QOS_OVERRIDES, create_with_events, publisher_events, reliable

TOPICS = {
    "restart": Bool,
    "keypoints": PointCloud2,
    "descriptors": PointCloud2,
    "matches": PointCloud2,
    "tracks": PointCloud,
    "overlay": Image,
}


class Outputs:
    """Lifecycle publishers of a node for all `TOPICS`.

    Args:
        node: owns the publishers.
        warn: called with (key, text), for example when tracks are asked for without CameraInfo.
    """

    def __init__(self, node: Any, warn: Callable[[str, str], None]) -> None:
        self._node = node
        self._warn = warn
        self._drawing = Overlay()
        self._publishers = {
            name: create_with_events(
                node.create_lifecycle_publisher,
                kind,
                f"~/{name}",
                reliable(),
                event_callbacks=publisher_events(node, f"~/{name}"),
                qos_overriding_options=QOS_OVERRIDES,
            )
            for name, kind in TOPICS.items()
        }
        self._compose: dict[str, Callable[[Result, Parameters], Any]] = {
            "restart": self._restart,
            "keypoints": self._keypoints,
            "descriptors": self._descriptors,
            "matches": self._matches,
            "tracks": self._tracks,
            "overlay": self._overlay,
        }

    def destroy(self) -> None:
        """Remove the publishers from the graph."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def wanted(self) -> list[str]:
        """Names of the topics somebody listens to."""
        return [name for name, publisher in self._publishers.items() if publisher.get_subscription_count()]

    def publish(self, result: Result, parameters: Parameters, restarted: bool) -> None:
        """Publish everything that is wanted of one frame.

        Args:
            result: the frame.
            parameters: layout of the tracks, length of the tails.
            restarted: tell on `~/restart` that earlier tracks ended.
        """
        for name in self.wanted():
            if name == "restart" and not restarted:
                continue
            msg = self._compose[name](result, parameters)
            if msg is not None:
                self._publishers[name].publish(msg)

    def _restart(self, result: Result, parameters: Parameters) -> Bool:
        return Bool(data=True)

    def _keypoints(self, result: Result, parameters: Parameters) -> PointCloud2:
        return messages.keypoints_to_msg(result.header, result.features, result.matches.track_ids)

    def _descriptors(self, result: Result, parameters: Parameters) -> PointCloud2:
        return messages.descriptors_to_msg(result.header, result.features)

    def _matches(self, result: Result, parameters: Parameters) -> PointCloud2:
        return messages.matches_to_msg(
            result.header, result.features, result.features_prev, result.matches, result.stamp_prev_ns
        )

    def _tracks(self, result: Result, parameters: Parameters) -> PointCloud | None:
        if result.camera is None:
            self._warn("tracks", "~/tracks needs normalised coordinates, but no usable CameraInfo came on camera_info")
            return None
        ids, rays, points, velocities = tracks(result, parameters.tracks_min_length)
        return messages.tracks_to_msg(result.header, ids, rays, points, velocities, parameters.tracks_layout)

    def _overlay(self, result: Result, parameters: Parameters) -> Image:
        self._drawing.tail = parameters.overlay_tail
        if result.matches.restarted:
            self._drawing.reset()
        picture = self._drawing.draw(result.image, result.features, result.matches.track_ids, result.track_lengths)
        return messages.image_to_msg(result.header, picture)


def tracks(result: Result, min_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points that have been seen in at least `min_length` frames.

    Returns:
        ids (N,), rays (N, 2) undistorted normalised, points (N, 2) pixels, velocities (N, 2) of the rays in 1/s, zero
        for points that are new. Points for which the lens model has no ray are left out.
    """
    assert result.camera is not None
    points = result.features.keypoints
    rays = result.camera.normalize(points)
    keep = (result.track_lengths >= min_length) & np.isfinite(rays).all(axis=1)
    return result.matches.track_ids[keep], rays[keep], points[keep], _velocities(result, rays)[keep]


def _velocities(result: Result, rays: np.ndarray) -> np.ndarray:
    velocities = np.zeros_like(rays)
    if result.features_prev is None or result.stamp_prev_ns is None:
        return velocities
    elapsed = (messages.stamp_to_ns(result.header.stamp) - result.stamp_prev_ns) * 1e-9
    if elapsed <= 0:
        return velocities
    assert result.camera is not None
    followed = result.matches.inlier
    index, index_prev = result.matches.index[followed], result.matches.index_prev[followed]
    rays_prev = result.camera.normalize(result.features_prev.keypoints[index_prev])
    velocities[index] = np.nan_to_num((rays[index] - rays_prev) / elapsed)
    return velocities
