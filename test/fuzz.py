"""`make fuzz N=50000 SEED=1`: everything that reads what others send, on damaged messages.

Each case is made from the seed, the target's name and its number alone, so that the line of a failure repeats it. A
case passes if it gives a result that keeps its promises or the refusal that is documented, within the bounds of time
and memory. Prints a table and a verdict; exits with 1 when a case failed.
"""

from __future__ import annotations

import resource
import struct
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud, PointCloud2, PointField  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from samfeat_core.features import Features, Matches  # noqa: E402
from samfeat_ros import messages  # noqa: E402
from samfeat_ros.image_input import ENCODINGS, ImageError, image_from_msg  # noqa: E402
from samfeat_ros.node.parameters import NAMES, ParameterError, Parameters  # noqa: E402

MAX_CPU_S = 0.5  # of one case
MAX_GROWTH_MB = 100.0  # of the process, over all cases
WIDTH, HEIGHT = 48, 32
NUMBERS = (0, 1, 2, 3, 7, 31, 255, 256, 8192, 8193, 65535, 2**31, 2**32 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e308, -1e308, float("nan"), float("inf"), 300.0)
TEXTS = ("", "mono8", "MONO8", "x" * 300, "a\nb", "bgr8; jpeg compressed rgb8", "16UC1; compressedDepth", "é\u2028")
Random = np.random.Generator
ACCEPTED = "accepted"


class BrokenPromise(AssertionError):
    """A result that is not what its function's docstring says."""


