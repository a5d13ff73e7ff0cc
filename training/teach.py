"""Asks a teacher about every photograph of a folder, once, and stores the answers for training.

\b
    python -m training.teach sam PHOTOS STORE --model vit_h --checkpoint sam_vit_h_4b8939.pth
    python -m training.teach annotations PHOTOS SEGMENTS STORE
    torchrun --nproc-per-node 8 -m training.teach sam ...        # every GPU takes its share

Killed or interrupted, the same command continues. `training.data.teacher_store` documents the format.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import typer

from training.data.photo_store import Note, Photo, PhotoStore, Report, StoreError, fill, find_photos, read_photo
from training.data.teacher_store import TeacherStore
from training.samfeat.teacher.annotations import TEACHER, annotate, label_files

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

PHOTOS = typer.Argument(..., help="Folder of photographs, searched with its subfolders.")
STORE = typer.Argument(..., help="Folder to write; an unfinished one is continued.")


@app.command("annotations")
def teach_annotations(
    photos: Path = PHOTOS,
    segments: Path = typer.Argument(..., help="Label maps: SEGMENTS/<name>/<annotator>.png or SEGMENTS/<name>.png."),
    store: Path = STORE,
    annotator: str = typer.Option("all", help="'all' maps of a photograph, 'finest', 'coarsest', or one file's stem."),
) -> None:
    """Label maps of any source; needs no checkpoint. Photographs without a label map are left out."""
    with one_line_errors():
        found = find_photos(photos)
        if not segments.is_dir():
            raise StoreError(f"{segments}: no such folder of segmentations")
        files = {photo.name: label_files(segments, photo) for photo in found}
        annotated = [photo for photo in found if files[photo.name]]
        if not annotated:
            raise StoreError(f"{segments}: no segmentation of any of the {len(found)} photographs of {photos}")
        teachings = TeacherStore(store)
        teachings.create({"teacher": TEACHER, "annotator": annotator})

        def work(photo: Photo, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            entry = annotate(photo, files[photo.name], annotator, note)
            return entry.arrays(), entry.meta()

        finish(teachings, fill(teachings, annotated, work, "annotations"), len(found) - len(annotated))


@app.command("sam")
def teach_sam(
    photos: Path = PHOTOS,
    store: Path = STORE,
    checkpoint: Path = typer.Option(..., help="Meta's checkpoint file, e.g. sam_vit_h_4b8939.pth."),
    model: str = typer.Option("vit_h", help="vit_h, vit_l or vit_b: that of the checkpoint."),
    device: str = typer.Option("auto", help="cpu, cuda, cuda:1, ..; auto: this rank's GPU if there is one."),
    points_per_side: int = typer.Option(32, min=1, help="Prompts form a grid of this many squared."),
    points_per_batch: int = typer.Option(64, min=1, help="Prompts at a time: fewer take less memory."),
    pred_iou: float = typer.Option(0.88, min=0, max=1, help="Masks of less predicted quality are dropped."),
    stability: float = typer.Option(0.95, min=0, max=1, help="Less stable masks are dropped."),
    crop_layers: int = typer.Option(0, min=0, max=3, help="Look at crops, too: finds small parts, takes longer."),
    min_area: int = typer.Option(0, min=0, help="Remove islands and holes of fewer pixels."),
) -> None:
    """Segment Anything: image embedding and automatic masks, by the segment-anything package."""
    with one_line_errors():
        found = find_photos(photos)
        try:
            from training.samfeat.teacher.sam import MaskOptions, SamTeacher, load_sam
        except ImportError as error:
            raise StoreError(f"the sam teacher needs the packages torch and segment-anything: {error}") from error
        options = MaskOptions(points_per_side, pred_iou, stability, crop_layers, min_area, points_per_batch)
        teacher = SamTeacher(load_sam(model, checkpoint, pick_device(device)), f"sam {model}", options)
        teachings = TeacherStore(store)
        teachings.create({"teacher": teacher.name, "checkpoint": checkpoint.name, **options.settings()})

        def work(photo: Photo, note: Note) -> tuple[dict[str, np.ndarray], dict[str, object]]:
            entry = teacher(read_photo(photo.path))
            return entry.arrays(), entry.meta()

        finish(teachings, fill(teachings, found, work, teacher.name))


def pick_device(text: str) -> str:
    """The torch device of an option: "auto" is this rank's GPU (LOCAL_RANK), or the CPU where there is none.

    Raises:
        StoreError: not a device that is there.
    """
    import torch

    if text == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise StoreError(f"device {text!r} cannot be used: {str(error).splitlines()[0]}") from error
    return text


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with exit code 1 and one line on stderr where a run cannot go on."""
    try:
        yield
    except StoreError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def finish(store: PhotoStore, report: Report, without: int | None = None) -> None:
    """Says what a run did; exit code 1 where not one photograph could be used."""
    line = f"{store.folder}: {report.written} photographs written, {report.kept} were there"
    if without:
        line += f", {without} have no segmentation"
    if report.skipped:
        line += f"; {len(report.skipped)} files could not be used (listed in {store.folder}/skipped-*.txt)"
    typer.echo(line)
    if report.skipped and not report.written + report.kept:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
