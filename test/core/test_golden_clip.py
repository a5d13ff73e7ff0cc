"""Twenty rendered frames through extractor and trackers: every number of the way, within bands.

The bands hold whatever engine runs the network. A number that leaves its band was changed: on purpose, then the new
one is written here in the same commit, or not.
"""

import numpy as np
import pytest

from samfeat_core import FeatureExtractor
from samfeat_core.camera import Camera
from samfeat_core.poses import pose_error, relative_pose
from samfeat_core.tracking import make_tracker
from samfeat_core.two_view import epipolar_distance, fundamental_matrix
from samfeat_ros.odometry.geometry import estimate_motion
from training.data.scenes import SCENES, fly_through, load_textures, pinhole

SIZE = (304, 228)  # no multiple of the network's stride
MATRIX = pinhole(SIZE, 75)
CAMERA = Camera(MATRIX, np.zeros(0), *SIZE)
TEXTURES = (0, 2, 3, 4, 5, 7)  # those of skimage that are rich in corners
FRAMES, GAP = 20, 5  # frames; frames apart over which tracks and poses are judged

# name: (value, half the width of its band)
MATCH = {
    "keypoints": (600.5, 6),
    "matches": (499.7, 5),
    "inlier ratio": (0.986, 0.004),
    "shared tracks": (312.7, 6),
    "tracks from first to last": (81, 4),
    "epipolar error, px": (0.160, 0.01),
    "epipolar error after the gap, px": (0.232, 0.012),
    "rotation error, deg": (0.087, 0.03),
    "direction error, deg": (0.52, 0.15),
}
HYBRID = {
    "keypoints": (590.4, 6),
    "matches": (538.2, 8),
    "inlier ratio": (0.997, 0.003),
    "shared tracks": (375.7, 10),
    "tracks from first to last": (126, 10),
    "epipolar error, px": (0.052, 0.005),
    "epipolar error after the gap, px": (0.080, 0.008),
    "rotation error, deg": (0.2, 0.15),
    "direction error, deg": (1.0, 0.8),
}


@pytest.fixture(scope="module")
def clip():
    """Views of a camera that flies through a room, and its poses."""
    rng = np.random.default_rng(3)
    textures = load_textures("skimage")
    room = SCENES["room"](rng, [textures[index] for index in TEXTURES])
    poses = fly_through(room, rng, FRAMES, rate_hz=10.0, speed=1.0)
    return [room.render(MATRIX, SIZE, pose) for pose in poses], poses


@pytest.fixture(scope="module")
def found(clip, engine_cache):
    """Features of every frame, by the shipped weights."""
    extractor = FeatureExtractor.from_pretrained(device="cpu", engine="openvino", threshold=0.1, cache_dir=engine_cache)
    return [extractor(view.image) for view in clip[0]]


def measure(tracker, clip, found) -> dict[str, float]:
    """Means over the frames, medians of errors."""
    views, poses = clip
    rows, matches = [], []
    for index, (view, features) in enumerate(zip(views, found, strict=True)):
        matches.append(tracker.update(features, index * 100_000_000, CAMERA, view.image))
        rows.append(tracker.current)
    steps = range(1, FRAMES)
    near = [
        epipolar(rows[i - 1], rows[i], m.index_prev[m.inlier], m.index[m.inlier], relative_pose(poses[i - 1], poses[i]))
        for i, m in zip(steps, matches[1:], strict=True)
    ]
    shared, far, errors = [], [], []
    for i in range(FRAMES - GAP):
        motion = relative_pose(poses[i], poses[i + GAP])
        _, a, b = np.intersect1d(matches[i].track_ids, matches[i + GAP].track_ids, return_indices=True)
        shared.append(len(a))
        far.append(epipolar(rows[i], rows[i + GAP], a, b, motion))
        rays = (CAMERA.normalize(frame.keypoints[at]) for frame, at in ((rows[i], a), (rows[i + GAP], b)))
        estimate, _ = estimate_motion(*rays, 1 / CAMERA.focal)
        errors.append(pose_error(estimate.rotation, estimate.translation, motion[:3, :3], motion[:3, 3], signed=True))
    rotation, direction = np.median(errors, axis=0)
    return {
        "keypoints": np.mean([len(frame) for frame in rows]),
        "matches": np.mean([len(matches[i]) for i in steps]),
        "inlier ratio": np.mean([matches[i].inlier_ratio for i in steps]),
        "shared tracks": np.mean(shared),
        "tracks from first to last": len(np.intersect1d(matches[0].track_ids, matches[-1].track_ids)),
        "epipolar error, px": np.median(np.concatenate(near)),
        "epipolar error after the gap, px": np.median(np.concatenate(far)),
        "rotation error, deg": rotation,
        "direction error, deg": direction,
    }


def epipolar(first, second, rows_first, rows_second, motion) -> np.ndarray:
    """Distances (M,) in pixels of rows of the second frame to the lines of rows of the first under the true motion."""
    a, b = first.keypoints[rows_first].astype(np.float64), second.keypoints[rows_second].astype(np.float64)
    return epipolar_distance(a, b, fundamental_matrix(MATRIX, MATRIX, motion))


@pytest.mark.parametrize(("name", "bands"), [("match", MATCH), ("hybrid", HYBRID)])
def test_every_number_of_the_clip_is_in_its_band(clip, found, name, bands):
    measured = measure(make_tracker(name, 600), clip, found)
    assert measured.keys() == bands.keys()
    outside = {
        key: (float(measured[key]), band) for key, band in bands.items() if abs(measured[key] - band[0]) > band[1]
    }
    assert not outside
