"""Computes training pairs with true parallax once and stores them; training reads the folders (`data.pairs`).

\b
    python -m training.pairs posed --folder SEQUENCE --output FOLDER          # a posed sequence with depth
    python -m training.pairs scenes --textures PHOTOS --output FOLDER         # rendered scenes
    python -m training.pairs megadepth --root ROOT --scene-info FILES --output FOLDER

Killed or interrupted, the same command continues. `training.data.stored_pairs` documents the format.
"""

from __future__ import annotations

from pathlib import Path

import typer

from training.cli import application, one_line_errors
from training.data.megadepth_pairs import MegaDepthPairs
from training.data.posed_pairs import PosedPairs, kinect_depth_to_colour
from training.data.scene_pairs import ScenePairs
from training.data.scenes import SCENES
from training.data.stored_pairs import store_pairs

OUTPUT = typer.Option(..., help="Folder to write; pairs that are there already are kept.")
SEED = typer.Option(0, help="Same seed, same pairs.")

app = application(__doc__)


@app.command("posed")
def store_posed(
    folder: Path = typer.Option(..., help="Posed sequence: image/ depth/ poses.txt calib.txt [calib_depth.txt]."),
    output: Path = OUTPUT,
    pairs: int = typer.Option(0, min=0, help="Number of pairs, 0 = every frame pair of the gaps."),
    width: int = typer.Option(320, min=16, help="Of the pairs' images, in pixels."),
    height: int = typer.Option(240, min=16, help="Of the pairs' images, in pixels."),
    min_gap: int = typer.Option(3, min=1, help="Smallest number of frames between the two."),
    max_gap: int = typer.Option(10, min=1, help="Largest number of frames between the two."),
    kinect: bool = typer.Option(False, help="The depth camera sits beside the colour camera as on a Kinect."),
    refine: bool = typer.Option(True, help="Correct each relative pose by the images."),
    seed: int = SEED,
) -> None:
    """Pairs of frames of a posed sequence with depth."""
    with one_line_errors("pairs"):
        offset = kinect_depth_to_colour() if kinect else None
        source = PosedPairs(folder, (width, height), (min_gap, max_gap), offset, refine, seed=seed)
        if pairs:
            source.candidates = source.candidates[:pairs]
        settings = dict(source="posed", folder=folder.name, size=[width, height], gaps=[min_gap, max_gap],
                        kinect=kinect, refine=refine, seed=seed)  # fmt: skip
        store_pairs(source, output, settings, folder.name)


@app.command("scenes")
def store_scenes(
    textures: str = typer.Option(..., help="Folder of photographs, or 'skimage' for those inside scikit-image."),
    output: Path = OUTPUT,
    pairs: int = typer.Option(400, min=1, help="Number of pairs."),
    width: int = typer.Option(320, min=32, help="Of the pairs' images, in pixels."),
    height: int = typer.Option(240, min=32, help="Of the pairs' images, in pixels."),
    pairs_per_scene: int = typer.Option(8, min=1, help="Pairs taken in each scene."),
    scenes: str = typer.Option("room,planes,street", help=f"Kinds of scene, taken in turn: {', '.join(SCENES)}."),
    seed: int = SEED,
) -> None:
    """Rendered pairs of scenes whose surfaces are photographs."""
    with one_line_errors("pairs"):
        kinds = scenes.split(",")
        source = ScenePairs(textures, pairs, (width, height), pairs_per_scene, kinds, seed=seed)
        settings = dict(source="scenes", textures=Path(textures).name, size=[width, height], kinds=kinds,
                        pairs_per_scene=pairs_per_scene, seed=seed)  # fmt: skip
        store_pairs(source, output, settings, "rendering")


@app.command("megadepth")
def store_megadepth(
    root: Path = typer.Option(..., help="Folder that the paths in the scene information are relative to."),
    scene_info: Path = typer.Option(..., help="Folder of scene information files, or one file."),
    output: Path = OUTPUT,
    pairs: int = typer.Option(0, min=0, help="Number of pairs, 0 = all."),
    width: int = typer.Option(400, min=16, help="Of the pairs' images, in pixels."),
    height: int = typer.Option(400, min=16, help="Of the pairs' images, in pixels."),
    min_overlap: float = typer.Option(0.1, min=0.0, max=1.0, help="Least overlap that the scene information states."),
    max_overlap: float = typer.Option(0.9, min=0.0, max=1.0, help="Largest overlap that it states."),
    pairs_per_scene: int = typer.Option(200, min=1, help="At most that many pairs of a scene."),
    seed: int = SEED,
) -> None:
    """Pairs of MegaDepth in its published layout (`training.data.megadepth_pairs`)."""
    with one_line_errors("pairs"):
        overlap = (min_overlap, max_overlap)
        source = MegaDepthPairs(root, scene_info, (width, height), overlap, pairs_per_scene, seed=seed)
        if pairs:
            source.pairs = source.pairs[:pairs]
        settings = dict(source="megadepth", scene_info=scene_info.name, size=[width, height], overlap=overlap,
                        pairs_per_scene=pairs_per_scene, seed=seed, colmap=True, photos=True)  # fmt: skip
        store_pairs(source, output, settings, "MegaDepth")


if __name__ == "__main__":
    app()
