"""User errors on the command line: a message and an exit code, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from upfeat.errors import UpfeatError

USAGE_ERROR = 2
INTERRUPTED = 130


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn exceptions that the user can do something about into a message and exit code 2."""
    console = Console(stderr=True)
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted; finished files are kept, run again to go on", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    except (UpfeatError, ValueError, FileNotFoundError, TypeError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        raise typer.Exit(USAGE_ERROR) from error
