"""What all commands share: errors as one line on stderr, and the exit code that goes with them.

Exit codes: 0 = all that was asked for was done, 1 = a failure, 2 = wrong usage, 130 = interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from samfeat_core.engines import DEVICES, ENGINES
from samfeat_core.errors import SamfeatError, UsageError, one_line

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130

DEVICE_HELP = f"{', '.join(DEVICES)}, or one GPU of several: cuda:N."
ENGINE_HELP = f"{', '.join(ENGINES)}."


@contextmanager
def errors_in_one_line(command: str, *expected: type[Exception]) -> Iterator[None]:
    """Ends the command with a line `command: what is wrong`: exit code 2 for a `UsageError`, 1 for a failure.

    Args:
        expected: failures besides `SamfeatError` and OSError. Any other exception is a bug and keeps its traceback.
    """
    failures: tuple[type[Exception], ...] = (SamfeatError, OSError, *expected)
    try:
        yield
    except UsageError as error:
        _end(command, str(error), WRONG_USAGE)
    except failures as error:
        _end(command, one_line(error), FAILED)
    except ImportError as error:
        _end(command, f"{error}; is ROS 2 sourced, and are the tools' Python packages installed?", FAILED)
    except KeyboardInterrupt:
        _end(command, "interrupted", INTERRUPTED)


def _end(command: str, text: str, code: int) -> None:
    typer.echo(f"{command}: {text}", err=True)
    raise typer.Exit(code) from None
