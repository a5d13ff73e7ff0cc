"""The table of topics: the node, the documents and image_transport's names agree with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
from samfeat_ros import messages  # noqa: E402
from samfeat_ros.node import outputs as node_outputs  # noqa: E402
from samfeat_ros.topics import (  # noqa: E402
    DIAGNOSTICS,
    DIAGNOSTICS_TYPE,
    INPUTS,
    OUTPUTS,
    TRANSPORTS,
    is_installed,
    message_class,
    short_name,
    transport_topic,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_node_has_the_topics_of_the_table(rig, transport):
    rig.node(image_transport=transport)

    def topics(of: str) -> dict[str, list[str]]:
        return dict(getattr(rig.peer, f"get_{of}_names_and_types_by_node")("samfeat", "/"))

    rig.wait(lambda: "/image" in " ".join(topics("subscriber")), "the subscriptions")
    published, subscribed = topics("publisher"), topics("subscriber")
    outputs = {f"/samfeat/{name}": [output.type] for name, output in OUTPUTS.items() if is_installed(output.type)}
    own = {name: types for name, types in published.items() if name.startswith("/samfeat/")}
    assert own == outputs | {"/samfeat/transition_event": ["lifecycle_msgs/msg/TransitionEvent"]}
    assert published[DIAGNOSTICS] == [DIAGNOSTICS_TYPE]
    inputs = {f"/{name}": list(types) for name, types in INPUTS.items() if name != "image"}
    assert {name: subscribed[name] for name in inputs} == inputs
    assert subscribed[transport_topic("/image", transport)] == [TRANSPORTS[transport]]
    assert TRANSPORTS[transport] in INPUTS["image"]


def test_types_have_classes():
    for output in OUTPUTS.values():
        if output.optional and not is_installed(output.type):
            continue
        kind = message_class(output.type)
        assert f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}" == output.type


def test_a_topic_whose_package_is_missing_is_left_out(rig, monkeypatch):
    monkeypatch.setattr(node_outputs, "is_installed", lambda type_name: False)
    node = rig.node()
    assert set(node._outputs._publishers) == {name for name, output in OUTPUTS.items() if not output.optional}
    assert not is_installed("no_such_msgs/msg/Thing")


def test_compressed_topics_are_named_as_image_transport_names_them():
    assert transport_topic("/camera/image_raw", "raw") == "/camera/image_raw"
    assert transport_topic("/camera/image_raw", "compressed") == "/camera/image_raw/compressed"
    assert transport_topic("/camera/image_raw/compressed", "compressed") == "/camera/image_raw/compressed"


def test_documents_name_the_outputs_with_their_types():
    """Rows of tables that begin with an output's name, in README and docs."""
    found: dict[str, list[str]] = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name, kind in re.findall(r"^\|\s*`~/([\w/]+)`\s*\|([^|]*)\|", path.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(kind)
    assert set(found) >= set(OUTPUTS)
    for name, output in OUTPUTS.items():
        for kind in found[name]:
            assert re.search(rf"\b{short_name(output.type)}\b", kind), f"{name}: {kind}"
    assert set(re.findall(r"^- `~/(\w+)`", messages.__doc__ or "", re.MULTILINE)) <= set(OUTPUTS)
