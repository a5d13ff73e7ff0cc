"""The lifecycle of the real node: what each transition builds and releases, and how configuring fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from ros_rig import TIMEOUT_S, Camera  # noqa: E402
from sensor_msgs.msg import PointCloud2  # noqa: E402

from samfeat_ros.node.builder import EngineBuilder  # noqa: E402
from samfeat_ros.topics import OUTPUTS, is_installed  # noqa: E402

ERROR = "ERROR"
TOPICS = [name for name, output in OUTPUTS.items() if is_installed(output.type)]


def published(rig) -> int:
    return sum(rig.peer.count_publishers(f"/samfeat/{name}") for name in TOPICS)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("samfeat-find", "samfeat-track")]


def test_a_whole_life_twice(rig):
    node = rig.node(start=False)
    assert rig.state() == "unconfigured"
    got = rig.listen(PointCloud2, "/samfeat/keypoints")
    camera = Camera(rig, connect=False)
    camera.publisher = rig.publisher(*_image())
    for _ in range(2):
        assert rig.transition("configure") and rig.state() == "inactive"
        rig.wait(lambda: published(rig) == len(TOPICS))
        assert rig.peer.count_subscribers("/image") == 0 and not workers()
        for _ in range(2):
            assert rig.transition("activate") and rig.state() == "active"
            rig.wait(lambda: camera.publisher.get_subscription_count() == 1)
            camera.connect(camera.publisher)
            rig.wait(node._outputs.wanted)
            assert len(workers()) == 2
            camera.frame(got)
            assert rig.transition("deactivate") and rig.state() == "inactive"
            rig.wait(lambda: camera.publisher.get_subscription_count() == 0)
            assert not workers()
        assert rig.transition("cleanup") and rig.state() == "unconfigured"
        rig.wait(lambda: published(rig) == 0)
        assert node._pipeline is None and node._outputs is None
    services = dict(rig.peer.get_service_names_and_types_by_node("samfeat", "/"))
    assert "/samfeat/reset" not in services
    assert rig.transition("shutdown") and rig.state() == "finalized"


def _image():
    from sensor_msgs.msg import Image

    return Image, "/image", 1, False


def test_the_node_answers_while_it_is_configured(rig, monkeypatch):
    """A lifecycle manager waits for an engine to be built; parameters, state and diagnostics do not."""
    builds, go_on = threading.Event(), threading.Event()
    build = EngineBuilder.build_apart

    def slow(self, width, height):
        builds.set()
        assert go_on.wait(TIMEOUT_S)
        return build(self, width, height)

    monkeypatch.setattr(EngineBuilder, "build_apart", slow)
    rig.node(start=False)
    reports = rig.listen(DiagnosticArray, "/diagnostics")
    client = rig.peer.create_client(ChangeState, "/samfeat/change_state")
    assert client.wait_for_service(TIMEOUT_S)
    answer = client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
    assert builds.wait(TIMEOUT_S)
    assert rig.set(max_keypoints=77)[0] and rig.state() == "configuring"
    count = len(reports)
    rig.wait(lambda: len(reports) > count + 1, "reports")
    assert not rig.transition("configure") and not rig.transition("shutdown")  # one transition at a time
    assert not answer.done()
    go_on.set()
    rig.wait(answer.done, "the answer of configure")
    assert answer.result().success and rig.state() == "inactive"
    assert rig.transition("activate")


def test_shutdown_from_active_releases_everything(rig):
    rig.node()
    assert len(workers()) == 2
    assert rig.transition("shutdown")
    rig.wait(lambda: published(rig) == 0 and rig.peer.count_subscribers("/image") == 0)
    assert not workers()


@pytest.fixture
def broken(tmp_path, weights):
    """Weights files that cannot be used, by what is wrong with them."""
    whole = Path(weights).read_bytes()
    truncated, foreign = tmp_path / "truncated.safetensors", tmp_path / "foreign.safetensors"
    truncated.write_bytes(whole[: len(whole) // 2])
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"layer.weight": torch.zeros(3)}, foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    return {"missing": tmp_path / "missing.safetensors", "truncated": truncated, "foreign": foreign, "text": text}


@pytest.mark.parametrize("fault", ["missing", "truncated", "foreign", "text"])
def test_bad_weights_fail_to_configure_with_one_line(rig, broken, fault, weights):
    rig.node(start=False, weights=str(broken[fault]))
    assert not rig.transition("configure")
    assert rig.state() == "unconfigured"
    lines = rig.wait(lambda: rig.lines(ERROR))
    assert len(lines) == 1 and "\n" not in lines[0] and "Traceback" not in lines[0]
    assert lines[0].startswith("cannot configure: ") and broken[fault].name in lines[0]
    assert published(rig) == 0
    assert rig.set(weights=weights)[0]  # mended without a restart
    assert rig.transition("configure") and rig.transition("activate")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": "superpoint"}, "superpoint"),
        ({"mask_file": "/no/such/mask.png"}, "/no/such/mask.png"),
        ({"engine": "tensorrt"}, "engine tensorrt does not run on cpu"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_impossible_parameters_fail_to_configure_with_one_line(rig, values, text):
    rig.node(start=False, **values)
    assert not rig.transition("configure")
    lines = rig.wait(lambda: rig.lines(ERROR))
    assert len(lines) == 1 and text in lines[0] and "\n" not in lines[0]


def test_require_cuda_without_cuda(rig):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    rig.node(start=False, device="auto", require_cuda=True)
    assert not rig.transition("configure")
    lines = rig.wait(lambda: rig.lines(ERROR))
    assert len(lines) == 1 and "require_cuda" in lines[0] and "CUDA" in lines[0]


def test_an_impossible_qos_override_fails_to_activate_with_one_line(rig):
    rig.node(start=False, **{"qos_overrides./image.subscription.reliability": "perfect"})
    assert rig.transition("configure")
    assert not rig.transition("activate")
    assert rig.state() == "inactive"
    lines = rig.wait(lambda: rig.lines(ERROR))
    assert len(lines) == 1 and "perfect" in lines[0]
    assert not workers()


def test_impossible_start_values_are_an_exception(rig):
    from rclpy.exceptions import ParameterException

    with pytest.raises((ParameterException, ValueError)):
        rig.node(start=False, max_keypoints=-5)
