"""The report of an evaluation: a table for people, a JSON file for programs, MMA curves for papers.

JSON, version 1:

    format      "samfeat-evaluation"
    version     1
    created     ISO 8601 time, UTC
    command     the command line
    machine     `samfeat_core.measure.machine`
    settings    {"max_keypoints", "device", "engine"}
    results     one object per extractor and data set:
        extractor   its label; for one of our models with weights of the user NAME=FILE
        suite, dataset
        kind        "homography", "pose", "stress" or "tracks"
        protocol    what decides the numbers besides the extractor: long_side, estimator, threshold_px, gaps, ...
        reused      true where the result was taken over from an earlier report (--reuse)
        images      images extracted; wall_ms, cpu_ms (all threads): median per image, extraction alone
        pairs, keypoints (mean per image), matches (mean per pair)
        homography: correct (mean matches within 3 px), mma {"1".."10"}, mha {"1", "3", "5"}, repeatability,
                    in per cent; localisation_px; best: AUC of the corner error under poselib's homography, at the
                    threshold of a sweep that suits the extractor best, {threshold_px, auc {"1", "3", "5"}};
                    on HPatches the same again under "illumination" and "viewpoint"
        pose:       inliers (mean per pair), failed (pairs without a pose), auc {"5", "10", "20"} in per cent,
                    median_error_deg; best: as above, of the pose, {threshold_px, auc {"5", "10", "20"}}
        stress:     levels [{level, matches, right (means per pair), share (of right ones, per cent)}]
        tracks:     pairs counts frames; points (mean per frame), tracker_ms, length (mean frames of tracks of two
                    and more), shared {"5", "10", "20"} (tracks that frames so far apart share), auc {gap: {degrees}},
                    epipolar_px; with depth: ages and flat (not born on a silhouette) {age: {tracks, survival,
                    within {"1", "2", "4"}, median_px}}, recovered, false_recoveries; after events: back, back_right
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from samfeat_core import files
from samfeat_core.measure import machine

FORMAT, VERSION = "samfeat-evaluation", 1

_COUNTS = [("ms", "wall_ms", 1), ("CPU ms", "cpu_ms", 0), ("kpts", "keypoints", 0), ("matches", "matches", 0)]
_HOMOGRAPHY = [
    ("correct", "correct", 0),
    *((f"MMA@{t}", f"mma.{t}", 1) for t in (1, 3, 5, 10)),
    *((f"MHA@{t}", f"mha.{t}", 1) for t in (1, 3, 5)),
    ("rep.", "repeatability", 1),
    ("loc. px", "localisation_px", 2),
    *((f"AUC@{t}px", f"best.auc.{t}", 1) for t in (1, 3, 5)),
    ("at px", "best.threshold_px", 1),
]
_POSE = [
    ("inliers", "inliers", 0),
    *((f"AUC@{t}", f"auc.{t}", 1) for t in (5, 10, 20)),
    ("median deg", "median_error_deg", 2),
    ("failed", "failed", 0),
    *((f"best AUC@{t}", f"best.auc.{t}", 1) for t in (5, 10, 20)),
    ("at px", "best.threshold_px", 1),
]
_TRACKS = [
    ("ms", "tracker_ms", 1),
    ("points", "points", 0),
    ("length", "length", 1),
    *((f"shared@{gap}", f"shared.{gap}", 0) for gap in (5, 10, 20)),
    *((f"AUC5@{gap}", f"auc.{gap}.5", 1) for gap in (5, 10, 20)),
    ("epip. px", "epipolar_px", 2),
    ("alive@20", "ages.20.survival", 0),
    ("<2px@20", "ages.20.within.2", 1),
    ("flat <2px", "flat.20.within.2", 1),
    ("back", "back", 0),
    ("right", "back_right", 1),
    ("recovered", "recovered", 0),
    ("false", "false_recoveries", 1),
]
COLUMNS = {"homography": _COUNTS + _HOMOGRAPHY, "pose": _COUNTS + _POSE, "stress": _COUNTS, "tracks": _TRACKS}


def columns(row: dict) -> list[tuple[str, str, int]]:
    """Heading, dotted key and digits of every column in the table of a result."""
    levels = [
        column
        for n, level in enumerate(row.get("levels", ()))
        for column in ((f"{level['level']:g}", f"levels.{n}.right", 0), ("%", f"levels.{n}.share", 0))
    ]
    return COLUMNS[row["kind"]] + levels


def table(results: Sequence[dict]) -> str:
    """One block of text per data set, a line per extractor."""
    blocks = []
    for dataset in dict.fromkeys((result["suite"], result["dataset"]) for result in results):
        rows = [result for result in results if (result["suite"], result["dataset"]) == dataset]
        blocks.append(_block(" / ".join(dict.fromkeys(dataset)), rows))
        for part in ("illumination", "viewpoint"):
            parts = [dict(row[part], extractor=row["extractor"], kind=row["kind"]) for row in rows if part in row]
            if parts:
                blocks.append(_block(f"{dataset[1]}: {part}", parts))
    return "\n\n".join(blocks)


def _block(title: str, rows: Sequence[dict]) -> str:
    shown = columns(rows[0])
    lines = [["extractor", *(name for name, _, _ in shown)]]
    for row in rows:
        lines.append([row["extractor"], *(cell(row, key, digits) for _, key, digits in shown)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    protocol = [f"{key} {value}" for key, value in rows[0].get("protocol", {}).items() if value is not None]
    unit = "frames" if rows[0]["kind"] == "tracks" else "pairs"
    return "\n".join(["; ".join([f"{title}: {rows[0]['pairs']} {unit}", *protocol]), *body])


def cell(row: dict, key: str, digits: int) -> str:
    """The figure of a result under a dotted key, as the tables show it; "-" where it has none."""
    value: object = row
    for part in key.split("."):
        if isinstance(value, list):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return "-"
    return "-" if value is None else f"{value:.{digits}f}"


def write(path: Path, results: Sequence[dict], settings: dict) -> None:
    report = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "machine": machine(),
        "settings": settings,
        "results": list(results),
    }
    files.write_json(path, report)


def read(path: Path) -> dict:
    """An earlier report. Raises ValueError naming a file that is not one."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable evaluation report ({error})") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT or report.get("version") != VERSION:
        raise ValueError(f"{path}: not an evaluation report of version {VERSION}")
    return report


def draw_mma(path: Path, results: Sequence[dict], title: str) -> None:
    """The MMA curve of every extractor, one picture; one panel per part of the data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = [part for part in ("illumination", "viewpoint") if part in results[0]]
    figure, axes = pyplot.subplots(1, 1 + len(parts), figsize=(5 + 4 * len(parts), 4), sharey=True, squeeze=False)
    for axis, part in zip(axes[0], [None, *parts], strict=True):
        for result in results:
            curve = (result[part] if part else result)["mma"]
            axis.plot([int(t) for t in curve], list(curve.values()), marker=".", label=result["extractor"])
        axis.set(title=f"{title}: {part}" if part else title, xlabel="threshold, px", xticks=range(1, 11))
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean matching accuracy, %")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
