"""The real node over real DDS: what it publishes, and what happens when things go wrong."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from ros_rig import FOCAL, FRAME_NS, Camera  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud, PointCloud2  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

from samfeat_core.tracking import DETECTED, FOLLOWED  # noqa: E402
from samfeat_ros import messages  # noqa: E402
from samfeat_ros.node import samfeat_node  # noqa: E402
from samfeat_ros.node_status import TIMED, values_from_msg  # noqa: E402

INFO, WARN, ERROR = "INFO", "WARN", "ERROR"
COMPRESSED = "set image_transport to compressed"
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def grey(image: np.ndarray) -> Image:
    return messages.image_to_msg(messages.Header(), image)


# ---- outputs ----


def test_features_and_matches_of_a_moving_camera(rig):
    rig.node()
    camera = Camera(rig)
    clouds = {name: rig.output(PointCloud2, name) for name in ("keypoints", "descriptors", "matches")}
    previous = None
    for _ in range(4):
        camera.frame(clouds["matches"])
        rig.wait(lambda: len({len(got) for got in clouds.values()}) == 1)
        keypoints, descriptors, matches = (got[-1] for got in clouds.values())
        header = keypoints.header
        assert header == descriptors.header == matches.header
        assert header.frame_id == "camera_optical"
        rows = messages.keypoints_from_msg(keypoints)
        assert 0 < len(rows.points) <= 1024
        assert (rows.points >= 0).all() and (rows.points <= [camera.width - 1, camera.height - 1]).all()
        assert (np.diff(rows.scores[rows.lengths == 1]) <= 0).all()  # new points, the strongest first
        assert len(set(rows.ids.tolist())) == len(rows.ids)
        assert len(messages.descriptors_from_msg(descriptors)) == len(rows.points)
        pairs = messages.matches_from_msg(matches)
        np.testing.assert_array_equal(pairs.points, rows.points[pairs.index])
        np.testing.assert_array_equal(pairs.ids, rows.ids[pairs.index])
        if previous is None:
            assert not len(pairs.index)
        else:
            assert pairs.inlier.sum() > 10
            assert pairs.stamp_prev_ns == messages.stamp_to_ns(header.stamp) - FRAME_NS
            np.testing.assert_array_equal(pairs.points_prev, previous.points[pairs.index_prev])
            kept = pairs.inlier
            np.testing.assert_array_equal(pairs.ids[kept], previous.ids[pairs.index_prev[kept]])
            motion = (pairs.points - pairs.points_prev)[kept]
            np.testing.assert_allclose(np.median(motion, axis=0), [-camera.shift, 0], atol=0.2)
        previous = rows


@pytest.mark.parametrize("layout", ["fusion", "mono"])
def test_tracks_for_vins(rig, layout):
    rig.node(tracks_layout=layout)
    camera = Camera(rig)
    got = rig.output(PointCloud, "tracks")
    infos = rig.publisher(CameraInfo, "/camera_info")
    camera.send()
    rig.wait(lambda: rig.lines(WARN, "no usable CameraInfo"), "the warning that CameraInfo is missing")
    assert not got

    def informed() -> bool:
        infos.publish(camera.info())
        camera.send()
        time.sleep(0.1)
        return bool(got)

    rig.wait(informed, "tracks")
    camera.frame(got)
    assert len(got[-1].channels) == {"fusion": 9, "mono": 5}[layout]
    tracks = messages.tracks_from_msg(got[-1])
    assert len(tracks.ids) > 10
    center = np.array([camera.width - 1, camera.height - 1]) / 2
    np.testing.assert_allclose(tracks.rays, (tracks.points - center) / FOCAL, atol=1e-5)
    speed = -camera.shift / FOCAL / (FRAME_NS * 1e-9)
    np.testing.assert_allclose(np.median(tracks.velocities, axis=0), [speed, 0], atol=0.1 * abs(speed))


def test_tracks_begin_at_the_length_that_was_asked_for(rig):
    node = rig.node(tracks_min_length=3)
    camera = Camera(rig)
    got, keypoints = rig.output(PointCloud, "tracks"), rig.output(PointCloud2, "keypoints")
    infos = rig.publisher(CameraInfo, "/camera_info")
    rig.wait(lambda: (infos.publish(camera.info()), time.sleep(0.05), node._pipeline._camera_info)[2], "the camera")

    def counts(frames: int) -> list[int]:
        assert rig.call(Trigger, "/samfeat/reset", Trigger.Request()).success
        return [len(messages.tracks_from_msg(camera.frame(got)).ids) for _ in range(frames)]

    short, shorter, long = counts(3)
    assert short == shorter == 0 and long > 10
    assert rig.set(tracks_min_length=1)[0]
    (every,) = counts(1)
    rig.wait(lambda: keypoints and keypoints[-1].header == got[-1].header, "the keypoints of the frame")
    assert every == keypoints[-1].width > 10


def test_camera_info_of_another_size_is_not_used(rig):
    rig.node()
    camera = Camera(rig)
    rig.output(PointCloud, "tracks")
    infos = rig.publisher(CameraInfo, "/camera_info")
    info = camera.info()
    info.width *= 2

    def informed() -> list[str]:
        infos.publish(info)
        camera.send()
        time.sleep(0.1)
        return rig.lines(WARN, "it is for 320x120")

    rig.wait(informed)


def broken_infos(info: CameraInfo) -> list[CameraInfo]:
    """CameraInfo messages of one fault each."""
    faults: list[dict] = [
        {"k": [0.0] * 9},
        {"k": [FOCAL, 0.0, 80.0, 0.0, FOCAL, 60.0, 0.0, 0.0, 0.0]},
        {"k": [FOCAL, 0.0, 80.0, FOCAL, FOCAL, 60.0, 0.0, 0.0, 1.0]},
        {"k": [FOCAL, 0.0, 1e308, 0.0, FOCAL, 60.0, 0.0, 0.0, 1.0]},
        {"k": [1e-300, 0.0, 80.0, 0.0, 1e-300, 60.0, 0.0, 0.0, 1.0]},
        {"k": [float("nan")] * 9},
        {"d": [1e300] * 5},
        {"d": [1.0] * 99},
        {"distortion_model": "x\n" * 10_000},
        {"binning_x": 2**32 - 1, "binning_y": 2**32 - 1},
        {"width": 2**32 - 1, "height": 2**32 - 1},
    ]
    messages_ = []
    for fault in faults:
        fields = {name: getattr(info, name) for name in ("width", "height", "distortion_model", "d", "k", "p")}
        messages_.append(CameraInfo(header=info.header, **{**fields, **fault}))
    return messages_


def test_a_broken_camera_info_never_costs_a_frame(rig):
    node = rig.node()
    camera = Camera(rig)
    clouds = rig.output(PointCloud2, "keypoints")
    tracks = rig.output(PointCloud, "tracks")
    infos = rig.publisher(CameraInfo, "/camera_info")
    for info in [*broken_infos(camera.info()), camera.info()]:
        before = node._pipeline._camera_info
        while node._pipeline._camera_info is before:
            infos.publish(info)
            time.sleep(0.02)
        camera.frame(clouds)
        camera.frame(clouds)
    rig.wait(lambda: tracks, "tracks with the last, good one")
    assert node.statistics.dropped["failed"] == 0
    numbers = [value for msg in tracks for channel in msg.channels for value in channel.values]
    numbers += [value for msg in tracks for point in msg.points for value in (point.x, point.y)]
    assert np.isfinite(numbers).all()
    assert max(map(len, rig.lines(WARN))) < 600


def test_stamps_before_1970_give_whole_frames(rig):
    node = rig.node()
    camera = Camera(rig)
    camera.start_ns = -10 * FRAME_NS
    clouds = {name: rig.output(PointCloud2, name) for name in ("keypoints", "descriptors", "matches")}
    for _ in range(20):
        camera.frame(clouds["matches"])
    rig.wait(lambda: all(len(got) == 20 for got in clouds.values()))
    assert node.statistics.dropped["failed"] == 0


def test_a_frame_goes_out_whole_or_not_at_all(rig):
    node = rig.node()
    camera = Camera(rig)
    clouds = {name: rig.output(PointCloud2, name) for name in ("keypoints", "matches")}
    camera.frame(clouds["matches"])

    def failing(frame, parameters):
        raise OverflowError("no such number")

    whole, node._outputs._compose["matches"] = node._outputs._compose["matches"], failing
    lost = camera.send()
    rig.wait(lambda: node.statistics.dropped["failed"] == 1)
    node._outputs._compose["matches"] = whole
    camera.frame(clouds["matches"])
    assert lost.stamp not in [msg.header.stamp for msg in clouds["keypoints"]]


def test_overlay(rig):
    rig.node()
    camera = Camera(rig)
    got = rig.output(Image, "overlay")
    camera.frame(got)
    scene = camera.image
    msg = camera.frame(got)
    assert (msg.encoding, msg.width, msg.height) == ("bgr8", camera.width, camera.height)
    picture = np.frombuffer(msg.data, np.uint8).reshape(camera.height, camera.width, 3)
    changed = (picture != scene[..., None]).any(axis=2).mean()
    assert 0.01 < changed < 0.99
    colours = picture.max(axis=2).astype(int) - picture.min(axis=2)
    assert (colours > 60).any()  # tracked points are coloured


def test_pictures_for_viewers(rig):
    """The compressed overlay is the overlay; the marker has the keypoints of its stamp."""
    node = rig.node()
    camera = Camera(rig)
    whole, small = rig.output(Image, "overlay"), rig.output(CompressedImage, "overlay/compressed")
    camera.frame(whole)
    shape = camera.height, camera.width, 3
    for _ in range(3):
        picture = np.frombuffer(camera.frame(whole).data, np.uint8).reshape(shape)
        rig.wait(lambda: small[-1:] and small[-1].header == whole[-1].header, "the compressed overlay")
        assert small[-1] == messages.image_to_compressed_msg(small[-1].header, picture)
        assert len(small[-1].data) < picture.size / 3
    assert "annotations" not in node._outputs.wanted()


def test_annotations_are_the_keypoints(rig):
    markers = pytest.importorskip("visualization_msgs.msg")
    rig.node()
    camera = Camera(rig)
    keypoints, got = rig.output(PointCloud2, "keypoints"), rig.output(markers.ImageMarker, "annotations")
    for _ in range(3):
        marker = camera.frame(got)
        rig.wait(lambda: keypoints[-1:] and keypoints[-1].header == got[-1].header, "the keypoints")
        rows = messages.keypoints_from_msg(keypoints[-1])
        points = np.array([(point.x, point.y) for point in marker.points])
        np.testing.assert_allclose(points, rows.points + 0.5, atol=1e-5)
        coloured = np.array([len({c.r, c.g, c.b}) > 1 for c in marker.outline_colors])
        np.testing.assert_array_equal(coloured, rows.lengths > 1)  # grey ones are new


def test_nothing_is_computed_while_nobody_listens(rig):
    node = rig.node()
    camera = Camera(rig)
    before = node.statistics.dropped["idle"]
    camera.send()
    rig.wait(lambda: node.statistics.dropped["idle"] == before + 1)
    assert node.statistics.frames_processed == 0
    got = rig.output(PointCloud2, "matches")
    assert not messages.matches_from_msg(camera.frame(got)).index.size
    assert messages.matches_from_msg(camera.frame(got)).inlier.sum() > 10


def test_tracks_end_while_nobody_listens(rig):
    """Frames that nobody wanted are missing from the tracks: they begin anew, and no match spans the pause."""
    node = rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "matches")
    camera.frame(got)
    assert camera.frame(got).width > 10
    for subscription in list(rig.peer.subscriptions):
        rig.peer.destroy_subscription(subscription)
    rig.wait(lambda: not node._outputs.wanted(), "the end of the subscription")
    before = node.statistics.dropped["idle"]
    camera.send()
    rig.wait(lambda: node.statistics.dropped["idle"] == before + 1, "a frame that nobody wanted")
    got = rig.output(PointCloud2, "matches")
    assert camera.frame(got).width == 0
    assert camera.frame(got).width > 10


def test_diagnostics(rig):
    rig.node()
    got = rig.listen(DiagnosticArray, "/diagnostics")

    def last() -> dict[str, str]:
        return (values_from_msg(got[-1]) if got else None) or {}

    rig.wait(lambda: last().get("state") == "active")
    assert got[-1].status[0].level == b"\x01" and "no image" in got[-1].status[0].message
    camera = Camera(rig)
    rig.output(PointCloud2, "keypoints")
    rig.wait(lambda: camera.send() and time.sleep(0.05) is None and int(last().get("frames_processed", 0)) > 20)
    values = last()
    for stage in TIMED:
        assert 0 <= float(values[f"latency_{stage}_p50_ms"]) <= float(values[f"latency_{stage}_p99_ms"])
    assert 0 < float(values["rate_out_hz"]) <= float(values["rate_in_hz"]) < 100
    assert int(values["keypoints"]) > 0 and int(values["matches"]) > 0
    assert 0 < float(values["inlier_ratio"]) <= 1
    assert (values["device"], values["model"]) == ("cpu", "samfeat-nano")
    assert values["engine"] not in ("", "none")
    assert float(values["image_age_s"]) < 2
    assert got[-1].status[0].level == b"\x00"
    stamps = [messages.stamp_to_ns(msg.header.stamp) for msg in got]
    assert 0.5e9 < np.median(np.diff(stamps)) < 2e9
    rig.wait(lambda: "no image for" in got[-1].status[0].message, "the report that images stopped")


def test_what_was_chosen_is_said_once(rig):
    node = rig.node()
    engine = node._pipeline.extractor.engine_name
    said = rig.wait(lambda: [line for line in rig.lines(INFO) if engine in line])
    assert len(said) == 1 and "cpu" in said[0].lower()


# ---- input ----


def padded(image: np.ndarray, encoding: str, padding: int) -> Image:
    """Image message with `padding` bytes behind each row."""
    rows = image.reshape(image.shape[0], -1)
    rows = np.pad(np.ascontiguousarray(rows).view(np.uint8), ((0, 0), (0, padding)))
    msg = Image(encoding=encoding, width=image.shape[1], height=image.shape[0], step=rows.shape[1])
    msg.data.frombytes(rows.tobytes())
    return msg


def test_encodings_reach_the_same_points(rig):
    rig.node()
    camera = Camera(rig, shift=0)
    got = rig.output(PointCloud2, "keypoints")
    image = camera.image
    expected = messages.keypoints_from_msg(camera.frame(got, grey(image))).points
    big = padded(image.astype(">u2") * 257, "mono16", 4)
    big.data = padded((image.astype(np.uint16) * 257).astype(">u2"), "mono16", 4).data
    big.is_bigendian = 1
    for msg in (
        padded(image, "mono8", 5),
        padded(np.dstack([image] * 3), "rgb8", 7),
        padded(np.dstack([image] * 4), "bgra8", 0),
        padded(image.astype(np.uint16) * 257, "mono16", 2),
        big,
    ):
        points = messages.keypoints_from_msg(camera.frame(got, msg)).points
        np.testing.assert_allclose(points, expected, atol=1e-3)


def test_compressed_images(rig):
    rig.node(image_transport="compressed", arguments=("-r", "image:=/front/image_raw"))
    camera = Camera(rig, connect=False)
    camera.connect(rig.publisher(CompressedImage, "/front/image_raw/compressed"), CompressedImage())
    got = rig.output(PointCloud2, "keypoints")
    for extension in (".jpg", ".png"):
        data = cv2.imencode(extension, camera.image)[1].tobytes()
        assert camera.frame(got, CompressedImage(format=extension[1:], data=data)).width > 0
    camera.send(CompressedImage(format="jpeg", data=data[:100]))
    rig.wait(lambda: rig.lines(WARN, "image refused (decode): damaged PNG"))


def faulty(image: np.ndarray) -> list[tuple[str, Image]]:
    """Messages that contradict themselves, with the cause under which each counts."""
    short, narrow, empty, foreign, huge = (grey(image) for _ in range(5))
    short.data = short.data[:-1]
    narrow.step = narrow.width - 1
    empty.width = empty.height = 0
    foreign.encoding = "12UC7"
    huge.width = huge.height = 2**31
    return [("length", short), ("step", narrow), ("size", empty), ("encoding", foreign), ("size", huge)]


def test_bad_images_are_refused_and_counted_and_the_node_lives(rig):
    node = rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    camera.frame(got)
    for cause, msg in faulty(camera.image):
        before = node.statistics.dropped[cause]
        camera.send(msg)
        rig.wait(lambda cause=cause, before=before: node.statistics.dropped[cause] == before + 1, cause)
        rig.wait(lambda cause=cause: rig.lines(WARN, f"image refused ({cause})"))
    assert rig.lines(WARN, "'12UC7'")
    camera.frame(got)


def test_bad_images_do_not_storm_the_log(rig):
    node = rig.node()
    camera = Camera(rig)
    rig.output(PointCloud2, "keypoints")
    for _ in range(60):
        camera.send(faulty(camera.image)[0][1])
        time.sleep(0.01)
    rig.wait(lambda: node.statistics.dropped["length"] > 30)
    assert 1 <= len(rig.lines(WARN)) <= 2


@pytest.mark.parametrize("level", [0, 128, 255])
def test_featureless_images_give_empty_outputs_without_warnings(rig, level):
    rig.node(threshold=-1.0)
    camera = Camera(rig)
    clouds = {name: rig.output(PointCloud2, name) for name in ("keypoints", "descriptors", "matches")}
    flat = np.full((camera.height, camera.width), level, np.uint8)
    for _ in range(3):
        camera.frame(clouds["matches"], grey(flat))
    rig.wait(lambda: all(len(got) == 3 for got in clouds.values()))
    assert {msg.width for got in clouds.values() for msg in got} == {0}
    assert messages.descriptors_from_msg(clouds["descriptors"][-1]).shape == (0, 64)
    assert not rig.lines(WARN) and not rig.lines(ERROR)


def test_the_newest_frame_wins_and_memory_stays_flat(rig):
    node = rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    camera.frame(got)
    extract = node._pipeline.extractor

    def slow(image, mask=None):
        time.sleep(0.1)
        return extract(image, mask)

    for name in ("max_keypoints", "threshold", "device", "engine_name", "model_name", "weights_hash"):
        setattr(slow, name, getattr(extract, name))
    node._pipeline.extractor = slow
    for _ in range(100):
        header = camera.send()
        time.sleep(0.01)
    rig.wait(lambda: got[-1].header == header, "the last frame")
    counted = node.statistics
    assert counted.dropped["superseded"] > 50
    assert counted.frames_in == counted.frames_processed + sum(counted.dropped.values())
    stamps = [messages.stamp_to_ns(msg.header.stamp) for msg in got]
    assert stamps == sorted(stamps)
    # The only places where images could pile up hold one at most.
    assert not node._workers.find._slot and not node._workers.track._slot
    assert all(len(window) <= window.maxlen for window in counted._latencies.values())


def test_a_failing_engine_costs_a_frame_not_the_node(rig):
    node = rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    camera.frame(got)
    pipeline = node._pipeline

    def failing(_):
        raise RuntimeError("out of\nmemory")

    for count, stage in enumerate(("find", "track"), 1):
        whole = getattr(pipeline, stage)
        setattr(pipeline, stage, failing)
        camera.send()
        rig.wait(lambda count=count: node.statistics.dropped["failed"] == count)
        setattr(pipeline, stage, whole)
        camera.frame(got)
    assert rig.lines(WARN, "frame lost: RuntimeError: out of memory")


def test_a_frame_is_in_the_network_while_the_one_before_is_tracked(rig):
    node = rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    camera.frame(got)
    find, track = node._pipeline.find, node._pipeline.track
    in_tracker, next_found, overlapped = threading.Event(), threading.Event(), []

    def finding(msg):
        found = find(msg)
        if in_tracker.is_set():
            next_found.set()
        return found

    def tracking(found):
        if not overlapped:
            in_tracker.set()
            overlapped.append(next_found.wait(10))
        return track(found)

    node._pipeline.find, node._pipeline.track = finding, tracking
    camera.send()
    rig.wait(in_tracker.is_set, "the first frame in the tracker")
    second = camera.send()
    rig.wait(lambda: got[-1].header == second, "the second frame")
    assert overlapped == [True]


# ---- restarts ----


@pytest.fixture
def tracked(rig):
    """A node that tracks, its camera, and its matches and restarts."""
    rig.node()
    camera = Camera(rig)
    restarts, got = rig.output(Bool, "restart"), rig.output(PointCloud2, "matches")
    camera.frame(got)
    assert camera.frame(got).width > 10
    assert not restarts
    return camera, got, restarts


def until_answered(rig, camera, got):
    """Send frames until one of their size is answered: its engine is built beside the running one."""
    count = len(got)
    rig.wait(lambda: camera.send() and time.sleep(0.05) is None and len(got) > count, "the engine of a new size")


def stamps_go_back(rig, camera):
    camera.start_ns -= 100 * FRAME_NS


def gap(rig, camera):
    camera.start_ns += 1_500_000_000


def reset(rig, camera):
    assert rig.call(Trigger, "/samfeat/reset", Trigger.Request()).success


def other_resolution(rig, camera):
    camera.width, camera.height = 128, 96


@pytest.mark.parametrize("event", [stamps_go_back, gap, reset, other_resolution])
def test_tracks_restart(rig, tracked, event):
    camera, got, restarts = tracked
    event(rig, camera)
    if event is other_resolution:
        until_answered(rig, camera, got)
    else:
        assert camera.frame(got).width == 0
    rig.wait(lambda: [msg.data for msg in restarts] == [True])
    assert camera.frame(got).width > 10
    assert len(restarts) == 1


def test_tracks_restart_when_the_encoding_changes(rig, tracked):
    camera, got, restarts = tracked
    assert camera.frame(got, padded(np.dstack([camera.image] * 3), "rgb8", 0)).width == 0
    rig.wait(lambda: restarts)


def test_new_resolutions_are_taken(rig, tracked):
    camera, got, _ = tracked
    for width, height in ((128, 96), (97, 81), (160, 120)):
        camera.width, camera.height = width, height
        until_answered(rig, camera, got)


def test_frames_of_a_known_size_go_on_while_an_engine_is_built(rig, tracked):
    camera, got, _ = tracked
    node = rig.spinners[-1].node
    other = grey(cv2.resize(camera.image, (288, 224)))
    for count in (1, 2):
        camera.send(other)
        rig.wait(lambda count=count: node.statistics.dropped["no_engine"] == count)
    assert not rig.lines(INFO, "for images of 288x224")  # a size seen twice is not built
    arrivals = []

    def built() -> bool:
        camera.frame(got)
        arrivals.append(time.monotonic())
        time.sleep(0.03)
        return not node._pipeline.extractor.lacks_engine(288, 224)

    camera.send(other)
    rig.wait(lambda: rig.lines(INFO, "building the engine for images of 288x224"))
    rig.wait(built)
    assert len(arrivals) > 10
    assert len(rig.lines(INFO, "288x224")) == 1
    camera.frame(got, grey(cv2.resize(camera.image, (288, 224))))


# ---- services, parameters, mask ----


def test_enable(rig):
    node = rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "matches")
    camera.frame(got)
    assert rig.call(SetBool, "/samfeat/enable", SetBool.Request(data=False)).message == "disabled"
    count = len(got)
    camera.send()
    rig.wait(lambda: node.statistics.dropped["disabled"] == 1)
    assert len(got) == count
    assert rig.call(SetBool, "/samfeat/enable", SetBool.Request(data=True)).success
    assert camera.frame(got).width == 0  # tracks do not jump over the pause
    assert camera.frame(got).width > 10


def test_parameters_change_while_running(rig):
    rig.node()
    camera = Camera(rig)
    got, matches = rig.output(PointCloud2, "keypoints"), rig.output(PointCloud2, "matches")
    assert camera.frame(got).width > 60
    assert rig.set(max_keypoints=50) == (True, "")
    assert camera.frame(got).width == 50
    assert rig.set(max_keypoints=1024, tracker="match")[0]
    assert camera.frame(got).width > 60
    camera.frame(matches)
    many = camera.frame(matches).width
    assert rig.set(min_similarity=0.9999, ratio=0.5)[0]
    assert camera.frame(matches).width < many
    assert rig.set(threshold=1.0)[0]
    assert camera.frame(got).width == 0


def test_the_tracker_changes_while_running(rig):
    rig.node(tracker="match")
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    camera.frame(got)
    rows = messages.keypoints_from_msg(camera.frame(got))
    assert rows.lengths.max() == 2 and (rows.sources == DETECTED).all() and (rows.trust == 1).all()
    assert rig.set(tracker="hybrid")[0]
    rows = messages.keypoints_from_msg(camera.frame(got))
    assert (rows.lengths == 1).all()  # its tracks begin anew
    rows = messages.keypoints_from_msg(camera.frame(got))
    followed = rows.sources == FOLLOWED
    assert followed.any() and (rows.lengths[followed] == 2).all()
    assert 0.9 < np.median(rows.trust[rows.lengths == 2]) < 1


def test_impossible_parameters_are_refused_with_the_reason(rig):
    node = rig.node()
    for values, reason in (
        ({"max_keypoints": 0}, "max_keypoints"),
        ({"ratio": 3.0}, "ratio"),
        ({"tracks_layout": "vins"}, "tracks_layout is 'vins', expected one of fusion, mono"),
        ({"model": "samfeat"}, "model takes effect when the node is configured: call cleanup first"),
        ({"max_keypoints": "many"}, "Wrong parameter type"),
        ({"autostart": True}, "autostart"),
    ):
        ok, text = rig.set(**values)
        assert not ok and reason in text
    assert node.parameters.max_keypoints == 1024


def test_every_parameter_is_described_over_ros(rig):
    from rcl_interfaces.srv import DescribeParameters

    from samfeat_ros.node.parameters import NAMES

    rig.node(start=False)
    request = DescribeParameters.Request(names=list(NAMES))
    descriptors = rig.call(DescribeParameters, "/samfeat/describe_parameters", request).descriptors
    by_name = {descriptor.name: descriptor for descriptor in descriptors}
    assert all(descriptor.description for descriptor in descriptors)
    assert by_name["max_keypoints"].integer_range[0].to_value == 16384
    assert by_name["ratio"].floating_point_range[0].to_value == 1.0
    assert by_name["autostart"].read_only
    assert "fusion" in by_name["tracks_layout"].additional_constraints


def left_half(width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


@pytest.mark.parametrize("scale", [1, 2])
def test_mask_topic(rig, scale):
    rig.node()
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    masks = rig.publisher(Image, "/mask", LATCHED)
    assert messages.keypoints_from_msg(camera.frame(got)).points[:, 0].max() > camera.width * 0.75
    masks.publish(grey(left_half(camera.width // scale, camera.height // scale)))
    rig.wait(lambda: rig.lines(INFO, "new mask"))
    for _ in range(3):
        points = messages.keypoints_from_msg(camera.frame(got)).points
        assert len(points) and points[:, 0].max() <= camera.width / 2 + 1
    assert len(rig.lines(WARN, "resizing the mask")) == (0 if scale == 1 else 1)
    masks.publish(padded(np.zeros((4, 4, 3), np.uint8), "rgb8", 0))
    rig.wait(lambda: rig.lines(WARN, "the mask is refused"))
    assert messages.keypoints_from_msg(camera.frame(got)).points[:, 0].max() <= camera.width / 2 + 1


def test_a_late_node_gets_the_latched_mask(rig):
    masks = rig.publisher(Image, "/mask", LATCHED, matched=False)
    masks.publish(grey(left_half(160, 120)))
    rig.node()
    rig.wait(lambda: rig.lines(INFO, "new mask"))


def test_mask_file(rig, tmp_path):
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), left_half(160, 120))
    rig.node(mask_file=str(path))
    camera = Camera(rig)
    got = rig.output(PointCloud2, "keypoints")
    assert messages.keypoints_from_msg(camera.frame(got)).points[:, 0].max() <= camera.width / 2 + 1


# ---- quality of service ----


@pytest.mark.parametrize(
    ("publishes", "parameters", "said"),
    [
        ([], {}, "nobody publishes it, or any images"),
        ([(Image, "/front/samfeat/overlay")], {}, "nobody publishes it, or any images"),
        ([(Image, "/front/image_raw")], {}, "nobody publishes it; images are on /front/image_raw (Image)"),
        ([(CompressedImage, "/image/compressed")], {}, f"/image/compressed has CompressedImage: {COMPRESSED}"),
        ([(CompressedImage, "/image")], {}, f"/image has CompressedImage: {COMPRESSED}"),
        ([(Image, "/image")], {"image_transport": "compressed"}, "/image has Image: set image_transport to raw"),
        (
            [(Image, "/image")],
            {},
            "it has the publisher /peer (Image, best effort, volatile); none has sent anything that arrived",
        ),
    ],
)
def test_no_image_is_a_warning_with_what_the_graph_says(rig, monkeypatch, publishes, parameters, said):
    monkeypatch.setattr(samfeat_node, "SILENCE_S", 2.0)
    for kind, topic in publishes:
        rig.publisher(kind, topic, matched=False)
    node = rig.node(**parameters)
    rig.wait(lambda: rig.lines(WARN, "no image on"))
    topic = "/image/compressed" if parameters else "/image"
    assert rig.lines(WARN, "no image on") == [f"no image on {topic} for 2 s: {said}"]
    time.sleep(1.5)
    assert len(rig.lines(WARN, "no image on")) == 1  # once
    assert node._silence_told


def test_images_that_stop_are_a_warning_each_time(rig, monkeypatch):
    monkeypatch.setattr(samfeat_node, "SILENCE_S", 1.5)
    rig.node()
    camera = Camera(rig)
    for count in (1, 2):
        camera.send()
        time.sleep(1.2)
        assert len(rig.lines(WARN, "no image on")) == count - 1
        rig.wait(lambda count=count: len(rig.lines(WARN, "no image on")) == count)


def test_publishers_that_offer_too_little_are_named_with_the_remedy(rig):
    rig.node(**{"qos_overrides./image.subscription.reliability": "reliable"})
    rig.publisher(Image, "/image", matched=False)
    remedy = "qos_overrides./image.subscription.reliability to best_effort"
    rig.wait(lambda: rig.lines(WARN, remedy))
    rig.publisher(Image, "/mask", 1, matched=False)
    rig.wait(lambda: rig.lines(WARN, "qos_overrides./mask.subscription.durability to volatile"))


def test_subscriptions_that_ask_too_much_are_named_with_the_remedy(rig):
    rig.node()
    rig.listen(PointCloud2, "/samfeat/keypoints", LATCHED)
    rig.wait(lambda: rig.lines(WARN, "qos_overrides./samfeat/keypoints.publisher.durability to transient_local"))


def test_qos_overrides_by_remapped_name(rig):
    rig.node(**{"qos_overrides./front/image_raw.subscription.depth": 7}, arguments=("-r", "image:=/front/image_raw"))
    rig.node  # noqa: B018
    info = rig.wait(lambda: rig.peer.get_subscriptions_info_by_topic("/front/image_raw"))[0]
    assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    parameter = "qos_overrides./front/image_raw.subscription.depth"
    assert rig.spinners[-1].node.get_parameter(parameter).value == 7


def test_default_qos(rig):
    rig.node()
    subscription = rig.wait(lambda: rig.peer.get_subscriptions_info_by_topic("/image"))[0].qos_profile
    assert subscription.reliability == ReliabilityPolicy.BEST_EFFORT
    for name in ("keypoints", "descriptors", "matches", "tracks", "restart", "overlay"):
        publisher = rig.wait(lambda name=name: rig.peer.get_publishers_info_by_topic(f"/samfeat/{name}"))[0]
        assert publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE


# ---- namespace, time ----


def test_namespace(rig):
    rig.node(arguments=("-r", "__ns:=/robot"))
    camera = Camera(rig, topic="/robot/image")
    got = rig.output(PointCloud2, "keypoints")
    reports = rig.listen(DiagnosticArray, "/diagnostics")
    camera.frame(got)
    rig.wait(lambda: reports and values_from_msg(reports[-1]))
    assert reports[-1].status[0].name == "robot/samfeat: features"


def test_reports_go_on_while_simulated_time_stands_still(rig):
    rig.node(use_sim_time=True)
    camera = Camera(rig)
    got, reports = rig.output(PointCloud2, "keypoints"), rig.listen(DiagnosticArray, "/diagnostics")
    camera.frame(got)
    rig.wait(lambda: len(reports) > 1)
