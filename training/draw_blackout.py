"""Draw how tracks live through the dark: frames of a rendered flight before, in and after three black ones.

python -m training.draw_blackout docs/blackout.jpg
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import typer

from samfeat_core.errors import UsageError
from samfeat_core.extractor import FeatureExtractor
from samfeat_core.files import write_bytes
from samfeat_core.tracking import RECOVERED, make_tracker
from training.cli import application, one_line_errors
from training.evaluation.tracks.footage import rendered, shortened
from training.evaluation.tracks.stress import dark

FRAMES = (12, 14, 16, 18, 21)  # three black frames begin with the 15th
SHOWN = 60  # tracks of the last frame before the dark
OLD, BACK, CHOSEN = (190, 190, 190), (80, 200, 80), (40, 60, 230)  # BGR
WIDTH = 320  # pixels of a frame in the picture

app = application()


@app.command()
def draw_blackout(
    output: Path = typer.Argument(..., help="Picture to write (.jpg, .png)."),
    model: str = typer.Option("samfeat-nano", help="Whose keypoints begin the tracks."),
    seed: int = typer.Option(3, help="Of the flight."),
) -> None:
    """A strip of frames with tracks that were there before three black frames, one of them with its path."""
    with one_line_errors("draw_blackout"):
        if not cv2.haveImageWriter(output.name):
            raise UsageError(f"{output}: expected a picture's name, such as blackout.jpg")
        footage = dark(shortened(rendered("room", 40, seed, speed=1.2, turn_deg_s=40.0), 40), 3)
        extractor = FeatureExtractor.from_pretrained(model, device="cpu")
        tracker = make_tracker("hybrid")
        places: list[dict[int, tuple[np.ndarray, bool]]] = []
        for frame in range(FRAMES[-1] + 1):
            image = footage.image(frame)
            matches = tracker.update(extractor(image), footage.stamps_ns[frame], footage.camera, image)
            assert tracker.current is not None
            rows = zip(matches.track_ids.tolist(), tracker.current.keypoints, matches.sources == RECOVERED, strict=True)
            places.append({name: (point, back) for name, point, back in rows})
        ids = _shown([set(places[frame]) for frame in (0, FRAMES[1], FRAMES[-1])], places[FRAMES[1]])
        panels = [_panel(footage.image(frame), frame, places, ids) for frame in FRAMES]
        data = cv2.imencode(output.suffix, np.hstack(panels))[1]
        write_bytes(output, data.tobytes())
        typer.echo(f"wrote {output}")


def _shown(alive: list[set[int]], before: dict[int, tuple[np.ndarray, bool]]) -> list[int]:
    """Some ids of the last frame before the dark; first the one nearest to the middle of those that never ended."""
    ids = np.array(sorted(before))
    middle = np.mean([before[name][0] for name in ids.tolist()], axis=0)
    lasting = set.intersection(*alive)
    chosen = min(lasting, key=lambda name: float(np.linalg.norm(before[name][0] - middle)))
    return [chosen, *ids[:: max(1, len(ids) // SHOWN)].tolist()]


def _panel(
    image: np.ndarray, frame: int, places: list[dict[int, tuple[np.ndarray, bool]]], ids: list[int]
) -> np.ndarray:
    scale = WIDTH / image.shape[1]
    panel = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    after = frame > FRAMES[2]

    def pixel(point: np.ndarray) -> tuple[int, int]:
        return round(float(point[0] * scale)), round(float(point[1] * scale))

    for name in ids[1:]:
        if name in places[frame]:
            cv2.circle(panel, pixel(places[frame][name][0]), 2, BACK if after else OLD, -1, cv2.LINE_AA)
    path = [pixel(places[number][ids[0]][0]) for number in range(frame + 1) if ids[0] in places[number]]
    if ids[0] in places[frame]:
        cv2.polylines(panel, [np.array(path)], False, CHOSEN, 2, cv2.LINE_AA)
        cv2.circle(panel, path[-1], 5, CHOSEN, 2, cv2.LINE_AA)
    cv2.putText(panel, f"frame {frame}", (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return panel


if __name__ == "__main__":
    app()
