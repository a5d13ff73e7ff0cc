"""Build engines and compile the tracker ahead of time, so that a node or a container starts at once:

    python -m samfeat_core.prepare 640x480 --engine openvino --cache-dir /var/cache/samfeat

The options are the arguments of `FeatureExtractor.from_pretrained`. Exit code 0 when every engine is there, 1 after one
line on stderr.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable

from samfeat_core.errors import SamfeatError, one_line
from samfeat_core.extractor import FeatureExtractor


def yes_or_no(text: str) -> bool:
    """True of "yes", False of "no"."""
    return {"yes": True, "no": False}[text]


OPTIONS: dict[str, Callable[[str], object]] = {
    "device": str,
    "engine": str,
    "max-keypoints": int,
    "weights": str,
    "nms-radius": int,
    "nms-passes": int,
    "refine": yes_or_no,
    "resize": int,
    "cache-dir": str,
}


def size(text: str) -> tuple[int, int]:
    """(640, 480) from "640x480"."""
    width, height = text.lower().split("x")
    return int(width), int(height)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m samfeat_core.prepare", description="Build engines ahead of time.")
    result.add_argument("sizes", nargs="+", type=size, metavar="WIDTHxHEIGHT", help="size of the images")
    result.add_argument("--model", dest="name", help="name of the network")
    for name, kind in OPTIONS.items():
        result.add_argument(f"--{name}", type=kind, help=f"{name.replace('-', '_')} of FeatureExtractor")
    return result


def compile_tracker() -> None:
    """Compile the tracker's loops into Numba's cache, where they are not there yet."""
    from samfeat_core.tracking import make_tracker  # takes its time, and the engines do not need it

    make_tracker("hybrid")


def main(arguments: list[str] | None = None) -> int:
    given = {name: value for name, value in vars(parser().parse_args(arguments)).items() if value is not None}
    sizes = given.pop("sizes")
    # Beside the engines: it takes seconds, too, and neither needs the other.
    tracker = multiprocessing.get_context("spawn").Process(target=compile_tracker, daemon=True)
    tracker.start()
    try:
        extractor = FeatureExtractor.from_pretrained(**given, log=lambda level, text: print(f"{level}: {text}"))
        for width, height in sizes:
            extractor.prepare(width, height)
    except (SamfeatError, ValueError) as error:
        print(one_line(error), file=sys.stderr)
        return 1
    tracker.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
