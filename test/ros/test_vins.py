"""`~/tracks` against the rules by which the VINS back-ends read it, for every lens model of CameraInfo.

The rules: their callbacks take channels by number, cut ids to integers, want z to be exactly 1, and put everything into
a row of x, y, z, u, v, vx, vy. The lenses are written down here once more, from their equations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("rclpy")
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from sensor_msgs.msg import CameraInfo, PointCloud  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from samfeat_core.features import Features, Matches  # noqa: E402
from samfeat_ros import messages  # noqa: E402
from samfeat_ros.node.outputs import tracks  # noqa: E402
from samfeat_ros.node.pipeline import ProcessedFrame  # noqa: E402

WIDTH, HEIGHT = 640, 480
FX, FY, CX, CY = 420.0, 425.0, 322.5, 238.25
STAMP_NS, STEP_NS = 1_700_000_000_123_456_789, 50_000_000
Row = tuple[int, list[float]]


def radial(rays: np.ndarray, up: list[float], down: list[float], p1: float, p2: float) -> np.ndarray:
    """Brown's lens: r^2 to its powers above and below, and the tangential part."""
    x, y = rays.T
    r2 = x * x + y * y
    factor = (1 + sum(k * r2**n for n, k in enumerate(up, 1))) / (1 + sum(k * r2**n for n, k in enumerate(down, 1)))
    return np.stack(
        [x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], 1
    )


def plumb_bob(rays: np.ndarray, d: list[float]) -> np.ndarray:
    return radial(rays, [d[0], d[1], d[4]], [], d[2], d[3])


def rational_polynomial(rays: np.ndarray, d: list[float]) -> np.ndarray:
    return radial(rays, [d[0], d[1], d[4]], d[5:8], d[2], d[3])


def equidistant(rays: np.ndarray, d: list[float]) -> np.ndarray:
    """Kannala and Brandt: a polynomial of the angle to the axis."""
    r = np.linalg.norm(rays, axis=1)
    theta = np.arctan(r)
    return rays * (theta * (1 + sum(k * theta ** (2 * n) for n, k in enumerate(d, 1))) / r)[:, None]


LENSES: dict[str, tuple[Callable, list[float]]] = {
    "plumb_bob": (plumb_bob, [-0.28, 0.07, 0.0002, -0.0004, 0.001]),
    "rational_polynomial": (rational_polynomial, [0.31, -0.12, 0.0003, 0.0001, 0.01, 0.55, -0.11, 0.03]),
    "equidistant": (equidistant, [-0.01, 0.02, -0.008, 0.001]),
}
RAYS = np.array([[0.01, -0.02], [0.35, 0.2], [-0.5, 0.31], [-0.2, -0.42], [0.6, -0.4], [0.1, 0.1]])
MOTION = np.array([[0.004, 0.001], [-0.01, 0.0], [0.0, 0.02], [0.003, -0.003], [0.001, 0.001], [0.0, 0.0]])
IDS = np.array([0, 7, 2**24 - 1, 12, 99, 1_000_003])
LENGTHS = np.array([5, 2, 30, 9, 1, 2])
# rows 0 to 3 are matched, the last of them is no inlier; row 4 is new; row 5 was recovered, so it has no match
MATCHED, INLIER = np.arange(4), np.array([True, True, True, False])
SENT = LENGTHS >= 2


def pixels(model: str, rays: np.ndarray) -> np.ndarray:
    lens, coefficients = LENSES[model]
    return (lens(rays, coefficients) * [FX, FY] + [CX, CY]).astype(np.float32)


def features(points: np.ndarray) -> Features:
    count = len(points)
    return Features(points, np.ones(count, np.float32), np.ones((count, 1), np.float32), (WIDTH, HEIGHT))


def message(model: str, layout: str) -> PointCloud:
    """What a subscriber gets of a frame whose points have moved by MOTION since the one before."""
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model=model, d=LENSES[model][1])
    info.k = [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]
    frame = ProcessedFrame(
        header=Header(stamp=messages.ns_to_stamp(STAMP_NS), frame_id="camera"),
        image=np.zeros((HEIGHT, WIDTH), np.uint8),
        features=features(pixels(model, RAYS)),
        features_prev=features(pixels(model, RAYS - MOTION)),
        matches=Matches(MATCHED, MATCHED, np.ones(4, np.float32), INLIER, IDS, False, LENGTHS),
        stamp_prev_ns=STAMP_NS - STEP_NS,
        camera=messages.camera_from_msg(info),
        seconds={},
    )
    msg = messages.tracks_to_msg(frame.header, *tracks(frame, min_length=2), layout)
    return deserialize_message(serialize_message(msg), PointCloud)


def read_as_fusion(msg: PointCloud) -> dict[int, Row]:
    """Feature -> (camera, row). With more than five channels it takes 6 to 8 as the true position."""
    rows = {}
    for i, point in enumerate(msg.points):
        channel = [values.values[i] for values in msg.channels]
        if len(channel) > 5:
            assert channel[6:9] == [0, 0, 0]
        assert point.z == 1
        rows[int(channel[0])] = int(channel[1]), [point.x, point.y, point.z, *channel[2:6]]
    return rows


def read_as_mono(msg: PointCloud) -> dict[int, Row]:
    """Feature -> (camera, row); it rounds the id, and divides it by its number of cameras, which is 1."""
    rows = {}
    for i, point in enumerate(msg.points):
        channel = [values.values[i] for values in msg.channels]
        assert point.z == 1
        rows[int(channel[0] + 0.5)] = 0, [point.x, point.y, point.z, *channel[1:5]]
    return rows


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize(("layout", "read", "channels"), [("fusion", read_as_fusion, 9), ("mono", read_as_mono, 5)])
def test_the_reader_gets_rays_pixels_and_velocities(model, layout, read, channels):
    msg = message(model, layout)
    assert len(msg.channels) == channels and all(len(c.values) == SENT.sum() for c in msg.channels)
    assert messages.stamp_to_ns(msg.header.stamp) == STAMP_NS
    rows = read(msg)
    assert list(rows) == IDS[SENT].tolist()  # exact, though they travel as float32
    assert {camera for camera, _ in rows.values()} == {0}
    got = np.array([row for _, row in rows.values()])
    np.testing.assert_allclose(got[:, :2], RAYS[SENT], atol=2e-6)  # of float32 pixels
    np.testing.assert_array_equal(got[:, 3:5], pixels(model, RAYS)[SENT])
    velocity = MOTION / (STEP_NS * 1e-9)
    velocity[3:] = 0  # of what was not followed
    np.testing.assert_allclose(got[:, 5:7], velocity[SENT], atol=1e-5)


@pytest.mark.parametrize("model", LENSES)
def test_the_camera_is_the_inverse_of_the_lens(model):
    """On a grid over the whole image, as far as rays of the lens reach."""
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model=model, d=LENSES[model][1])
    info.k = [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]
    x, y = np.meshgrid(np.linspace(-0.7, 0.7, 29), np.linspace(-0.5, 0.5, 21))
    rays = np.stack([x.ravel(), y.ravel()], 1) + 1e-4
    points = LENSES[model][0](rays, LENSES[model][1]) * [FX, FY] + [CX, CY]
    np.testing.assert_allclose(messages.camera_from_msg(info).normalize(points), rays, atol=1e-6)
