"""Why no image comes: what the ROS graph says about the topic."""

from __future__ import annotations

from typing import Any

from samfeat_ros.topics import IMAGE_TYPES, OUTPUTS, TRANSPORTS, short_name, transport_topic

_NAMED = 4  # topics and publishers in one line
_OVERLAYS = tuple(f"/{name}" for name, output in OUTPUTS.items() if output.type in IMAGE_TYPES)  # no camera's


def explain(node: Any, topic: str, transport: str) -> str:
    """One sentence for the log.

    Args:
        node: asks the graph.
        topic: resolved name of the image topic without the transport's suffix.
        transport: the parameter image_transport.
    """
    subscribed = transport_topic(topic, transport)
    publishers = node.get_publishers_info_by_topic(subscribed)
    others = {name: transport_topic(topic, name) for name in TRANSPORTS if name != transport}
    for name, other in others.items():
        wrong_type = any(info.topic_type == TRANSPORTS[name] for info in publishers)
        if wrong_type or (not publishers and node.count_publishers(other)):
            there = subscribed if wrong_type else other
            return f"{there} has {short_name(TRANSPORTS[name])}: set image_transport to {name}"
    if publishers:
        return f"it has {_some([_publisher(info) for info in publishers])}; none has sent anything that arrived"
    published = [
        f"{name} ({short_name(types[0])})"
        for name, types in node.get_topic_names_and_types()
        if types[0] in IMAGE_TYPES and node.count_publishers(name) and not name.endswith(_OVERLAYS)
    ]
    return (
        f"nobody publishes it; images are on {_some(published)}" if published else "nobody publishes it, or any images"
    )


def _publisher(info: Any) -> str:
    qos = info.qos_profile
    policies = ", ".join(policy.name.lower().replace("_", " ") for policy in (qos.reliability, qos.durability))
    name = f"{info.node_namespace.rstrip('/')}/{info.node_name}"
    return f"the publisher {name} ({short_name(info.topic_type)}, {policies})"


def _some(words: list[str]) -> str:
    return ", ".join(words[:_NAMED]) + (f" and {len(words) - _NAMED} more" if len(words) > _NAMED else "")
