"""From an image message to features, matches and tracks, in two stages. Knows messages, but no node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from samfeat_core.camera import Camera
from samfeat_core.extractor import FeatureExtractor
from samfeat_core.features import Features, Matches
from samfeat_core.tracking import HybridTracker, Tracker, make_tracker
from samfeat_ros.image_input import image_from_msg
from samfeat_ros.messages import camera_from_msg, stamp_to_ns
from samfeat_ros.node.parameters import Parameters


@dataclass(frozen=True)
class FoundFrame:
    """What the first stage has found in one image message.

    Attributes:
        header, encoding: of the image message.
        image: (H, W) grey or (H, W, 3) BGR uint8; mask: (H, W) uint8 or None.
        features: of the network.
        parameters: those of this frame.
        seconds: duration of decode and network. done: when the stage ended, monotonic seconds.
    """

    header: Header
    encoding: str
    image: np.ndarray
    mask: np.ndarray | None
    features: Features
    parameters: Parameters
    seconds: dict[str, float]
    done: float


@dataclass(frozen=True)
class ProcessedFrame:
    """What the node has computed of one image message.

    Attributes:
        header: of the image message, untouched.
        image: (H, W) grey or (H, W, 3) BGR uint8.
        features: rows of this frame, as its tracker gives them; features_prev: of the one before, None after a restart.
        matches: between the two, and the tracks of the rows.
        stamp_prev_ns: stamp of the previous frame, None after a restart.
        camera: intrinsics, None where no usable CameraInfo has come.
        seconds: duration of decode, network and match, and of the wait between the stages as queue.
    """

    header: Header
    image: np.ndarray
    features: Features
    features_prev: Features | None
    matches: Matches
    stamp_prev_ns: int | None
    camera: Camera | None
    seconds: dict[str, float]


class Pipeline:
    """Extractor and tracker, with what they remember between frames.

    `find` and `track` may run in two threads, so that one frame is in the network while the tracks of the one before go
    on. Others may call the setters and `reset`.

    Args:
        extractor: finds the features.
        parameters: validated; `set_parameters` replaces them between frames.
        mask: (H, W) uint8, 0 = no keypoints here; None = everywhere.
        warn: called with (key, text) when something is odd, but the frame is processed anyway.
        see: called with (width, height) of every image, before the extractor gets it.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        parameters: Parameters,
        mask: np.ndarray | None = None,
        warn: Callable[[str, str], None] = lambda key, text: None,
        see: Callable[[int, int], None] = lambda width, height: None,
    ) -> None:
        self.extractor = extractor
        self._tracker: Tracker | None = None
        self._tracker_name = ""
        self._warn, self._see = warn, see
        # Workers that were told to stop may still be in a stage.
        self._finding, self._tracking = threading.Lock(), threading.Lock()
        self._mask = mask
        self._resized_mask: tuple[np.ndarray, np.ndarray] | None = None  # the mask it was made from, and itself
        self._camera_info: CameraInfo | None = None
        self._camera: tuple[CameraInfo, bool, Camera] | None = None  # what it was made from, and itself
        self._encoding: str | None = None
        self._stamp_ns: int | None = None
        self._must_reset = False
        self.set_parameters(parameters)
        self._tracker_with(parameters)  # the tracker loads its compiled code now, not with the first frame

    def set_parameters(self, parameters: Parameters) -> None:
        """Use these parameters from the next frame on."""
        self._parameters = parameters

    def set_mask(self, mask: np.ndarray) -> None:
        """Use this (H, W) uint8 mask from the next frame on."""
        self._mask = mask

    def set_camera_info(self, msg: CameraInfo) -> None:
        """Use these intrinsics from the next frame on."""
        if self._camera_info is None or not _same_intrinsics(msg, self._camera_info):
            self._camera_info = msg

    def reset(self) -> None:
        """Restart the tracks with the next frame."""
        self._must_reset = True

    def find(self, msg: Image | CompressedImage) -> FoundFrame:
        """The first stage: decode one image message and find its features.

        Raises:
            ImageError: the image cannot be used. NoEngineError: there is no engine for its size yet.
            SamfeatError: the engine failed.
        """
        with self._finding:
            parameters = self._parameters
            start = time.monotonic()
            image = image_from_msg(msg, parameters.full_scale_16bit)
            decoded = time.monotonic()
            self._see(image.shape[1], image.shape[0])
            mask = self._mask_of(image)
            features = self._extractor_with(parameters)(image, mask)
            done = time.monotonic()
        encoding = msg.format if isinstance(msg, CompressedImage) else msg.encoding
        seconds = {"decode": decoded - start, "network": done - decoded}
        return FoundFrame(msg.header, encoding, image, mask, features, parameters, seconds, done)

    def track(self, found: FoundFrame) -> ProcessedFrame:
        """The second stage: continue the tracks into the frame. Frames come in their order."""
        with self._tracking:
            start = time.monotonic()
            tracker = self._tracker_with(found.parameters)
            if self._must_reset or found.encoding != self._encoding:
                self._must_reset, self._encoding = False, found.encoding
                tracker.reset()
            stamp_ns, stamp_prev_ns = stamp_to_ns(found.header.stamp), self._stamp_ns
            camera = self._camera_of(found.image, found.parameters.rectified)
            matches = tracker.update(found.features, stamp_ns, camera, found.image, found.mask)
            assert tracker.current is not None
            self._stamp_ns = stamp_ns
            return ProcessedFrame(
                header=found.header,
                image=found.image,
                features=tracker.current,
                features_prev=tracker.previous,
                matches=matches,
                stamp_prev_ns=None if matches.restarted else stamp_prev_ns,
                camera=camera,
                seconds={**found.seconds, "queue": start - found.done, "match": time.monotonic() - start},
            )

    def _extractor_with(self, parameters: Parameters) -> FeatureExtractor:
        extractor = self.extractor
        if extractor.max_keypoints != parameters.max_keypoints:
            extractor.max_keypoints = parameters.max_keypoints
        threshold = extractor.default_threshold if parameters.threshold < 0 else parameters.threshold
        if extractor.threshold != threshold:
            extractor.threshold = threshold
        return extractor

    def _tracker_with(self, parameters: Parameters) -> Tracker:
        """The tracker with these parameters; another one if another is asked for."""
        tracker = self._tracker
        if tracker is None or self._tracker_name != parameters.tracker:
            tracker = self._tracker = make_tracker(parameters.tracker)
            self._tracker_name = parameters.tracker
        if isinstance(tracker, HybridTracker):
            tracker.max_points = parameters.max_keypoints
            tracker.memory, tracker.spacing = parameters.track_memory, parameters.track_spacing
            tracker.grid = parameters.track_grid
        tracker.min_similarity = None if parameters.min_similarity <= -1 else parameters.min_similarity
        tracker.ratio = None if parameters.ratio >= 1 else parameters.ratio
        tracker.verify = parameters.verify
        tracker.threshold_px = parameters.inlier_threshold
        tracker.max_gap_s = parameters.max_gap
        return tracker

    def _mask_of(self, image: np.ndarray) -> np.ndarray | None:
        """The mask at the size of the image."""
        mask, shape = self._mask, image.shape[:2]
        if mask is None or mask.shape == shape:
            return mask
        if self._resized_mask is None or self._resized_mask[0] is not mask or self._resized_mask[1].shape != shape:
            have, want = (f"{size[1]}x{size[0]}" for size in (mask.shape, shape))
            self._warn("mask size", f"the mask is {have}, the image {want}: resizing the mask")
            self._resized_mask = mask, cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST)
        return self._resized_mask[1]

    def _camera_of(self, image: np.ndarray, rectified: bool) -> Camera | None:
        """The camera, if CameraInfo is usable and of this image size."""
        info = self._camera_info
        if info is None:
            return None
        if self._camera is None or self._camera[0] is not info or self._camera[1] != rectified:
            try:
                self._camera = info, rectified, camera_from_msg(info, rectified)
            except ValueError as error:
                self._warn("camera_info", f"camera_info is not used: {error}")
                return None
        camera, (height, width) = self._camera[2], image.shape[:2]
        # Some drivers leave the size out.
        if camera.width and camera.height and (camera.width, camera.height) != (width, height):
            self._warn(
                "camera_info size",
                f"camera_info is not used: it is for {camera.width}x{camera.height}, the image is {width}x{height}",
            )
            return None
        return camera


def _same_intrinsics(a: Any, b: Any) -> bool:
    """Equal but for the header, which changes with every frame."""
    names = ("height", "width", "distortion_model", "binning_x", "binning_y", "roi")
    return all(getattr(a, name) == getattr(b, name) for name in names) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("d", "k", "p")
    )
