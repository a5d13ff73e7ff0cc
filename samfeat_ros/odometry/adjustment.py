"""Bundle adjustment of a few keyframes and their points, by GTSAM (`pip install gtsam`)."""

from __future__ import annotations

import gtsam
import numpy as np
from gtsam.symbol_shorthand import L, X

from samfeat_ros.odometry.geometry import Pose

_RAYS = gtsam.Cal3_S2(1.0, 1.0, 0.0, 0.0, 0.0)  # the camera of normalised coordinates


def adjust_bundle(
    poses: list[Pose], points: np.ndarray, seen: np.ndarray, scale: float, fixed: int = 2, iterations: int = 4
) -> tuple[list[Pose], np.ndarray]:
    """Levenberg-Marquardt over poses and points, with Huber's weights.

    Args:
        poses: (F) cameras, of which the first `fixed` stay.
        points: (N, 3) world points.
        seen: (N, F, 2) normalised rays, NaN where a point was not seen.
        scale: residual above which Huber's weight falls.

    Returns:
        the adjusted poses and points; those given where the system cannot be solved.
    """
    graph, start = gtsam.NonlinearFactorGraph(), gtsam.Values()
    for number, pose in enumerate(poses):
        camera = gtsam.Pose3(pose.camera_to_world)
        start.insert(X(number), camera)
        if number < fixed:
            graph.add(gtsam.NonlinearEqualityPose3(X(number), camera))
    for row, point in enumerate(points):
        start.insert(L(row), point)
    huber = gtsam.noiseModel.mEstimator.Huber.Create(1.0)
    noise = gtsam.noiseModel.Robust.Create(huber, gtsam.noiseModel.Isotropic.Sigma(2, scale))
    for row, number in np.argwhere(np.isfinite(seen[..., 0])):
        # A point that comes behind its camera counts as far off, and raises no error.
        factor = gtsam.GenericProjectionFactorCal3_S2(seen[row, number], noise, X(number), L(row), _RAYS, False, False)
        graph.add(factor)
    try:
        result = gtsam.LevenbergMarquardtOptimizer(graph, start, _parameters(iterations)).optimize()
    except RuntimeError:  # the system is indeterminate
        return poses, points
    adjusted = [Pose.of_camera(result.atPose3(X(number)).matrix()) for number in range(len(poses))]
    return adjusted, np.stack([result.atPoint3(L(row)) for row in range(len(points))])


def _parameters(iterations: int) -> gtsam.LevenbergMarquardtParams:
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setMaxIterations(iterations)
    parameters.setRelativeErrorTol(1e-3)
    parameters.setLinearSolverType("SEQUENTIAL_CHOLESKY")  # a quarter of the default's time on so small a window
    return parameters
