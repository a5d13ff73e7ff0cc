"""Render a camera flight through a scene into the simple folder layout, `python -m training.render_sequence --help`.

Writes `image/000000.jpg ...`, `depth/000000.png ...` (16-bit millimetres, 65535 = none), `calib.txt` (`P0:` and the
12 numbers of the 3x4 projection matrix), `poses.txt` (one camera-to-world 3x4 per line) and `times.txt` (seconds).
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import typer

from samfeat_core.errors import UsageError
from samfeat_core.files import write_json
from samfeat_core.progress import progress
from samfeat_core.sequence import NO_DEPTH
from training.cli import application, one_line_errors
from training.data.scenes import SCENES, RenderedFrame, fly_through, load_textures, pinhole

SPEEDS = {"room": 0.5, "planes": 0.6, "street": 6.0}  # metres per second

app = application()


def write_frame(folder: Path, index: int, frame: RenderedFrame, quality: int = 92) -> None:
    """Write a frame as `image/%06d.jpg` and `depth/%06d.png`; depth beyond 65.5 m becomes "none"."""
    millimetres = np.rint(frame.depth * 1000.0)
    millimetres[(frame.depth <= 0) | (millimetres >= NO_DEPTH)] = NO_DEPTH
    written = cv2.imwrite(str(folder / "image" / f"{index:06d}.jpg"), frame.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    written &= cv2.imwrite(str(folder / "depth" / f"{index:06d}.png"), millimetres.astype(np.uint16))
    if not written:
        raise OSError(f"{folder}: frame {index} could not be written (disk full?)")


def write_numbers(path: Path, rows: np.ndarray, head: str = "") -> None:
    """One line of numbers per row, each line after `head`."""
    path.write_text("".join(head + " ".join(f"{value:.9g}" for value in row) + "\n" for row in rows))


@app.command()
def render_sequence(
    output: Path = typer.Option(..., help="Folder to write; an equal rendering that is already there is kept."),
    frames: int = typer.Option(200, min=1, help="Number of frames."),
    width: int = typer.Option(640, min=32, help="Image width in pixels."),
    height: int = typer.Option(480, min=32, help="Image height in pixels."),
    textures: str = typer.Option("skimage", help="Folder of pictures, or 'skimage' for those inside scikit-image."),
    scene: str = typer.Option("room", help=f"Kind of scene: {', '.join(SCENES)}."),
    field_of_view: float = typer.Option(75.0, min=10.0, max=140.0, help="Horizontal, in degrees."),
    rate: float = typer.Option(20.0, min=0.1, help="Frames per second."),
    speed: float = typer.Option(0.0, min=0.0, help="Metres per second; 0 = what suits the scene."),
    seed: int = typer.Option(0, help="Same seed, same pictures."),
) -> None:
    """Render a camera flight through a scene whose surfaces are photographs."""
    settings = dict(frames=frames, width=width, height=height, textures=textures, scene=scene, rate=rate, speed=speed,
                    field_of_view=field_of_view, seed=seed)  # fmt: skip
    with one_line_errors("render_sequence"):
        if scene not in SCENES:
            raise UsageError(f"--scene {scene}: expected one of {', '.join(SCENES)}")
        done = output / "rendered.json"  # written last: a rendering that was cut off is done again
        if done.is_file() and json.loads(done.read_text()) == settings:
            typer.echo(f"{output}: already rendered")
            return
        rng = np.random.default_rng(seed)
        world = SCENES[scene](rng, load_textures(textures))
        poses = fly_through(world, rng, frames, rate, speed or SPEEDS[scene])
        done.unlink(missing_ok=True)
        for name in ("image", "depth"):
            (output / name).mkdir(parents=True, exist_ok=True)
            for old in (output / name).iterdir():
                old.unlink()
        matrix = pinhole((width, height), field_of_view)
        for index, pose in enumerate(progress(poses, f"rendering {scene}", "frame")):
            write_frame(output, index, world.render(matrix, (width, height), pose))
        write_numbers(output / "calib.txt", np.hstack([matrix, np.zeros((3, 1))]).reshape(1, 12), "P0: ")
        write_numbers(output / "poses.txt", np.stack([pose[:3].ravel() for pose in poses]))
        write_numbers(output / "times.txt", (np.arange(frames) / rate)[:, None])
        write_json(done, settings)


if __name__ == "__main__":
    app()
