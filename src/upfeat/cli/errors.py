"""User errors on the command line: one sentence and an exit code, no traceback, for all commands.

What lies outside the program (names, files, folders, disks, memory, devices, Ctrl-C) is told in a
sentence. Anything else is a fault of ours and keeps its traceback; ``upfeat --verbose`` shows the
traceback of the others, too.
"""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

logger = logging.getLogger(__name__)

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch.save and safetensors pass a full disk on as errors of their own.
_DISK_FULL_TEXTS = (
    *(os.strerror(number) for number in _DISK_FULL),
    *("StorageFull", "QuotaExceeded", "FileTooLarge"),
    *("PytorchStreamWriter failed", "file write failed", "iostream error"),
)
_MEMORY_TEXTS = (
    *("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "Storage size calculation overflowed"),
)
_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name another place",
    errno.EEXIST: "a file lies where a folder is expected; name another place, or move it",
    errno.ENOTDIR: "a file lies where a folder is expected; name another place, or move it",
    errno.EISDIR: "a folder lies where a file is expected; name another place, or move it",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class Commands(TyperGroup):
    """The commands of ``upfeat``; what a user can mend ends any of them in one sentence.

    It surrounds the reading of the options as well as the command itself, so that neither needs
    to know of it.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        with user_errors(), plain_warnings():
            return super().invoke(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command whose flags show no type in the help: they take no value."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            return None
        for each in (command, *getattr(command, "commands", {}).values()):
            _without_types(each.get_params(ctx))
        return command

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options in front of the commands, likewise."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    """Return the parameters, whose flags show no type such as ``<bool>`` any more."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what the user can mend into a sentence and code 2; Ctrl-C: 130, broken pipe: 141."""
    try:
        yield
    except KeyboardInterrupt:
        _complain("interrupted; finished files are kept, run again to go on")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(BROKEN_PIPE) from None
    except Exception as error:
        sentence = user_message(error)
        if sentence is None:
            raise
        logger.debug("where it happened:", exc_info=True)
        _complain(f"error: {sentence}", style="red")
        raise typer.Exit(USAGE_ERROR) from error


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings for users as one line, without the line of code that raised them."""
    usual = warnings.formatwarning

    def shown(message: Any, category: type[Warning], *place: Any, **more: Any) -> str:
        if category is UserWarning:
            return f"warning: {message}\n"
        return usual(message, category, *place, **more)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = usual


def user_message(error: Exception) -> str | None:
    """Return the sentence for an error that lies outside the program; None for any other.

    Example:
        >>> from upfeat.cli.errors import user_message
        >>> user_message(FileNotFoundError(2, "No such file or directory", "a.png"))
        'No such file or directory: a.png; check the path'
        >>> user_message(KeyError("state")) is None
        True
    """
    if isinstance(error, ValueError) or _is_ours(error):
        return str(error)
    text = f"{error} {type(error).__name__}"
    foreign = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
    if isinstance(error, MemoryError) or (foreign and _names(text, _MEMORY_TEXTS)):
        return (
            f"out of memory ({_first_line(error) or 'no details'}); use smaller sizes or batches, "
            "another device, or a method of bounded memory (upfeat info NAME: tiles)"
        )
    if foreign and _names(text, _DISK_FULL_TEXTS):
        return _disk_full(_first_line(error), None)
    return _os_message(error) if isinstance(error, OSError) else None


def _is_ours(error: Exception) -> bool:
    """Whether it is an ``UpfeatError``, whose module imports torch: a typing error needs none."""
    errors = sys.modules.get("upfeat.errors")
    return errors is not None and isinstance(error, errors.UpfeatError)


def _os_message(error: OSError) -> str:
    """Say what the system refused, where, and what to do."""
    if error.errno is None and str(error):
        return str(error)  # not the system's: a reader's own words, with the files that it expects
    place = None if error.filename is None else os.fsdecode(error.filename)
    reason = error.strerror or _first_line(error) or type(error).__name__
    if error.errno in _DISK_FULL:
        return _disk_full(reason, place)
    if error.errno == errno.ENOMEM:
        return f"out of memory ({reason}); use smaller sizes, or end other programs"
    advice = _ADVICE.get(error.errno or 0)
    return (reason if place is None else f"{reason}: {place}") + (f"; {advice}" if advice else "")


def _disk_full(reason: str, place: str | None) -> str:
    where = "" if place is None else f" in {Path(place).parent}"
    return (
        f"no more can be written{where} ({reason}); finished files are kept: free some space or "
        "raise the limit, then run again (a training with --resume)"
    )


def _names(text: str, known: tuple[str, ...]) -> bool:
    return any(part in text for part in known)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _complain(text: str, style: str | None = None) -> None:
    """Print to standard error, and drop what standard output can no longer take."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    console = Console(stderr=True)
    console.print(text, markup=False, highlight=False, style=style, soft_wrap=True)


def _discard_output() -> None:
    """Send what is still in the buffers nowhere, so that the interpreter does not try again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
