"""The CPU path, image in -> matches out: our extractors beside OpenCV's ORB and SIFT in the same run.

    python benchmarks/cpu_path.py                           # samfeat-nano, 640x480, 1,024 keypoints, two threads
    python benchmarks/cpu_path.py --engine openvino --engine openvino_int8 --tracker match --tracker hybrid
    python benchmarks/cpu_path.py --extractor samfeat-nano=best.safetensors --peer mymodule:make_extractor

Every frame goes through the extractor and then through a tracker of its own: ours through each `--tracker`, the others
through `match` (mutual nearest neighbours, epipolar check, track ids). The extractors take turns in short blocks of
frames, so that whatever else the machine does meets all of them alike. Prints a table and writes a
JSON file:

    format     "samfeat-benchmark-cpu-path", version 1
    machine    `samfeat_core.measure.machine`
    settings   {"width", "height", "max_keypoints", "threads", "frames", "images", "load_before"}; load_before is the
               load average before the run: well above 0 means that other work was timed too
    results    per extractor: extract_ms, track_ms, total_ms, each {"p50", "p90", "p99"}; cpu_ms (median over frames of
               the CPU time of all threads, which other work on the machine hardly changes); frames (measured); hz
               (frames through the whole path in the time they took); keypoints, matches, inliers (mean per frame);
               times_orb, times_sift (its median total over theirs)

`make bench` (benchmarks/bench.py) runs this for all engines, sizes and budgets.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from samfeat_core.classic import Extractor

ROOT = Path(__file__).resolve().parents[1]
KITCHEN = "eval/sequences/kitchen/image"  # below the data's folder
BLOCK = 20
LEAST = 3  # frames measured of even the slowest
STAGES = ("extract_ms", "track_ms", "total_ms")


def limit_threads(count: int) -> None:
    """Ties this process to ``count`` cores; every thread pool (OpenMP, oneDNN, OpenVINO, OpenCV) sizes itself by that.

    Must come before any of them is imported.
    """
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in the node (samfeat_ros.environment)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def load_frames(folder: Path | None, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Up to ``count`` frames of ``size``: of a folder, else of a photograph of scikit-image under a moving view."""
    import cv2

    from samfeat_core.files import IMAGE_SUFFIXES, read_image

    if folder is None:
        return moving_view(size, count)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(files) < 2:
        raise ValueError(f"{folder}: expected a folder with at least two images")
    images = (read_image(path) for path in files[:count])
    return [image if image.shape[1::-1] == size else cv2.resize(image, size) for image in images]


def footage() -> Path | None:
    """The folder of frames to take: the kitchen, where the evaluation data is; else None, a moving view."""
    from training.environment import data_folder

    kitchen = data_folder() / KITCHEN
    return kitchen if kitchen.is_dir() else None


