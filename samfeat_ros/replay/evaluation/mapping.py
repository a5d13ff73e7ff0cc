"""Structure from motion on the tracks of one camera, by pycolmap: the offline judge of trajectories.

Keyframes are posed one after another from triangulated tracks, each with a bundle adjustment of the newest keyframes.
At the end all keyframes are adjusted together, and the frames between them are posed. There is no loop closure. One
camera cannot see scale: lengths are in units of the first motion.

Only the judge's worker processes import this module: pycolmap takes the signal handlers of its process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pycolmap

from samfeat_ros.odometry.geometry import Pose, parallax, reprojection_errors, triangulate
from samfeat_ros.replay.evaluation.views import View

MAX_ERROR_PX = 3.0  # largest reprojection error of an inlier
FIRST_ERROR_PX = 1.0  # largest epipolar error of an inlier of the first motion
MIN_ANGLE = np.radians(1.0)  # between two views of a track that is triangulated
MIN_POINTS = 12  # fewer agreeing points are no pose
MIN_INLIERS = 0.3  # share of the points that must agree with a pose
MIN_COMMON = 30  # tracks that two views must share for the first motion
STEP_PX = 15.0  # median motion of the tracks from one keyframe to the next
MIN_SHARED = 0.6  # share of the last keyframe's tracks below which the next one comes
WINDOW = 8  # keyframes that are adjusted together
FIRST_GAPS = (1, 2, 3, 5, 8, 13, 21)  # keyframes between the two of the first motion


def map_tracks(views: Sequence[View], focal: float, seed: int = 0) -> dict[int, np.ndarray]:
    """Camera-to-world poses (4, 4) by frame number, of the longest piece of the recording that hangs together.

    Where tracking is lost for good a new piece begins. Its scale and place against the piece before are unknown, so
    that one of them counts.

    Args:
        views: in order of time.
        focal: length in pixels by which errors are measured.
        seed: of the random samples. The same input gives the same poses to the bit.
    """
    best: dict[int, np.ndarray] = {}
    waiting = list(views)
    while len(waiting) > len(best):
        piece = _Piece(focal, seed)
        first = piece.begin(choose_keyframes(waiting, focal))
        if first is None:
            break
        poses = piece.map(waiting)
        best = max(best, poses, key=len)
        waiting = [view for view in waiting if view.number > first and view.number not in poses]
    return best


def choose_keyframes(views: Sequence[View], focal: float) -> list[View]:
    """The first view with tracks, and each that has moved far from the last keyframe or shares few tracks with it."""
    chosen: list[View] = []
    for view in views:
        if len(view.ids) and (not chosen or _is_far(chosen[-1], view, focal)):
            chosen.append(view)
    return chosen


def _is_far(last: View, view: View, focal: float) -> bool:
    a, b = last.common(view)
    if len(a) < MIN_SHARED * len(last.ids):
        return True
    return bool(np.median(np.linalg.norm(a - b, axis=1)) > STEP_PX / focal)


class _Piece:
    """A reconstruction from one first motion on. Keyframe k is the model's image and frame k, from 1 on."""

    def __init__(self, focal: float, seed: int) -> None:
        self.focal, self.seed = focal, seed
        self.camera = pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=1, height=1, params=[focal, 0, 0])
        self.model = pycolmap.Reconstruction()
        self.model.add_camera_with_trivial_rig(self.camera)
        self.manager = pycolmap.ObservationManager(self.model)
        self.keyframes: list[View] = []
        self.points: dict[int, int] = {}  # track -> its point in the model
        self.seen: dict[int, list[tuple[int, int]]] = defaultdict(list)  # track without point -> (keyframe, row)

    def begin(self, keyframes: list[View]) -> int | None:
        """Find the first motion, between two keyframes with parallax. Returns the number of the first of them."""
        for start, first in enumerate(keyframes):
            for second in [keyframes[start + gap] for gap in FIRST_GAPS if start + gap < len(keyframes)]:
                rays = first.common(second)
                if len(rays[0]) < MIN_COMMON:
                    break
                motion = self._first_motion(*rays)
                if motion is None:
                    continue
                self._add(first, pycolmap.Rigid3d())
                self._add(second, motion)
                self._adjust([1, 2])
                return first.number
        return None

    def _first_motion(self, rays_a: np.ndarray, rays_b: np.ndarray) -> pycolmap.Rigid3d | None:
        """Motion by the essential matrix, if half of the tracks agree with it and most of these have parallax."""
        ransac = pycolmap.RANSACOptions(
            max_error=FIRST_ERROR_PX, random_seed=self.seed, min_num_trials=50, max_num_trials=500
        )
        found = pycolmap.estimate_relative_pose(
            self.camera, self.focal * rays_a, self.camera, self.focal * rays_b, ransac
        )
        if found is None:
            return None
        inlier = found["inlier_mask"]
        if inlier.sum() < MIN_COMMON or inlier.mean() < 0.5:
            return None
        motion = found["cam2_from_cam1"]
        angles = parallax(Pose(), _pose(motion), rays_a[inlier], rays_b[inlier])
        return motion if np.median(angles) > MIN_ANGLE else None

    def map(self, views: Sequence[View]) -> dict[int, np.ndarray]:
        """Go on from the first motion. Returns the camera-to-world poses of all views that have one."""
        first, second = (view.number for view in self.keyframes)
        ahead = [view for view in views if view.number > first and view.number != second]
        chosen = {view.number for view in choose_keyframes(ahead, self.focal)}
        between: list[View] = []
        for view in ahead:
            between.append(view)
            if view.number not in chosen:
                continue
            if not self._extend(view):
                for step in between:  # in smaller steps, then
                    self._extend(step)
            between = []
        for _ in range(2):  # again without what disagreed with the first result
            self._adjust(range(1, len(self.keyframes) + 1), whole=True)
        poses = {view.number: self._pose_of(number) for number, view in enumerate(self.keyframes, 1)}
        for view in views:
            if view.number not in poses and (found := self._locate(view)):
                poses[view.number] = _pose(found[0])
        return {number: pose.camera_to_world for number, pose in poses.items()}

    def _pose_of(self, keyframe: int) -> Pose:
        return _pose(self.model.image(keyframe).cam_from_world())

    def _locate(self, view: View) -> tuple[pycolmap.Rigid3d, np.ndarray] | None:
        """Pose of a view from the points of its tracks, and which of its rows agree; None where there is none."""
        rows = np.array([row for row, track in enumerate(view.ids.tolist()) if track in self.points], int)
        if len(rows) < MIN_POINTS:
            return None
        world = np.array([self.model.point3D(self.points[track]).xyz for track in view.ids[rows].tolist()])
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac = pycolmap.RANSACOptions(
            max_error=MAX_ERROR_PX, random_seed=self.seed, min_num_trials=20, max_num_trials=1000, confidence=0.999
        )
        found = pycolmap.estimate_and_refine_absolute_pose(self.focal * view.rays[rows], world, self.camera, options)
        if found is None:
            return None
        inlier = found["inlier_mask"]
        if inlier.sum() < MIN_POINTS or inlier.mean() < MIN_INLIERS:
            return None
        return found["cam_from_world"], rows[inlier]

    def _extend(self, view: View) -> bool:
        """Make a view a keyframe; False where it has no pose."""
        found = self._locate(view)
        if found is None:
            return False
        self._add(view, *found)
        newest = len(self.keyframes)
        self._adjust(range(max(1, newest - WINDOW + 1), newest + 1))
        return True

    def _add(self, view: View, pose: pycolmap.Rigid3d, rows: Sequence[int] | np.ndarray = ()) -> None:
        """Add a keyframe of which these rows see their points, and triangulate the tracks that have none."""
        self.keyframes.append(view)
        keyframe = len(self.keyframes)
        image = pycolmap.Image(name=str(keyframe), keypoints=self.focal * view.rays, camera_id=1, image_id=keyframe)
        self.model.add_image_with_trivial_frame(image, pose)
        tracks = view.ids.tolist()
        for row in rows:
            self.model.add_observation(self.points[tracks[row]], pycolmap.TrackElement(keyframe, row))
        by_first = defaultdict(list)
        for row, track in enumerate(tracks):
            if track not in self.points:
                self.seen[track].append((keyframe, row))
                by_first[self.seen[track][0][0]].append(track)
        for first, found in by_first.items():
            if first != keyframe:
                self._triangulate(found)

    def _triangulate(self, tracks: list[int]) -> None:
        """Points for tracks with the same first view, from that view and their last one, where these make a point."""
        (first, _), (last, _) = self.seen[tracks[0]][0], self.seen[tracks[0]][-1]
        a = self.keyframes[first - 1].rays[[self.seen[track][0][1] for track in tracks]]
        b = self.keyframes[last - 1].rays[[self.seen[track][-1][1] for track in tracks]]
        pose_a, pose_b = self._pose_of(first), self._pose_of(last)
        world = triangulate(pose_a, pose_b, a, b)
        good = parallax(pose_a, pose_b, a, b) > MIN_ANGLE
        for pose, rays in ((pose_a, a), (pose_b, b)):  # the error is infinite behind the camera
            good &= reprojection_errors(pose, world, rays) < MAX_ERROR_PX / self.focal
        for index in np.flatnonzero(good):
            elements = [pycolmap.TrackElement(*element) for element in self.seen.pop(tracks[index])]
            self.points[tracks[index]] = self.model.add_point3D(world[index], pycolmap.Track(elements))

    def _adjust(self, numbers: Sequence[int], whole: bool = False) -> None:
        """Bundle adjustment of keyframes with the points that they see; then drop what disagrees.

        Of a window the two oldest keyframes hold still, and so do the keyframes before it.
        """
        tracks = {track for number in numbers for track in self.keyframes[number - 1].ids.tolist()} & self.points.keys()
        config = pycolmap.BundleAdjustmentConfig()
        config.set_constant_cam_intrinsics(1)
        for number in numbers:
            config.add_image(number)
        if whole:
            config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        else:
            for number in numbers[:2]:
                config.set_constant_rig_from_world_pose(number)
            for track in tracks:
                config.add_variable_point(self.points[track])
        options = _adjustment_options(30 if whole else 10)
        pycolmap.create_default_bundle_adjuster(options, config, self.model).solve()
        self.manager.filter_points3D_in_images(MAX_ERROR_PX, np.degrees(MIN_ANGLE) / 2, set(numbers))
        for track in tracks:
            if not self.model.exists_point3D(self.points[track]):
                del self.points[track]  # it starts anew


def _adjustment_options(iterations: int) -> pycolmap.BundleAdjustmentOptions:
    options = pycolmap.BundleAdjustmentOptions(refine_focal_length=False, refine_extra_params=False)
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.loss_function_scale = 1.0
    solver = options.ceres.solver_options
    solver.max_num_iterations, solver.function_tolerance = iterations, 1e-4
    solver.num_threads = 1  # repeatable to the bit, and the other repeats run beside this one
    options.ceres.solver_options = solver
    return options


def _pose(cam_from_world: pycolmap.Rigid3d) -> Pose:
    return Pose(cam_from_world.rotation.matrix(), np.array(cam_from_world.translation))
