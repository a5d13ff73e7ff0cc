"""The data of the `tracks` suite: recorded sequences, whole and thinned, rendered flights, and both under stress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from samfeat_core.classic import Extractor
from samfeat_core.sequence import ImageSequence, posed_folders
from training.evaluation.tracks.footage import Footage, recorded, rendered, shortened
from training.evaluation.tracks.front_ends import FrontEnd, front_ends
from training.evaluation.tracks.measures import GAPS, measure
from training.evaluation.tracks.stress import STRESSES

THINNED = (1, 2, 3, 5)  # every n-th frame
FLIGHTS = {"room": (1.2, 40.0), "street": (6.0, 14.0)}  # metres and degrees of yaw per second
FLIGHT_FRAMES = 150
STRESSED_FRAMES = 120
SEED = 11  # of the flights; the tracker was developed on others

_flight = lru_cache(1)(rendered)  # all its stresses look at the same pictures


@dataclass(frozen=True)
class TrackTask:
    """Footage on which every front-end is to be measured; the interface of `training.evaluation.suites.Task`."""

    suite: str
    dataset: str
    frames: int
    make: Callable[[], Footage] = field(repr=False)
    protocol: dict = field(default_factory=dict)
    kind: str = "tracks"

    @property
    def pairs(self) -> range:
        """What is counted in the head of the table: frames."""
        return range(self.frames)

    @cached_property
    def footage(self) -> Footage:
        return self.make()

    def entrants(self, extractors: dict[str, Extractor]) -> dict[str, Any]:
        """Front-ends of these extractors, by label."""
        return front_ends(extractors, self.protocol["max_keypoints"])

    def run(self, label: str, entrant: FrontEnd, progress: Callable[[Sequence], Iterable] = iter) -> dict:
        """One entry of the report's ``results``."""
        run = entrant.run(self.footage, progress)
        head = {"extractor": label, "suite": self.suite, "dataset": self.dataset, "kind": self.kind}
        numbers = measure(run, self.footage, self.protocol["threshold_px"])
        return {**head, "protocol": self.protocol, "pairs": self.frames, **numbers}


def track_tasks(root: Path, max_keypoints: int, threshold_px: float, every: int | None = None) -> list[TrackTask]:
    """All footage of the suite.

    Args:
        root: folder of posed sequences; without it there are the rendered flights alone.
        every: take the sequences with every n-th frame, instead of `THINNED`.
    """
    protocol = {"max_keypoints": max_keypoints, "threshold_px": threshold_px, "gaps": list(GAPS)}
    tasks: list[TrackTask] = []

    def add(name: str, frames: int, make: Callable[[], Footage], stress: str | None = None) -> None:
        if stress:
            name, make = f"{name} {stress}", partial(_stressed, make, stress)
        tasks.append(TrackTask("tracks", name, frames, make, protocol))

    for folder in posed_folders(root):
        sequence = ImageSequence.read(folder, require=("poses",))
        for step in THINNED if every is None else (every,):
            name = folder.name if step == 1 else f"{folder.name}/{step}"
            add(name, len(range(0, len(sequence), step)), partial(recorded, sequence, folder.name, step))
        if every is None:
            for stress in STRESSES:
                add(folder.name, STRESSED_FRAMES, partial(recorded, sequence, folder.name), stress)
    for kind, speeds in FLIGHTS.items():
        make = partial(_flight, kind, FLIGHT_FRAMES, SEED, *speeds)
        add(kind, FLIGHT_FRAMES, make)
        for stress in STRESSES:
            add(kind, STRESSED_FRAMES, make, stress)
    return tasks


def _stressed(make: Callable[[], Footage], stress: str) -> Footage:
    return STRESSES[stress](shortened(make(), STRESSED_FRAMES))
