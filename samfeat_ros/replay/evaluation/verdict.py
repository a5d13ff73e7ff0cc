"""The report in one sentence: does the front-end keep up, does it hold its tracks, is it better than classic ones?"""

from __future__ import annotations

from typing import Any

from samfeat_ros.replay.evaluation.figures import ALIASES, Figure, named
from samfeat_ros.replay.evaluation.runs import CLASSIC, MODEL

FEW_INLIERS = 30  # fewer in the worst 5 % of the frames: a pose from them is not to be relied on
GOOD, MIXED, BAD = "good", "mixed", "bad"


def verdict(report: dict[str, Any]) -> tuple[str, str]:
    """(`GOOD`, `MIXED` or `BAD`, the sentence) about the model with the most inliers in its worst frames."""
    subject = _best(report)
    checks = [_keeps_up(subject, report), _holds_tracks(subject), *_requirements(report)]
    passed = [good for good, _ in checks]
    level = GOOD if all(passed) else MIXED if any(passed) else BAD
    claims = checks[0][1]
    for (before, _), (after, claim) in zip(checks, checks[1:]):
        claims += f" {'and' if before == after else 'but'} {claim}"
    return level, f"{subject['name']} {claims}{_beside_classic(subject, report)}."


def _best(report: dict[str, Any]) -> dict[str, Any]:
    entries = [entry for entry in report["runs"] if entry["kind"] == MODEL] or report["runs"]
    return max(entries, key=lambda entry: _value(entry, "inliers.p5") or 0.0)


def _value(entry: dict[str, Any], key: str) -> float | None:
    return Figure(key, "").of(entry)


Check = tuple[bool, str]  # whether it passes, and what is claimed with its reason


def _keeps_up(entry: dict[str, Any], report: dict[str, Any]) -> Check:
    latency, rate = _value(entry, "latency_ms.p99"), report["settings"]["rate"]
    interval = _interval_ms(report, 1.0 if rate == "max" else rate)
    said = "latency not known" if latency is None else f"99 % of the frames within {latency:.0f} ms"
    said += f", {interval:.0f} ms between images" if interval else ""
    if rate == "max":  # no frame can be dropped: the latency has to tell
        good = latency is not None and (interval is None or latency <= interval)
        return good, f"would {'' if good else 'not '}keep up ({said})"
    dropped, offered = entry["frames_dropped"], entry["frames_offered"]
    return (
        dropped == 0,
        f"{'keeps up' if dropped == 0 else 'does not keep up'} ({dropped} of {offered} dropped, {said})",
    )


def _interval_ms(report: dict[str, Any], rate: float) -> float | None:
    """Mean time between images as they are played."""
    count = report["bag"]["usable"] - 1
    return 1e3 * report["bag"]["duration_s"] / count / rate if count > 0 else None


def _holds_tracks(entry: dict[str, Any]) -> Check:
    least, blind = _value(entry, "inliers.p5"), int(_value(entry, "without_match.frames") or 0)
    if least is None:
        return False, "tracks nothing (there is one frame alone)"
    reason = f"{least:.0f} inliers or more in 95 % of the frames, {blind or 'none'} without a match"
    if blind:
        return False, f"loses all tracks at times ({reason})"
    good = least >= FEW_INLIERS
    return good, f"{'holds its tracks' if good else 'runs short of inliers'} ({reason})"


def _requirements(report: dict[str, Any]) -> list[Check]:
    results = report.get("requirements") or []
    failed = sum(not result["holds"] for result in results)
    if failed:
        return [(False, f"fails {failed} of {len(results)} requirements")]
    return [(True, "meets what is required")] if results else []


def _beside_classic(entry: dict[str, Any], report: dict[str, Any]) -> str:
    """The trajectory error, or else the inliers in the worst frames, beside the best classic front-end's."""
    rivals = [other for other in report["runs"] if other["kind"] == CLASSIC and other is not entry]
    known = named(report["settings"]["gaps"])
    for key, what in ((ALIASES["ate"], "ATE {} m"), ("inliers.p5", "inliers in the worst 5 % {}")):
        figure = known[key]
        known_rivals = [other for other in rivals if figure.of(other) is not None]
        if figure.of(entry) is not None and known_rivals and figure.better:
            best = figure.better(known_rivals, key=figure.of)
            ours, theirs = figure.text(figure.of(entry)), figure.text(figure.of(best))
            return f"; {what.format(ours)}, {_relation(figure, entry, best)} {theirs} by {best['name']}"
    return ""


def _relation(figure: Figure, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    if figure.is_better(ours, theirs):
        return "better than"
    return "worse than" if figure.is_better(theirs, ours) else "level with"
