"""Arguments of scripts that name files and folders: checked before anything is read, and told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, Union

from .ranges import Range


Result = TypeVar("Result")


class UsageError(ValueError):
    """Arguments that do not fit together; the message says which, and the way out."""


def check_file(name: str, file: Union[str, Path]) -> None:
    """Check that the file given as the argument `name` is there.

    Raises:
        UsageError: it is not, or is a folder.
    """
    if not Path(file).is_file():
        raise UsageError(f"{name} must be a file, got {str(file)!r}: {_what_is_there(file)}.")


def check_folder(name: str, folder: Union[str, Path], *files: str) -> None:
    """Check that the folder given as the argument `name` is there, with these files in it.

    Raises:
        UsageError: it is not, or lacks a file.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{name} must be a folder, got {str(folder)!r}: {_what_is_there(folder)}.")
    for file in files:
        if not (Path(folder) / file).is_file():
            raise UsageError(f"{name} must be a folder with {file}, got {str(folder)!r}: no such file in it.")


def check_writable(name: str, folder: Union[str, Path]) -> None:
    """Check that the folder given as the argument `name` is there or can be made, and takes files. Makes nothing.

    Raises:
        UsageError: it cannot be.
    """
    path = Path(folder).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "may not be written to" if existing.is_dir() else "is a file"
        raise UsageError(f"{name} must be a folder for new files, got {str(folder)!r}: {existing} {why}.")


def check_new(name: str, folder: Union[str, Path]) -> None:
    """Check that the folder given as the argument `name` is not there or empty, and can be made.

    Raises:
        UsageError: it holds something, or cannot be made.
    """
    check_writable(name, folder)
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise UsageError(
            f"{name} must be a new folder, got {str(folder)!r}, which is there already. Remove what is in it."
        )


def check_distinct(name: str, values: Iterable[Any]) -> None:
    """Check that no value of the argument `name` is there twice.

    Raises:
        UsageError: one is.
    """
    given = list(values)
    if len(set(given)) < len(given):
        raise UsageError(f"{name} must name each value once, got {' '.join(map(str, given))}.")


def check_each(name: str, values: Iterable[Any], wanted: Range) -> None:
    """Check that each value of the argument `name` is in the range, and there once.

    Raises:
        ValueError: one is not.
    """
    given = list(values)
    for value in given:
        wanted.check(name, value)
    check_distinct(name, given)


def run_command(main: Callable[[], Result], errors: tuple[type[Exception], ...] = (OSError, ValueError)) -> Result:
    """Run a script and return what it returns; what its user can do something about ends the process, in one line.

    Args:
        main: does the work.
        errors: of which kind that is. The status is 2 for arguments, as argparse has it, and 1 for others.
    """
    told: tuple[type[Exception], ...] = (UsageError, *errors)
    try:
        return main()
    except told as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _what_is_there(path: Union[str, Path]) -> str:
    return "it is something else" if Path(path).exists() else "there is none"