def moving_view(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """A camera that drifts, turns and nods over one photograph."""
    import cv2
    import numpy as np
    from skimage import data

    photo = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    side, (width, height) = photo.shape[0], size
    frames = []
    for phase in np.linspace(0, 2 * np.pi, count, endpoint=False):
        centre = side * (0.5 + 0.1 * np.array([np.cos(phase), np.sin(phase)]))
        corners = np.array([[-1, -0.75], [1, -0.75], [1, 0.75], [-1, 0.75]]) * side * (0.32 + 0.05 * np.sin(2 * phase))
        corners[:2] *= 1 + 0.1 * np.cos(phase)
        source = (centre + corners).astype(np.float32)
        target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        frames.append(cv2.warpPerspective(photo, cv2.getPerspectiveTransform(source, target), size))
    return frames


def back_and_forth(count: int) -> Iterator[int]:
    """0, 1, .. count - 1, count - 2, .. 0, 1, ..: an endless walk in which neighbours are always consecutive frames."""
    while True:
        yield from range(count - 1)
        yield from range(count - 1, 0, -1)


class Runner:
    """One extractor with its own tracker and its place in the sequence."""

    def __init__(
        self, label: str, extractor: Extractor, frames: Sequence[np.ndarray], max_keypoints: int, tracker: str
    ) -> None:
        from samfeat_core.tracking import make_tracker

        self.label = label
        self.extractor = extractor
        self.frames = frames
        self.max_keypoints = max_keypoints
        self.tracker = make_tracker(tracker, max_keypoints)
        self.order = back_and_forth(len(frames))
        self.times: list[tuple[float, float]] = []
        self.cpu: list[float] = []
        self.counts: list[tuple[int, int, int]] = []

    def step(self) -> None:
        """One frame through extractor and tracker."""
        from training.evaluation.extractors import cut

        frame = self.frames[next(self.order)]
        cpu, start = time.process_time(), time.perf_counter()
        features = cut(self.extractor(frame), self.max_keypoints)
        extracted = time.perf_counter()
        matches = self.tracker.update(features, image=frame)
        tracked = time.perf_counter()
        self.times.append(((extracted - start) * 1e3, (tracked - extracted) * 1e3))
        self.cpu.append((time.process_time() - cpu) * 1e3)
        self.counts.append((len(features), len(matches), int(matches.inlier.sum())))

    def warm_up(self, count: int, seconds: float) -> None:
        """Steps that are not measured: so many, or as many as the time allows, at least one."""
        end = time.perf_counter() + seconds
        for _ in range(count):
            self.step()
            if time.perf_counter() > end:
                break
        for measured in (self.times, self.cpu, self.counts):
            measured.clear()

    def is_done(self, count: int, seconds: float) -> bool:
        """So many frames were measured, or for so long; but `LEAST` at least."""
        spent = sum(map(sum, self.times)) / 1e3
        return len(self.times) >= (count if spent < seconds else min(count, LEAST))

    def block(self, count: int, seconds: float) -> None:
        """Up to `BLOCK` frames, after one that brings the caches back to this extractor and is dropped."""
        self.step()
        del self.times[-1], self.cpu[-1], self.counts[-1]
        for _ in range(BLOCK):
            if self.is_done(count, seconds):
                break
            self.step()

    def result(self) -> dict:
        import numpy as np

        from samfeat_core.measure import percentiles

        extract, track = np.array(self.times).T
        keypoints, matches, inliers = np.mean(self.counts, axis=0)
        columns = dict(zip(STAGES, (extract, track, extract + track), strict=True))
        spread = {name: percentiles(ms) for name, ms in columns.items()}
        return {
            "extractor": self.label,
            **spread,
            "cpu_ms": float(np.median(self.cpu)),
            "frames": len(self.times),
            "hz": float(1e3 / np.mean(extract + track)),
            "keypoints": float(keypoints),
            "matches": float(matches),
            "inliers": float(inliers),
        }


def measure(paths: Sequence[Runner], count: int, seconds: float = float("inf"), warm_up: int = 5) -> list[dict]:
    """Every path in turns of a block each, until each has `count` frames or was measured for `seconds`; and the ratios
    to ORB and SIFT."""
    from tqdm import tqdm

    for path in paths:
        path.warm_up(warm_up, seconds)
    with tqdm(total=count * len(paths), desc="frames", leave=False, disable=None) as bar:
        while waiting := [path for path in paths if not path.is_done(count, seconds)]:
            for path in waiting:
                path.block(count, seconds)
            bar.n = sum(count if path.is_done(count, seconds) else len(path.times) for path in paths)
            bar.refresh()
    results = [path.result() for path in paths]
    for name in ("orb", "sift"):
        base = next((result["total_ms"]["p50"] for result in results if result["extractor"] == name), None)
        for result in results:
            result[f"times_{name}"] = result["total_ms"]["p50"] / base if base else None
    return results


def table(results: Sequence[dict]) -> str:
    """A line per extractor, milliseconds as p50 / p90."""
    head = ["extractor", "extract ms", "match+track ms", "total ms", "Hz", "x ORB", "x SIFT", "kpts", "matches"]
    head.append("inliers")
    lines = [head]
    for row in results:
        ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("times_orb", "times_sift")]
        stages = [f"{row[stage]['p50']:.1f} / {row[stage]['p90']:.1f}" for stage in STAGES]
        counts = [f"{row[key]:.0f}" for key in ("keypoints", "matches", "inliers")]
        lines.append([row["extractor"], *stages, f"{row['hz']:.1f}", *ratios, *counts])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def main(
    extractor: Annotated[
        list[str] | None, typer.Option(help="MODEL or MODEL=FILE; repeatable. Default: samfeat-nano.")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="module:function, or akaze; repeatable.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of consecutive frames. Default: the kitchen sequence, or a moving view.")
    ] = None,
    width: Annotated[int, typer.Option(min=32)] = 640,
    height: Annotated[int, typer.Option(min=32)] = 480,
    max_keypoints: Annotated[int, typer.Option(min=1)] = 1024,
    threads: Annotated[int, typer.Option(min=1, help="Cores that the process is tied to.")] = 2,
    frames: Annotated[int, typer.Option(min=2, help="Frames measured per extractor.")] = 200,
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine of our models, as the node's parameter; repeatable. Default: auto.")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Of our models: match, flow, hybrid; repeatable. Default: match.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = Path("out/benchmarks/cpu_path.json"),
) -> None:
    """Time extractor and tracker on the CPU, beside ORB and SIFT."""
    limit_threads(threads)
    sys.path[:0] = [str(ROOT), ""]
    from samfeat_core.errors import SamfeatError
    from samfeat_core.files import write_json
    from samfeat_core.measure import machine
    from training.evaluation.extractors import resolve

    load = os.getloadavg()[0]
    ours = itertools.product(extractor or ["samfeat-nano"], engine or ["auto"], tracker or ["match"])
    others = ((name, "auto", "match") for name in ("orb", "sift", *(peer or [])))
    folder = images or footage()
    try:
        pictures = load_frames(folder, (width, height), frames)
        paths = [
            Runner(
                " ".join([name, *([on] if on != "auto" else []), *([by] if by != "match" else [])]),
                resolve(name, max_keypoints, "cpu", on),
                pictures,
                max_keypoints,
                by,
            )
            for name, on, by in dict.fromkeys([*ours, *others])
        ]
        results = measure(paths, frames)
        output.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, SamfeatError) as error:
        typer.echo(f"cpu_path: {error}", err=True)
        raise typer.Exit(1) from None
    settings = {
        "width": width,
        "height": height,
        "max_keypoints": max_keypoints,
        "threads": threads,
        "frames": frames,
        "images": str(folder or "scikit-image astronaut, moving view"),
        "load_before": load,
    }
    where = machine()
    busy = f"; the machine was busy before (load {load:.1f}), so expect better" if load > 0.5 else ""
    size = f"{width}x{height}, {max_keypoints} keypoints"
    typer.echo(f"{size}, {threads} threads, {where['cpu']}; p50 / p90{busy}")
    typer.echo(table(results))
    document = {"format": "samfeat-benchmark-cpu-path", "version": 1, "machine": where, "settings": settings}
    write_json(output, {**document, "results": results})
    typer.echo(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
