"""Which engines are as accurate as `eager`: writes the table from which `auto` knows it.

\b
    python -m training.compare_engines                              # shipped models, every engine of the CPU
    python -m training.compare_engines --model samfeat-nano=best.safetensors --engine openvino_int8

Every engine looks at the public evaluation ($SAMFEAT_DATA/eval); `training.evaluation.engines` says what is measured,
and when an engine is as accurate. A row stands for the weights that it was measured with, and for no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from samfeat_core.engines import BY_DEVICE
from samfeat_core.engines.choice import TABLE, Row, identity, library_version, read_table, write_table
from samfeat_core.errors import EngineError
from samfeat_core.extractor import SHIPPED_WEIGHTS, FeatureExtractor
from samfeat_core.measure import cpu_name, gpu_name
from samfeat_core.progress import progress
from training.cli import application, one_line_errors
from training.environment import data_folder
from training.evaluation import engines

REFERENCE = "eager"
app = application()


@app.command(help=__doc__)
def main(
    model: Annotated[
        list[str] | None, typer.Option(help="MODEL or MODEL=FILE; repeatable. Default: the shipped models.")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Repeatable. Default: all of the device that can be built here.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="Folder with the evaluation sets.", show_default="$SAMFEAT_DATA/eval")
    ] = None,
    max_keypoints: Annotated[int, typer.Option(min=1, help="Per image.")] = 1024,
    table: Annotated[Path, typer.Option(help="The table to write rows into.")] = TABLE,
) -> None:
    """Compare engines with eager, and write their rows of the table."""
    with one_line_errors("compare_engines"):
        names = engine or [name for name in BY_DEVICE[device.partition(":")[0]] if name != REFERENCE]
        folder = data or data_folder() / "eval"
        for entry in model or sorted(path.stem for path in SHIPPED_WEIGHTS.glob("*.safetensors")):
            name, _, file = entry.partition("=")
            make = partial(
                FeatureExtractor.from_pretrained, name, device, weights=file or None, max_keypoints=max_keypoints
            )
            reference = engines.measure(make(engine=REFERENCE), folder, max_keypoints, bar(f"{name} {REFERENCE}"))
            for other in names:
                extractor = make(engine=other)
                try:
                    build(extractor, other)
                except EngineError as error:
                    if engine:
                        raise
                    typer.echo(f"{name} {other}: left out, {error}", err=True)
                    continue
                scores = engines.measure(extractor, folder, max_keypoints, bar(f"{name} {other}"))
                row = judge(extractor, other, engines.compare(scores, reference))
                write_table([*read_table(table), row] if table.is_file() else [row], table)
                typer.echo(line(row))
        typer.echo(f"wrote {table}")


def bar(title: str):
    """A progress bar over the pairs of a data set."""

    def over(pairs: Sequence) -> Iterable:
        return progress(pairs, title, "pair", leave=False, mininterval=0.5)

    return over


def build(extractor: FeatureExtractor, engine: str) -> None:
    """EngineError if what is built is not the engine asked for."""
    extractor.prepare(64, 64)
    if extractor.engine_name != engine:
        raise EngineError(f"engine {engine} cannot be built here; see the log")


def judge(extractor: FeatureExtractor, engine: str, comparison: dict) -> Row:
    """The row of an engine."""
    return Row(
        model=extractor.spec.name,
        engine=engine,
        weights=identity(engine, extractor.weights),
        library=library_version(engine),
        machine=(gpu_name() if extractor.device.startswith("cuda") else None) or cpu_name(),
        measures=comparison,
        as_accurate=engines.as_accurate(comparison),
    )


def line(row: Row) -> str:
    """A row for people."""
    parts = [
        f"{name} {measure['eager']:.1f} {measure['difference']:+.2f} "
        f"[{measure['interval'][0]:+.2f}, {measure['interval'][1]:+.2f}]"
        for name, measure in row.measures.items()
    ]
    return f"{row.model} {row.engine}: {'as accurate' if row.as_accurate else 'less accurate'}; {', '.join(parts)}"


if __name__ == "__main__":
    app()
