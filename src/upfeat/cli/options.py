"""Checks that options of several commands share, made before a command begins any work."""

import os
from pathlib import Path

import typer


def checked_device(param: typer.CallbackParam, value: str | None) -> str | None:
    """Return the device of an option, if this machine can compute on it.

    Args:
        param: the option, for the message.
        value: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, …; None stays None.

    Raises:
        ValueError: no device of that name, or none that works here.
    """
    if value is None or value == "cpu":
        return value
    import torch

    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise ValueError(
            f"{_name(param)} must be cpu, cuda, cuda:1, mps or another device of PyTorch, got "
            f"{value!r}"
        ) from error
    try:
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(
            f"{_name(param)} {value}: PyTorch cannot compute on that here, it finds "
            f"{', '.join(_devices())}; name one of them"
        ) from error
    return value


def _devices() -> list[str]:
    """Return the names of the devices of this machine."""
    import torch

    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def checked_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the folder of an option, if files can be written into it; see :func:`check_folder`."""
    if value is not None:
        check_folder(value, _name(param))
    return value


def checked_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the file of an option, if it can be written.

    Raises:
        ValueError: it is a folder, or its folder cannot be written into.
    """
    if value is None:
        return None
    if value.is_dir():
        raise ValueError(f"{_name(param)} {value} is a folder; name a file")
    check_folder(value.absolute().parent, f"{_name(param)} {value}:")
    return value


def check_folder(folder: Path, what: str) -> None:
    """Raise unless files can be written into a folder, which need not exist yet.

    Args:
        folder: of results.
        what: the option that named it.

    Raises:
        ValueError: a file lies in its place or above it, or it is read-only.

    Example:
        >>> from pathlib import Path
        >>> from upfeat.cli.options import check_folder
        >>> try:
        ...     check_folder(Path(__file__, "results"), "--out")
        ... except ValueError as error:
        ...     print("is a file" in str(error))
        True
    """
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise ValueError(f"{what} {folder}: {present} is a file; name a folder for the results")
    if not os.access(present, os.W_OK | os.X_OK):
        raise ValueError(
            f"{what} {folder}: nothing can be written into {present}, it is read-only; name "
            "another folder, or change its permissions"
        )


def _name(param: typer.CallbackParam) -> str:
    """Return the option as it is written on the command line."""
    return max(param.opts, key=len)
