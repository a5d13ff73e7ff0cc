"""The `stress` suite: where points go under every stress, what the stresses do to a picture, and what is counted."""

import cv2
import numpy as np
import pytest

from samfeat_core.features import Features
from training.evaluation import report, stress
from training.evaluation.suites import Options, stress_suite, wide_suite

SIZE = (320, 240)
# light that clips or varies moves the centre of a dot
UNCLEAR = [("over-exposure", 4), ("over-exposure", 8), ("flicker", 0.8), ("flicker", 0.95)]
CLEAR = [(name, level) for name, s in stress.STRESSES.items() for level in s.levels if (name, level) not in UNCLEAR]


def texture(seed=0):
    noise = np.random.default_rng(seed).normal(size=(240, 320, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def dots(points):
    """Bright round dots, 2 px wide, on grey of 60."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    image = np.full(SIZE[::-1], 60.0)
    for px, py in points:
        image += 150 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.0**2))
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def centre_near(picture, point, reach=7):
    """Centre of brightness above the grey, of the pixels around a point."""
    x, y = np.round(point).astype(int)
    window = picture[y - reach : y + reach + 1, x - reach : x + reach + 1, 0].astype(float)
    window = (window - window.min() - 0.2 * np.ptp(window)).clip(0)
    rows, columns = np.mgrid[y - reach : y + reach + 1, x - reach : x + reach + 1]
    return np.array([(columns * window).sum(), (rows * window).sum()]) / window.sum()


@pytest.mark.parametrize(("name", "level"), CLEAR)
def test_points_are_where_the_picture_shows_them(name, level):
    points = np.array([[120.0, 90], [200, 95], [160, 120], [115, 150], [205, 155]])
    random = np.random.default_rng(4)
    picture, warp = stress.STRESSES[name].apply(dots(points), level, random)
    there = warp(points)
    scale = level if name == "zoom" else 1
    reach = max(3, round(7 * scale)) if name != "motion blur" else 12
    if name == "dark":
        picture = cv2.GaussianBlur(picture, (0, 0), 3)  # the noise
    found = np.array([centre_near(picture, point, reach) for point in there])
    tolerance = {"dark": 1.0, "jpeg": 0.5, "flicker": 1.0, "rolling shutter": 0.5}.get(name, 0.25)
    assert np.abs(found - there).max() < tolerance
    assert np.abs(there - points * scale).max() > 1  # nothing stays where it was


def test_a_roll_turns_anticlockwise_about_the_middle():
    quarter = stress.roll(texture(), 90, np.random.default_rng(0))[1]
    middle = (np.array(SIZE) - 1) / 2
    right_of_it = quarter((middle + [50, 0])[None])[0] - quarter(middle[None])[0]
    assert abs(right_of_it[0]) < 1 and right_of_it[1] == pytest.approx(-48, abs=0.5)  # up, nearer by NUDGE
    assert np.abs(quarter(middle[None])[0] - middle).max() < 5


def test_light_follows_the_exposure():
    grey = np.full((100, 100, 3), 128, np.uint8)
    for factor in (2, 0.25, 0.06):
        picture, _ = stress.exposure(grey, factor, np.random.default_rng(0))
        linear = ((picture / 255.0) ** stress.GAMMA).mean()
        assert linear == pytest.approx(factor * (128 / 255) ** stress.GAMMA, rel=0.05)
    # shot noise of 4000 * 0.06 * 0.22 = 53 electrons and 4 of reading: 15 % of the light
    assert ((picture / 255.0) ** stress.GAMMA).std() / linear == pytest.approx(np.sqrt(53 + 16) / 53, rel=0.1)
    assert (stress.exposure(grey, 8, np.random.default_rng(0))[0] == 255).all()


def test_blur_is_as_long_as_said_and_keeps_the_light():
    spot = np.zeros((41, 41), np.uint8)
    spot[20, 20] = 255
    for degrees in (0, 90):
        smeared = stress.motion_blur(spot, 13, degrees)
        rows, columns = np.nonzero(smeared > 5)
        lengths = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert lengths == ((13, 1) if degrees == 0 else (1, 13))
    flat = np.full((41, 41), 100, np.uint8)
    assert (stress.motion_blur(flat, 9, 30) == 100).all()


def test_flicker_takes_light_line_by_line():
    grey = np.full((140, 50, 3), 200, np.uint8)
    lines = ((stress.flicker(grey, 0.8, np.random.default_rng(0))[0] / 255.0) ** stress.GAMMA)[:, :, 0]
    assert np.ptp(lines, axis=1).max() < 0.01
    assert lines.min() / lines.max() == pytest.approx(0.2, abs=0.02)
    assert (np.diff(np.sign(lines[:, 0] - lines[:, 0].mean())) != 0).sum() in (13, 14)  # seven periods


def prepare(tmp_path, photographs=2):
    for n in range(photographs):
        folder = tmp_path / "homography" / f"scene{n}"
        folder.mkdir(parents=True)
        for name in ("1.png", "2.png", "3.png"):
            cv2.imwrite(str(folder / name), texture(n))
        for name in ("H_1_2", "H_1_3"):
            np.savetxt(folder / name, np.eye(3))
    return stress_suite(tmp_path, Options())


def test_right_matches_and_their_share_are_counted_per_level(tmp_path):
    zoom = next(task for task in prepare(tmp_path) if task.dataset == "zoom")
    assert len(zoom.pairs) == 4 * 2 and zoom.protocol["levels"] == [1, 0.7, 0.5, 0.35]
    points = np.random.default_rng(0).uniform((40, 40), (280, 200), (40, 2)).astype(np.float32)

    def extractor(image):
        """Knows where points are by the size of the picture. Of the half-size ones, ten of forty are 4 px off."""
        width = image.shape[1]
        there = points
        if image.tobytes() not in originals:
            there = stress.zoom(texture(), width / SIZE[0], None)[1](points).astype(np.float32)
            there = there + np.float32([4, 0]) * (np.arange(40) < 10)[:, None] * (width == 160)
        descriptors = np.eye(40, dtype=np.float32) if width != 112 else np.zeros((40, 40), np.float32)
        return Features(there, np.linspace(1, 0.5, 40, dtype=np.float32), descriptors, (width, image.shape[0]))

    originals = {texture(0).tobytes(), texture(1).tobytes()}
    result = zoom.run("prepared", extractor)
    by_level = {entry["level"]: entry for entry in result["levels"]}
    assert by_level[1] == {"level": 1, "matches": 40, "right": 40, "share": 100}
    assert by_level[0.5] == {"level": 0.5, "matches": 40, "right": 30, "share": 75}
    assert by_level[0.35]["right"] <= 1  # all alike: one mutual pair at most
    assert result["images"] == 2 + 8
    text = report.table([result])
    assert "0.35" in text and " 30  75 " in text


def test_the_same_pictures_for_every_extractor(tmp_path):
    dark = next(task for task in prepare(tmp_path, 1) if task.dataset == "dark")
    seen = []

    def extractor(image):
        seen.append(image.copy())
        return Features.empty(SIZE, 8)

    result = dark.run("first", extractor)
    assert [entry["share"] for entry in result["levels"]] == [0, 0, 0]
    half = len(seen)
    dark.run("second", extractor)
    assert all(np.array_equal(one, two) for one, two in zip(seen[:half], seen[half:], strict=True))


def test_every_stress_is_a_data_set(tmp_path):
    tasks = prepare(tmp_path)
    assert [task.dataset for task in tasks] == list(stress.STRESSES)
    assert {task.suite for task in tasks} == {task.kind for task in tasks} == {"stress"}
    with pytest.raises(ValueError, match="homography: no such folder"):
        stress_suite(tmp_path / "homography", Options())


def test_wide_takes_every_gap_up_to_five(tmp_path):
    folder = tmp_path / "wide" / "facade"
    (folder / "image").mkdir(parents=True)
    for n in range(7):
        cv2.imwrite(str(folder / "image" / f"{n}.png"), texture(n))
    np.savetxt(folder / "poses.txt", np.tile(np.eye(4)[:3].ravel(), (7, 1)))
    (folder / "calib.txt").write_text("P0: 300 0 160 0 0 300 120 0 0 0 1 0\n")
    (task,) = wide_suite(tmp_path, Options())
    assert len(task.pairs) == 6 + 5 + 4 + 3 + 2 and (task.suite, task.dataset) == ("wide", "facade")
    (task,) = wide_suite(tmp_path, Options(gaps=(3, 5)))
    assert len(task.pairs) == 4 + 2
    with pytest.raises(ValueError, match="no posed sequences"):
        wide_suite(folder, Options())
