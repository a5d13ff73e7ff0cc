"""What the network sees of an image, and how its answer comes back: an engine that keeps one and gives the other."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from samfeat_core import FeatureExtractor, WeightsError
from samfeat_core import extractor as module
from samfeat_core.errors import NoEngineError
from samfeat_core.extractor import KEPT_ENGINES, MAX_SIDE, check_image, checked, find_weights

RNG = np.random.default_rng(0)


class Engine:
    """Keeps what it was asked, answers `rows`: (x, y, score) in pixels of the network's image."""

    name = "told"

    def __init__(self, job):
        self.job = job
        self.rows = [(20, 20, 0.5)]

    def __call__(self, image, mask):
        self.image, self.mask = image, mask
        rows = np.array(self.rows, np.float32)
        descriptors = np.zeros((len(rows), self.job.spec.descriptor_dim), np.float32)
        descriptors[:, 0] = np.arange(len(rows))
        return rows[:, :2], rows[:, 2], descriptors, 2 + np.arange(len(rows), dtype=np.float32)


class Maker:
    """Makes extractors on such engines; `engines` are those that were built, the newest last."""

    def __init__(self, weights: str) -> None:
        self.weights = weights
        self.engines: list[Engine] = []

    def __call__(self, model="samfeat-nano", **options) -> FeatureExtractor:
        options = {"threshold": 0.0, "log": lambda level, text: None, **options}
        return FeatureExtractor.from_pretrained(model, "cpu", "eager", weights=self.weights, **options)

    def build(self, names, job, log) -> Engine:
        self.engines.append(Engine(job))
        return self.engines[-1]


@pytest.fixture
def make(weights, monkeypatch) -> Maker:
    maker = Maker(weights)
    monkeypatch.setattr(module, "build_engine", maker.build)
    return maker


def picture(height, width, channels=None):
    return RNG.integers(0, 256, (height, width, channels) if channels else (height, width), np.uint8)


def test_padding_repeats_the_edge_and_gets_no_keypoints(make):
    image = picture(50, 70)
    make()(image)
    seen, allowed = make.engines[0].image, make.engines[0].mask
    assert seen.shape == (1, 64, 96) and seen.dtype == allowed.dtype == np.uint8
    np.testing.assert_array_equal(seen[0], np.pad(image, ((0, 14), (0, 26)), "edge"))
    inside = np.zeros((64, 96), np.uint8)
    inside[4:46, 4:66] = 1
    np.testing.assert_array_equal(allowed, inside)


def test_a_size_that_fits_is_not_padded(make):
    image = picture(64, 96)
    make(border=0)(image)
    np.testing.assert_array_equal(make.engines[0].image[0], image)
    assert make.engines[0].mask.shape == (64, 96) and make.engines[0].mask.all()


