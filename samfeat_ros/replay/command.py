"""What the commands share: errors as one line on stderr, and the exit code that goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from samfeat_core.engines import DEVICES, ENGINES
from samfeat_core.errors import SamfeatError, one_line

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130

DEVICE_HELP = f"{', '.join(DEVICES)}, or one GPU of several: cuda:N."
ENGINE_HELP = f"{', '.join(ENGINES)}."


class UsageError(SamfeatError):
    """An option has a value that is not possible. One line."""


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """Ends the command with a line `command: what is wrong`: exit code 2 for wrong usage, 1 for a failure."""
    try:
        yield
    except UsageError as error:
        _end(command, str(error), WRONG_USAGE)
    except (SamfeatError, OSError) as error:
        _end(command, one_line(error), FAILED)
    except ImportError as error:
        _end(command, f"{error}; is ROS 2 sourced, and are the tools' Python packages installed?", FAILED)
    except KeyboardInterrupt:
        _end(command, "interrupted", INTERRUPTED)


def _end(command: str, text: str, code: int) -> None:
    typer.echo(f"{command}: {text}", err=True)
    raise typer.Exit(code) from None
