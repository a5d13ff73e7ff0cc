"""Asks a teacher about every photograph of a folder, once, and stores the answers for training.

\b
    python -m training.teach sam PHOTOS STORE --model vit_h --checkpoint sam_vit_h_4b8939.pth
    python -m training.teach annotations PHOTOS SEGMENTS STORE
    torchrun --nproc-per-node 8 -m training.teach sam ...        # every GPU takes its share

Killed or interrupted, the same command continues. `training.data.teacher_store` documents the format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from samfeat_core.errors import UsageError
from training.cli import DEVICE, PHOTOS, STORE, application, finish, one_line_errors, pick_device
from training.data.photo_store import Note, PhotoFile, StoreError, fill, find_photos, read_photo
from training.data.teacher_store import TeacherStore
from training.samfeat.teacher.annotations import TEACHER, annotate, label_files

app = application(__doc__)


@app.command("annotations")
def teach_annotations(
    photos: Path = PHOTOS,
    segments: Path = typer.Argument(..., help="Label maps: SEGMENTS/<name>/<annotator>.png or SEGMENTS/<name>.png."),
    store: Path = STORE,
    annotator: str = typer.Option("all", help="'all' maps of a photograph, 'finest', 'coarsest', or one file's stem."),
) -> None:
    """Label maps of any source; needs no checkpoint. Photographs without a label map are left out."""
    with one_line_errors("teach"):
        found = find_photos(photos)
        if not segments.is_dir():
            raise StoreError(f"{segments}: no such folder of segmentations")
        files = {photo.name: label_files(segments, photo) for photo in found}
        annotated = [photo for photo in found if files[photo.name]]
        if not annotated:
            raise StoreError(f"{segments}: no segmentation of any of the {len(found)} photographs of {photos}")
        teachings = TeacherStore(store)
        teachings.create({"teacher": TEACHER, "annotator": annotator})

        def work(photo: PhotoFile, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            entry = annotate(photo, files[photo.name], annotator, note)
            return entry.arrays(), entry.meta()

        finish(teachings, fill(teachings, annotated, work, "annotations"), len(found) - len(annotated))


@app.command("sam")
def teach_sam(
    photos: Path = PHOTOS,
    store: Path = STORE,
    checkpoint: Path = typer.Option(..., help="Its checkpoint file, e.g. Meta's sam_vit_h_4b8939.pth."),
    model: str = typer.Option("vit_h", help="That of the checkpoint: vit_h, vit_l, vit_b; of sam2 a configuration."),
    package: str = typer.Option("segment_anything", help="Or mobile_sam, segment_anything_hq, sam2: installed by you."),
    precision: str = typer.Option("fp32", help="Of the network: fp32, fp16 (for GPUs) or bf16."),
    device: str = DEVICE,
    points_per_side: int = typer.Option(32, min=1, help="Prompts form a grid of this many squared."),
    points_per_batch: int = typer.Option(64, min=1, help="Prompts at a time: fewer take less memory."),
    pred_iou: float = typer.Option(0.88, min=0, max=1, help="Masks of less predicted quality are dropped."),
    stability: float = typer.Option(0.95, min=0, max=1, help="Less stable masks are dropped."),
    crop_layers: int = typer.Option(0, min=0, max=3, help="Look at crops, too: finds small parts, takes longer."),
    min_area: int = typer.Option(0, min=0, help="Remove islands and holes of fewer pixels."),
) -> None:
    """Segment Anything: image embedding and automatic masks."""
    with one_line_errors("teach"):
        found = find_photos(photos)
        try:
            from training.samfeat.teacher.sam import PACKAGE, PRECISIONS, MaskOptions, SamTeacher, load_sam
        except ImportError as error:
            raise StoreError(f"the sam teacher needs the package torch: {error}") from error
        if precision not in PRECISIONS:
            raise UsageError(f"--precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
        options = MaskOptions(points_per_side, pred_iou, stability, crop_layers, min_area, points_per_batch)
        name = f"sam {model}" if package == PACKAGE else f"{package} {model}"
        sam = load_sam(model, checkpoint, pick_device(device), package)
        teacher = SamTeacher(sam, name, options, package, precision)
        settings = {"teacher": teacher.name, "checkpoint": checkpoint.name, **options.settings()}
        if precision != "fp32":  # entries of stores from before there was a choice are of fp32
            settings["precision"] = precision
        teachings = TeacherStore(store)
        teachings.create(settings)

        def work(photo: PhotoFile, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            entry = teacher(read_photo(photo.path))
            return entry.arrays(), entry.meta()

        finish(teachings, fill(teachings, found, work, teacher.name))


if __name__ == "__main__":
    app()
