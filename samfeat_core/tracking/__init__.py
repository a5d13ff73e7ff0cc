"""Trackers: which keypoints of a frame are the points of the frame before, under which id, and for how long.

- `MatchTracker`: mutual nearest neighbours from frame to frame. Needs no images.
- `HybridTracker`: optical flow follows every point, a reference patch keeps it in place, and the network gives birth
  to points, confirms them, and finds them again under their old id. `repair=False` leaves only the births to the
  network.

- `CornerTracker`: corners under optical flow, the classic yardstick.

`make_tracker` builds one by the name that the node's parameter `tracker` takes.
"""

from __future__ import annotations

from typing import Any

from samfeat_core.tracking.base import DETECTED, FOLLOWED, ID_LIMIT, RECOVERED, SOURCES, Tracker
from samfeat_core.tracking.corners import CornerTracker
from samfeat_core.tracking.hybrid import HybridTracker
from samfeat_core.tracking.match import MatchTracker

__all__ = [
    "DETECTED",
    "FOLLOWED",
    "ID_LIMIT",
    "RECOVERED",
    "SOURCES",
    "TRACKERS",
    "CornerTracker",
    "HybridTracker",
    "MatchTracker",
    "Tracker",
    "make_tracker",
]

TRACKERS = ("match", "flow", "hybrid")


def make_tracker(name: str, max_points: int = 1024, **options: Any) -> Tracker:
    """The tracker of that name.

    Args:
        name: match (frame-to-frame matches), flow (the network for births only) or hybrid (flow and network).
        max_points: most points of a frame, for flow and hybrid; the matcher has as many as there are keypoints.
        options: attributes of the tracker, as its constructor takes them.

    Raises:
        ValueError: another name, or an option out of its range.
    """
    if name == "match":
        return MatchTracker(**options)
    if name in TRACKERS:
        return HybridTracker(max_points, repair=name == "hybrid", **options)
    raise ValueError(f"tracker is {name!r}, expected one of {', '.join(TRACKERS)}")