def test_shrinking_takes_the_mean_of_the_pixels(make):
    image = picture(180, 288)
    make(resize=96)(image)
    means = image.reshape(60, 3, 96, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(make.engines[0].image[0, :60], means, atol=0.51)


def test_enlarging_interpolates_linearly(make):
    image = np.tile(np.arange(40, dtype=np.uint8) * 6, (24, 1))
    make(resize=120)(image)
    x = (np.arange(120) + 0.5) / 3 - 0.5  # where the pixels lie in the image
    expected = np.clip(x, 0, 39) * 6
    seen = make.engines[0].image[0]
    assert seen.shape == (96, 128)
    np.testing.assert_allclose(seen[:72, :120], np.tile(expected, (72, 1)), atol=1.01)


def test_a_colour_network_sees_rgb(make):
    image = picture(40, 48, 3)
    colour = make("samfeat")
    colour(image)
    np.testing.assert_array_equal(make.engines[-1].image, image[..., ::-1].transpose(2, 0, 1))
    colour(image[..., 1].copy())
    np.testing.assert_array_equal(make.engines[-1].image, np.stack([image[..., 1]] * 3))
    assert make.engines[-1].image.flags.c_contiguous


def test_a_grey_network_sees_luminance(make):
    image = picture(32, 64, 3)
    make()(image)
    np.testing.assert_allclose(make.engines[-1].image[0], image @ [0.114, 0.587, 0.299], atol=0.51)


def test_the_mask_takes_away_and_leaves_no_trace(make):
    extractor, image = make(border=2, resize=50), picture(200, 100)
    mask = np.zeros((200, 100), np.uint8)
    mask[40:, 20:40], mask[40:, 40:60] = 1, 255  # any value but 0 allows
    extractor(image, mask)
    allowed = np.zeros((64, 32), np.uint8)
    allowed[10:48, 5:15] = 1  # a quarter of the size, two pixels from the edge
    np.testing.assert_array_equal(make.engines[0].mask, allowed)
    extractor(image)
    free = np.zeros((64, 32), np.uint8)
    free[2:48, 2:23] = 1
    np.testing.assert_array_equal(make.engines[0].mask, free)


def test_a_border_wider_than_the_image_leaves_nothing(make):
    make(border=30)(picture(40, 100))
    assert not make.engines[0].mask.any()


def test_keypoints_come_back_to_the_pixels_of_the_image(make):
    extractor = make(resize=64)  # 131 x 67 becomes 64 x 33: both axes have scales of their own
    image = picture(67, 131)
    extractor(image)
    make.engines[0].rows = [(0, 0, 0.9), (10.25, 20.5, 0.8), (63, 32, 0.7)]
    features = extractor(image)
    scale = np.array([64 / 131, 33 / 67])
    expected = (np.array([(0, 0), (10.25, 20.5), (63, 32)]) + 0.5) / scale - 0.5
    np.testing.assert_allclose(features.keypoints, expected, atol=1e-4)
    assert features.image_size == (131, 67) and features.keypoints.dtype == np.float32


def test_refined_keypoints_stay_inside_the_image(make):
    extractor, image = make(border=0), picture(48, 64)
    extractor(image)
    make.engines[0].rows = [(-0.4, 10, 0.9), (63.3, 10, 0.9), (10, -0.2, 0.9), (10, 47.4, 0.9)]
    np.testing.assert_array_equal(extractor(image).keypoints, [(0, 10), (63, 10), (10, 0), (10, 47)])


def test_rows_are_chosen_by_threshold_and_number(make):
    extractor, image = make("samfeat", threshold=0.3, max_keypoints=100), picture(48, 64)
    extractor(image)
    extractor.max_keypoints = 3
    scores = [0.9, 0.2, 0.8, 0.3, 0.7, 0.0]
    make.engines[0].rows = [(5 + row, 6, score) for row, score in enumerate(scores)]
    features = extractor(image)
    np.testing.assert_array_equal(features.keypoints[:, 0], [5, 7, 8])
    np.testing.assert_allclose(features.scores, [0.9, 0.8, 0.3])
    np.testing.assert_array_equal(features.descriptors[:, 0], [0, 2, 3])
    np.testing.assert_array_equal(features.weights, [2, 4, 5])
    extractor.threshold, extractor.max_keypoints = 0.0, 100
    np.testing.assert_array_equal(extractor(image).descriptors[:, 0], [0, 1, 2, 3, 4])  # a score of 0 is no keypoint


def test_only_weighted_models_have_weights(make):
    features = make()(picture(48, 64))
    assert features.weights is None and len(features) == 1


def test_an_image_of_one_value_is_not_looked_at(make):
    extractor = make()
    flat = np.full((48, 64), 17, np.uint8)
    features = extractor(flat)
    assert len(features) == 0 and features.descriptors.shape == (0, 64) and features.image_size == (64, 48)
    assert not make.engines
    flat[-1, -1] = 18
    assert len(extractor(flat)) == 1
    assert len(extractor(np.full((48, 64, 3), (1, 1, 2), np.uint8))) == 1


def test_one_engine_for_each_padded_shape_and_the_last_used_stay(make, weights):
    extractor = make(max_keypoints=10)
    sizes = [(32, 32 * n) for n in range(1, KEPT_ENGINES + 1)]
    for height, width in sizes:
        extractor.prepare(width - 3, height - 3)
    jobs = [engine.job for engine in make.engines]
    assert [(job.height, job.width) for job in jobs] == sizes and len(sizes) == 4
    assert {(job.max_keypoints, job.nms_radius, job.device, job.spec.name) for job in jobs} == {
        (16, 1, "cpu", "samfeat-nano")  # keypoints to the next power of two
    }
    assert {(job.weights, job.cache_dir) for job in jobs} == {(Path(weights), extractor.cache_dir)}
    extractor.prepare(32, 32)  # used again, so the second is the oldest now
    extractor.prepare(32 * 9, 32)
    assert len(make.engines) == 5
    extractor.prepare(32, 32)
    assert len(make.engines) == 5
    extractor.prepare(64, 32)
    assert len(make.engines) == 6


def test_an_engine_is_built_anew_beyond_the_next_power_of_two_only(make):
    extractor = make(max_keypoints=10)
    extractor.prepare(32, 32)
    extractor.max_keypoints = 5
    extractor.prepare(32, 32)
    assert len(make.engines) == 1
    extractor.max_keypoints = 16
    assert not extractor.lacks_engine(32, 32) and extractor.lacks_engine(33, 32)
    extractor(picture(32, 32))
    assert len(make.engines) == 1
    extractor.max_keypoints = 17
    assert extractor.lacks_engine(32, 32)
    extractor.prepare(32, 32)
    assert [engine.job.max_keypoints for engine in make.engines] == [16, 32]
    extractor.prepare(32, 32)
    assert len(make.engines) == 2


def test_an_extractor_that_must_not_build_uses_what_it_has(make):
    extractor = make(max_keypoints=8)
    extractor.builds_when_called = False
    with pytest.raises(NoEngineError, match="there is no engine for images of 64x48"):
        extractor(picture(48, 64))
    assert not make.engines
    extractor.prepare(64, 48)
    extractor.max_keypoints = 100  # more than the engine finds
    make.engines[0].rows = [(20 + row, 20, 0.5) for row in range(12)]
    assert len(extractor(picture(48, 64))) == 12 and len(make.engines) == 1


def test_a_resized_image_is_prepared_at_the_size_of_the_network(make):
    extractor = make(resize=100)
    extractor.prepare(1000, 1)
    extractor.prepare(300, 200)
    assert [(engine.job.height, engine.job.width) for engine in make.engines] == [(32, 128), (96, 128)]


def test_what_an_extractor_says_of_itself(make):
    extractor = make(nms_radius=3, threshold=None, nms_passes=2, refine=False)
    assert (extractor.model_name, extractor.descriptor_dim, extractor.device) == ("samfeat-nano", 64, "cpu")
    assert extractor.threshold == extractor.default_threshold == 0.005
    assert (extractor.nms_radius, extractor.border, extractor.resize, extractor.max_keypoints) == (3, 4, None, 1024)
    assert extractor.engine_name == "eager"  # the one that will be tried
    extractor.prepare(32, 32)
    job = make.engines[0].job
    assert extractor.engine_name == "told" and (job.nms_radius, job.nms_passes, job.refine) == (3, 2, False)


def test_engines_are_kept_in_the_cache_of_the_user(make, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert make().cache_dir == tmp_path / "samfeat_ros"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make().cache_dir == tmp_path / ".cache" / "samfeat_ros"
    assert make(cache_dir="~/mine").cache_dir == tmp_path / "mine"


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [
        ("max_keypoints", 1, 65536),
        ("threshold", 0, 1),
        ("nms_radius", 1, 32),
        ("nms_passes", 1, 32),
        ("border", 0, 256),
        ("resize", 32, 8192),
    ],
)
def test_options_are_bounded_on_both_sides(make, option, low, high):
    for value in (low, high):
        extractor = make(**{option: value})
        assert getattr(extractor if hasattr(extractor, option) else extractor.detection, option) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{option} is {value}, expected (a whole number )?{low}.* to {high}"):
            make(**{option: value})


def test_whole_numbers_are_asked_for_where_the_bounds_are():
    assert checked("share", 0.5, 0.0, 1.0) == 0.5 and checked("count", np.int32(3), 1, 4) == 3
    with pytest.raises(ValueError, match=r"^count is 2.5, expected a whole number 1 to 4$"):
        checked("count", 2.5, 1, 4)
    with pytest.raises(ValueError, match=r"^share is 2, expected 0.0 to 1.0$"):
        checked("share", 2, 0.0, 1.0)


def test_the_largest_image_is_let_through_and_one_more_pixel_is_not():
    assert MAX_SIDE == 8192
    for shape in ((1, 8192), (8192, 1), (2, 2, 3)):
        check_image(np.zeros(shape, np.uint8), None)
    for other in ((1, 8193), (8193, 1), (0, 5), (2, 2, 2), (2, 2, 4), (5,), (1, 2, 3, 3)):
        with pytest.raises(ValueError, match="image has shape"):
            check_image(np.zeros(other, np.uint8), None)


@pytest.mark.parametrize("mask", [np.ones((4, 6), bool), np.ones((6, 4), np.uint8), np.ones((4, 6, 1), np.uint8)])
def test_a_mask_of_another_kind_is_refused(mask):
    image = np.zeros((4, 6, 3), np.uint8)
    check_image(image, np.ones((4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"mask has shape .* expected \(4, 6\) uint8"):
        check_image(image, mask)


def test_an_image_that_cannot_be_looked_at_reaches_no_engine(make):
    extractor, image = make(), picture(48, 64)
    for arguments in ((image.astype(float),), (image, np.ones((64, 48), np.uint8)), (None,)):
        with pytest.raises(ValueError, match="(image|mask) (has shape|is NoneType)"):
            extractor(*arguments)
    assert not make.engines


def test_large_images_shrink_to_the_long_side_that_was_asked_for(make):
    extractor = make(resize=64)
    for size, kept in (((640, 480), (56, 40)), ((480, 640), (40, 56))):
        extractor(cv2.resize(picture(30, 40), size))
        (engine,) = make.engines
        assert engine.image.shape == (1, 64, 64)
        assert (engine.mask.any(axis=0).sum(), engine.mask.any(axis=1).sum()) == kept  # 64 x 48 less the border


@pytest.mark.parametrize(
    ("device", "engine", "said"),
    [
        ("auto", "auto", "model samfeat-nano, engine compile, device cpu (no GPU; other: missing)"),
        ("auto", "eager", "model samfeat-nano, engine compile, device cpu (no GPU; other: missing)"),
        ("cpu", "auto", "model samfeat-nano, engine compile, device cpu (other: missing)"),
        ("cpu", "eager", "model samfeat-nano, engine compile, device cpu (other: missing)"),
    ],
)
def test_what_is_chosen_is_said_once_with_the_reasons(weights, monkeypatch, device, engine, said):
    monkeypatch.setattr(
        module, "choose_device", lambda *asked: ("cpu", "no GPU") if asked == (device, engine) else None
    )
    monkeypatch.setattr(
        module, "candidates", lambda *asked: (["compile"], ["other: missing"]) * (asked == (engine, "cpu"))
    )
    lines = []
    FeatureExtractor.from_pretrained(
        device=device, engine=engine, weights=weights, log=lambda level, text: lines.append((level, text))
    )
    assert lines == [("info", said)]
    logged: list[str] = []  # not by caplog: `launch` takes the handlers of all loggers where it was imported
    monkeypatch.setattr(logging.getLogger("samfeat_core"), "info", logged.append)
    FeatureExtractor.from_pretrained(device=device, engine=engine, weights=weights)
    assert logged == [said]


def test_a_gpu_needs_no_reason(weights, monkeypatch):
    chosen = {("auto", "auto"): ("cuda", "CUDA device found")}  # the defaults
    monkeypatch.setattr(module, "choose_device", lambda *asked: chosen[asked])
    monkeypatch.setattr(module, "candidates", lambda *asked: {("auto", "cuda"): (["tensorrt"], [])}[asked])
    lines = []
    extractor = FeatureExtractor.from_pretrained(weights=weights, log=lambda level, text: lines.append(text))
    assert lines == ["model samfeat-nano, engine tensorrt, device cuda"] and extractor.device == "cuda"


def test_weights_are_the_shipped_ones_or_the_file_that_was_given(tmp_path, monkeypatch):
    (tmp_path / "samfeat-nano.safetensors").touch()
    monkeypatch.setattr(module, "SHIPPED_WEIGHTS", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights("samfeat-nano", None) == find_weights("samfeat", "~/samfeat-nano.safetensors")
    with pytest.raises(WeightsError) as error:
        find_weights("scfeat", None)
    hint = "no weights of scfeat are shipped, so give a file (weights=...)"
    assert str(error.value) == f"{tmp_path / 'scfeat.safetensors'}: no such weights file; {hint}"
    with pytest.raises(WeightsError) as error:
        find_weights("samfeat-nano", tmp_path / "none.pth")
    assert str(error.value) == f"{tmp_path / 'none.pth'}: no such weights file"
