"""What a user has set and this node does not read: misspelt parameters, and files with sections of other nodes only.

ROS says nothing about either.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import yaml

from samfeat_core.errors import quoted
from samfeat_ros.node.parameters import NAMES

_OPTION = "--params-file"
# Declared when topics are, long after the start.
_LATER = "qos_overrides."


def unread(node: Any, arguments: Sequence[str]) -> Iterator[str]:
    """Lines for the log.

    Args:
        node: with its parameters declared.
        arguments: the command line that it was started with.
    """
    given = getattr(node, "_parameter_overrides", {})  # rclpy has no public way to them
    unknown = [name for name in given if not node.has_parameter(name) and not name.startswith(_LATER)]
    if unknown:
        yield f"this node has no {_list(map(_with_guess, unknown), 'parameter')}"
    name = node.get_fully_qualified_name()
    for path in [path for option, path in zip(arguments, arguments[1:]) if option == _OPTION]:
        sections = _sections_of(path)
        if sections and not any(_matches(section, name) for section in sections):
            yield f"{path} sets nothing for {name}: it is for the {_list(map(quoted, sections), 'node')}"


def _with_guess(name: str) -> str:
    close = difflib.get_close_matches(name, NAMES, 1)
    return quoted(name) + (f" (did you mean {close[0]}?)" if close else "")


def _list(words: Iterable[str], noun: str) -> str:
    listed = list(words)
    return f"{noun}{'s' * (len(listed) > 1)} {', '.join(listed)}"


def _sections_of(path: str) -> list[str]:
    """Nothing of a file that only ROS's own parser can read."""
    with suppress(OSError, ValueError, yaml.YAMLError), open(path, encoding="utf-8") as file:
        return list(_sections(yaml.safe_load(file)))
    return []


def _sections(tree: Any, name: str = "") -> Iterator[str]:
    """Names of the nodes that a params file has sections of, from the root: /ns/node, /**."""
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key == "ros__parameters":
            yield name or "/"
        else:
            yield from _sections(value, f"{name}/{str(key).strip('/')}")


def _matches(section: str, node: str) -> bool:
    """As rcl does: * stands for one part of the name, ** for any number of them."""
    pattern = re.escape(section).replace(r"/\*\*", r"(/\w+)*").replace(r"\*", r"\w+")
    return re.fullmatch(pattern, node) is not None