def pick(random: Random, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


# ---- images ----


def picture(random: Random) -> np.ndarray:
    coarse = random.integers(0, 256, (4, 6, 3), np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def damaged_image(random: Random) -> Image:
    """A sound image of a random encoding, with up to three of its fields changed."""
    encoding = pick(random, ENCODINGS)
    step = WIDTH * int(pick(random, (1, 2, 3, 4, 6, 8)))
    rows = HEIGHT * 3 // 2 if encoding in ("nv12", "nv21") else HEIGHT
    values: dict[str, Any] = dict(width=WIDTH, height=HEIGHT, encoding=encoding, step=step, is_bigendian=0)
    length = rows * step
    for _ in range(random.integers(4)):
        name = pick(random, [*values, "length"])
        if name == "length":
            length = max(0, length + int(random.integers(-3 * step, 3 * step)))
        elif name == "encoding":
            values[name] = pick(random, (*TEXTS, *ENCODINGS))
        elif name == "is_bigendian":
            values[name] = int(random.integers(256))
        else:
            values[name] = int(pick(random, (*NUMBERS, WIDTH - 1, WIDTH + 1, HEIGHT + 1)))
    msg = Image(**values)
    msg.data.frombytes(random.bytes(length))
    return msg


def damaged_jpeg(random: Random) -> CompressedImage:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(random.integers(2)), cv2.IMWRITE_JPEG_QUALITY, 80]
    return _compressed(random, damaged_bytes(random, cv2.imencode(".jpg", picture(random), options)[1].tobytes()))


def damaged_png(random: Random) -> CompressedImage:
    """Half of them with right checksums, so that the damage gets as far as the decoder."""
    depth = pick(random, (np.uint8, np.uint16))
    data = damaged_bytes(random, cv2.imencode(".png", picture(random).astype(depth))[1].tobytes())
    return _compressed(random, with_right_checksums(data) if random.integers(2) else data)


def _compressed(random: Random, data: bytes) -> CompressedImage:
    return CompressedImage(format=pick(random, (*TEXTS, "jpeg", "png")), data=data)


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """Some bytes changed, taken out, put in, or the end cut off; now and then unchanged."""
    changed = bytearray(data)
    for _ in range(random.integers(4)):
        place, count = int(random.integers(len(changed) + 1)), int(random.integers(1, 9))
        kind = random.integers(4)
        if kind == 0:
            changed[place : place + count] = random.bytes(count)
        elif kind == 1:
            del changed[place : place + count]
        elif kind == 2:
            changed[place:place] = pick(random, (b"\0", b"\xff", b"\xff\xda", b"\xff\xc2", random.bytes(count)))
        else:
            del changed[max(place, 4) :]
    return bytes(changed)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks, as far as they can be told, have the checksum of their content."""
    fixed, position = bytearray(data), 8
    while position + 12 <= len(fixed):
        end = position + 8 + struct.unpack_from(">I", fixed, position)[0]
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def read_image(msg: Image | CompressedImage) -> str:
    try:
        image = image_from_msg(msg)
    except ImageError as error:
        if len(str(error)) > 700 or "\n" in str(error):
            raise BrokenPromise(f"a refusal of {len(str(error))} characters") from error
        return error.cause
    shape = (msg.height, msg.width) if isinstance(msg, Image) else image.shape[:2]
    if image.dtype != np.uint8 or image.shape[:2] != shape or image.shape[2:] not in ((), (3,)):
        raise BrokenPromise(f"an image of {image.dtype} {image.shape}") from None
    return ACCEPTED


# ---- cameras ----


def damaged_camera(random: Random) -> CameraInfo:
    msg = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model=pick(random, ("plumb_bob", "equidistant", *TEXTS)))
    msg.distortion_model = pick(random, ("plumb_bob", "rational_polynomial", "equidistant", "fisheye", *TEXTS[:3]))
    msg.k = [40.0, 0.0, 24.0, 0.0, 40.0, 16.0, 0.0, 0.0, 1.0]
    msg.p = [40.0, 0.0, 24.0, 0.0, 0.0, 40.0, 16.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    msg.d = (0.3 * random.normal(size=pick(random, (0, 4, 5, 8, 12, 14, 3, 99)))).tolist()
    for _ in range(random.integers(4)):
        name = pick(random, ("k", "p", "d", "width", "binning_x", "roi"))
        if name in ("k", "p", "d"):
            values = getattr(msg, name)
            if len(values):
                values[int(random.integers(len(values)))] = pick(random, FLOATS)
        elif name == "roi":
            msg.roi.x_offset, msg.roi.width = int(pick(random, NUMBERS)), int(pick(random, NUMBERS))
        else:
            setattr(msg, name, int(pick(random, NUMBERS)))
    return msg


PIXELS = np.array([[0, 0], [24, 16], [47, 31], [1e6, -1e6], [np.nan, 0]], np.float32)


def read_camera(msg: CameraInfo) -> str:
    try:
        camera = messages.camera_from_msg(msg, rectified=bool(msg.width % 2))
    except ValueError:
        return "refused"
    rays = camera.normalize(PIXELS)
    if rays.shape != (len(PIXELS), 2) or np.isinf(rays).any() or (np.abs(rays[np.isfinite(rays)]) > 58).any():
        raise BrokenPromise(f"rays {rays.tolist()}")
    return ACCEPTED


# ---- our own messages, as a consumer gets them ----


def _features(random: Random, count: int) -> Features:
    rows = random.normal(size=(count, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    points = random.uniform(0, 30, (count, 2)).astype(np.float32)
    return Features(points, np.linspace(1, 0, count, dtype=np.float32), rows, (WIDTH, HEIGHT))


def damaged_cloud(random: Random) -> tuple[str, PointCloud2]:
    count = int(random.integers(6))
    features, rows = _features(random, count), np.arange(count)
    matches = Matches(rows, rows, np.ones(count, np.float32), np.ones(count, bool), rows)
    kind = pick(random, ("keypoints", "descriptors", "matches"))
    msg = {
        "keypoints": lambda: messages.keypoints_to_msg(Header(), features, matches),
        "descriptors": lambda: messages.descriptors_to_msg(Header(), features),
        "matches": lambda: messages.matches_to_msg(Header(), features, features, matches, 5),
    }[kind]()
    for _ in range(random.integers(4)):
        what = random.integers(4)
        if what == 0:
            setattr(msg, pick(random, ("width", "height", "point_step", "row_step")), int(pick(random, NUMBERS)))
        elif what == 1:
            msg.data = msg.data[: int(random.integers(len(msg.data) + 1))]
        elif what == 2:
            msg.is_bigendian = not msg.is_bigendian
        else:
            entry = pick(random, msg.fields) if len(msg.fields) else PointField()
            entry.name = pick(random, (entry.name, "x", "id", *TEXTS))
            entry.offset, entry.count = int(pick(random, (entry.offset, *NUMBERS))), int(pick(random, (1, *NUMBERS)))
            entry.datatype = int(random.integers(256))
    return kind, msg


READERS: dict[str, Callable[[Any], Any]] = {
    "keypoints": messages.keypoints_from_msg,
    "descriptors": messages.descriptors_from_msg,
    "matches": messages.matches_from_msg,
}


def read_cloud(case: tuple[str, PointCloud2]) -> str:
    kind, msg = case
    try:
        READERS[kind](msg)
    except messages.MessageError:
        return "refused"
    return ACCEPTED


def damaged_tracks(random: Random) -> PointCloud:
    count = int(random.integers(6))
    columns = random.normal(size=(3, count, 2))
    msg = messages.tracks_to_msg(Header(), np.arange(count), *columns, layout=pick(random, ("fusion", "mono")))
    for _ in range(random.integers(3)):
        if random.integers(2):
            del msg.channels[int(random.integers(len(msg.channels) + 1)) :]
        elif len(msg.channels):
            pick(random, msg.channels).values = random.normal(size=int(random.integers(9))).tolist()
    return msg


def read_tracks(msg: PointCloud) -> str:
    try:
        messages.tracks_from_msg(msg)
    except messages.MessageError:
        return "refused"
    return ACCEPTED


# ---- parameters ----


def wild_parameters(random: Random) -> dict[str, Any]:
    values = (*NUMBERS, *FLOATS, *TEXTS, True, False, -1, None, "samfeat", "cuda:99999999999", "cpu", "openvino")
    return {pick(random, NAMES): pick(random, values) for _ in range(random.integers(1, 5))}


def set_parameters(values: dict[str, Any]) -> str:
    try:
        changed = Parameters().changed(values, configured=False)
    except ParameterError:
        return "refused"
    if any(getattr(changed, name) != value for name, value in values.items()):
        raise BrokenPromise("a value was not taken")
    return ACCEPTED


# ---- all of them ----

TARGETS: dict[str, tuple[Callable[[Random], Any], Callable[[Any], str]]] = {
    "image": (damaged_image, read_image),
    "jpeg": (damaged_jpeg, read_image),
    "png": (damaged_png, read_image),
    "camera_info": (damaged_camera, read_camera),
    "cloud": (damaged_cloud, read_cloud),
    "tracks": (damaged_tracks, read_tracks),
    "parameters": (wild_parameters, set_parameters),
}


@dataclass
class Tally:
    """What the cases of one target gave."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def run_case(target: str, seed: int, number: int, tally: Tally) -> None:
    make, read = TARGETS[target]
    case = make(np.random.default_rng([seed, zlib.crc32(target.encode()), number]))
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy's tell of sums that ended anywhere
            tally.outcomes[read(case)] += 1
    except Exception:  # whatever is no documented refusal is what this looks for
        tally.outcomes["FAILED"] += 1
        tally.failures.append(f"{target} {number}: {traceback.format_exc(limit=-2)}")
    seconds = time.process_time() - start
    tally.slowest_s = max(tally.slowest_s, seconds)
    if seconds > MAX_CPU_S:
        tally.failures.append(f"{target} {number}: {seconds:.2f} s, expected at most {MAX_CPU_S}")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(count: int, seed: int, targets: list[str] | None = None) -> tuple[dict[str, Tally], float]:
    """Run that many cases, spread evenly over the targets.

    Returns:
        what came of them by target, and the growth of the process in MB.
    """
    names = targets or list(TARGETS)
    tallies = {name: Tally() for name in names}
    for name in names:  # loads what is loaded late
        run_case(name, seed, 2**31, Tally())
    before = peak_mb()
    for number in range(count):
        name = names[number % len(names)]
        run_case(name, seed, number // len(names), tallies[name])
    return tallies, peak_mb() - before


def main(
    count: Annotated[int, typer.Option("-n", help="Cases in all.", min=1)] = 50_000,
    seed: Annotated[int, typer.Option(help="Another seed makes other cases.", min=0)] = 1,
    target: Annotated[str, typer.Option(help="One of the targets alone.")] = "",
) -> None:
    """Read damaged messages; see the module."""
    tallies, growth = fuzz(count, seed, [target] if target else None)
    for name, tally in tallies.items():
        outcomes = ", ".join(f"{cause} {n}" for cause, n in tally.outcomes.most_common())
        print(f"{name:<12} {tally.outcomes.total():>7} cases, slowest {1e3 * tally.slowest_s:6.1f} ms: {outcomes}")
    failures = [line for tally in tallies.values() for line in tally.failures]
    if growth > MAX_GROWTH_MB:
        failures.append(f"the process grew by {growth:.0f} MB, expected at most {MAX_GROWTH_MB:.0f}")
    print(*failures[:20], sep="\n", end="\n" * bool(failures))
    print(f"{'FAILED' if failures else 'passed'}: {count} cases of seed {seed}, {len(failures)} failures, "
          f"{growth:.0f} MB more memory")  # fmt: skip
    raise typer.Exit(int(bool(failures)))


if __name__ == "__main__":
    typer.run(main)
