"""The pipeline's settings may change while a frame is in the network."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy")
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402

from samfeat_core.features import Features  # noqa: E402
from samfeat_ros.node.parameters import Parameters  # noqa: E402
from samfeat_ros.node.pipeline import Pipeline  # noqa: E402


class Extractor:
    """Finds nothing, and calls `meanwhile` while it looks."""

    max_keypoints, threshold, default_threshold = 1024, 0.5, 0.5

    def __init__(self):
        self.meanwhile = lambda: None

    def __call__(self, image, mask):
        self.meanwhile()
        return Features.empty((image.shape[1], image.shape[0]), 4)


def info(focal):
    return CameraInfo(
        width=8, height=6, distortion_model="plumb_bob", d=[0.1, 0.0, 0.0, 0.0, 0.0],
        k=[focal, 0.0, 4.0, 0.0, focal, 3.0, 0.0, 0.0, 1.0],
        p=[focal - 20, 0.0, 4.0, 0.0, 0.0, focal - 20, 3.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip


def test_what_changes_during_a_frame_holds_from_the_next_one_on():
    extractor, parameters = Extractor(), Parameters()
    pipeline = Pipeline(extractor, parameters)
    pipeline.set_camera_info(info(100.0))
    image = Image(width=8, height=6, step=8, encoding="mono8", data=np.arange(48, dtype=np.uint8).tobytes())

    def focal():
        return pipeline.track(pipeline.find(image)).camera.matrix[0, 0]

    assert focal() == 100
    extractor.meanwhile = lambda: pipeline.set_parameters(replace(parameters, rectified=True))
    focal()
    extractor.meanwhile = lambda: None
    assert [focal(), focal()] == [80, 80]
    extractor.meanwhile = lambda: pipeline.set_camera_info(info(200.0))
    focal()
    extractor.meanwhile = lambda: None
    assert [focal(), focal()] == [180, 180]


def test_the_wait_between_the_stages_counts_as_queue():
    pipeline = Pipeline(Extractor(), Parameters())
    found = pipeline.find(Image(width=8, height=6, step=8, encoding="mono8", data=bytes(48)))
    time.sleep(0.05)
    seconds = pipeline.track(found).seconds
    assert 0.05 <= seconds["queue"] < 1 and set(seconds) == {"decode", "network", "queue", "match"}
