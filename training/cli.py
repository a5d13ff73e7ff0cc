"""The one convention of all commands of `training`: help, options that several have, errors, exit codes.

A command ends with 0 if all that was asked for was done, with 1 and one line after a failure, with 2 and one line for
wrong usage (`samfeat_core.command`). Commands import nothing of each other: what two need is here, or below.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import typer

from samfeat_core.command import DEVICE_HELP, FAILED, errors_in_one_line
from samfeat_core.engines import check_choice, cuda_problem
from samfeat_core.errors import UsageError
from training.data.photo_store import PhotoStore, Report

PHOTOS = typer.Argument(..., help="Folder of photographs, searched with its subfolders.")
STORE = typer.Argument(..., help="Folder to write; an unfinished one is continued.")
DEVICE = typer.Option("auto", help=f"{DEVICE_HELP} auto takes this rank's GPU if there is one.")
SET = typer.Option([], "--set", help="Override of a key of the configuration, as data.batch=16; repeatable.")


def application(text: str | None = None) -> typer.Typer:
    """A command line application to which commands are added. `text`: its help, where it has several commands."""
    return typer.Typer(
        help=text,
        no_args_is_help=text is not None,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def one_line_errors(command: str) -> AbstractContextManager[None]:
    """A context in which errors end the program as this module says.

    ValueErrors are failures: the readers of data raise them, with a line that names the file.
    """
    return errors_in_one_line(command, ValueError)


def finish(store: PhotoStore, report: Report, without: int | None = None) -> None:
    """Says what filling a store did; exit code 1 where not one photograph could be used.

    Args:
        without: number of photographs that have no segmentation.
    """
    line = f"{store.folder}: {report.written} photographs written, {report.kept} were there"
    if without:
        line += f", {without} have no segmentation"
    if report.skipped:
        line += f"; {len(report.skipped)} files could not be used (listed in {store.folder}/skipped-*.txt)"
    typer.echo(line)
    if report.skipped and not report.written + report.kept:
        raise typer.Exit(FAILED)


def pick_device(text: str) -> str:
    """The torch device of an option: "auto" is this rank's GPU (LOCAL_RANK), or the CPU where there is none.

    Raises:
        UsageError: not a device that is there.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if text == "auto":
        return "cpu" if cuda_problem(rank) else f"cuda:{rank}"
    check_choice(text, "auto")
    kind, _, index = text.partition(":")
    problem = cuda_problem(int(index or 0)) if kind == "cuda" else None
    if problem:
        raise UsageError(f"device {text!r} cannot be used: {problem}")
    return text
