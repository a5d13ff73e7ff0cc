"""Quality of service: profiles, what the user may override, and warnings where publisher and subscription differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks, UnsupportedEventTypeError

# Parameters qos_overrides.<topic>.<publisher|subscription>.<history|depth|reliability|durability>
QOS_OVERRIDES = QoSOverridingOptions(
    (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
)

# What is compatible with every other side: the least a subscription can ask for, the most a publisher can offer.
_MODEST = {"reliability": "best_effort", "durability": "volatile"}
_GENEROUS = {"reliability": "reliable", "durability": "transient_local"}


# Functions, because rclpy writes the user's overrides into the profile that it gets.
def newest() -> QoSProfile:
    """For sensor data: best effort, and only the newest message waits."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def latched() -> QoSProfile:
    """For messages that are sent once: reliable, and later subscriptions get the last one."""
    profile = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
    profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    return profile


def reliable() -> QoSProfile:
    """For results: every message arrives."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)


def subscription_events(node: Any, topic: str) -> SubscriptionEventCallbacks:
    """Event callbacks that warn, with the remedy, when a publisher offers less than the subscription asks for."""
    text = "nothing arrives from a publisher of {topic}: it offers another {policy} than this node asks for"
    return SubscriptionEventCallbacks(incompatible_qos=_warning(node, topic, text, "subscription", _MODEST))


def publisher_events(node: Any, topic: str) -> PublisherEventCallbacks:
    """Event callbacks that warn, with the remedy, when a subscription asks for more than the publisher offers."""
    text = "a subscription of {topic} gets nothing: it asks for another {policy} than this node offers"
    return PublisherEventCallbacks(incompatible_qos=_warning(node, topic, text, "publisher", _GENEROUS))


def _warning(node: Any, topic: str, text: str, side: str, values: dict[str, str]) -> Callable[[Any], None]:
    """What logs an incompatibility, and the parameter of this node's side that ends it."""
    other = {"subscription": "publisher", "publisher": "subscription"}[side]

    def warn(event: Any) -> None:
        policy, name = _policy(event), node.resolve_topic_name(topic)
        remedy = f"Set the parameter qos_overrides.{name}.{side}.{policy}"
        remedy += f" to {values[policy]}" if policy in values else ""
        node.get_logger().warning(f"{text.format(topic=name, policy=policy)}. {remedy}, or change the {other}")

    return warn


def create_with_events(create: Callable[..., Any], *args: Any, event_callbacks: Any, **kwargs: Any) -> Any:
    """Create a publisher or subscription with event callbacks, or without where the middleware has no such events."""
    try:
        return create(*args, event_callbacks=event_callbacks, **kwargs)
    except UnsupportedEventTypeError:
        return create(*args, **kwargs)


def _policy(event: Any) -> str:
    """ "reliability" and the like."""
    return qos_policy_name_from_kind(event.last_policy_kind).lower()
