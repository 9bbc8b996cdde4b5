"""Replacing several files of a folder together: even if the process is killed, all of them are old or all are new."""

from __future__ import annotations

import filecmp
import os
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil


# Start of the name of a temporary folder, inside the one that is written to.
WORKSHOP = ".saving-"
# In a new folder this file is written last: a folder without it holds no adapter, and nobody loads half of one.
FIRST_READ = "adapter_config.json"


@contextmanager
def written_together(folder: Path, replaced_by: Mapping[str, str] = MappingProxyType({})) -> Iterator[Path]:
    """Yield an empty folder to write to; when the block ends, its files replace those of `folder` together.

    A single `os.replace` cannot do that, it moves one file. So each file of `folder` first becomes a link that goes
    through one further link, `current`. Replacing `current` changes all files at the same moment.

    Args:
        folder: made if it does not exist. Files that are not written again stay as they are.
        replaced_by: names of files to remove, each with the name of the file whose writing removes it.

    Yields:
        The folder to write to.

    Raises:
        ValueError: if `folder` is a file.
        Exception: what the block raises; then `folder` is left as it was.
    """
    if folder.is_file():
        raise ValueError(f"Saving needs a folder, but {str(folder)!r} is a file. Choose another name.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for workshop in folder.glob(f"{WORKSHOP}*"):
        if _is_abandoned(workshop):
            _clear(workshop)
    workshop = folder / f"{WORKSHOP}{_owner()}-{threading.get_ident()}"
    try:
        (workshop / "new").mkdir(parents=True)
        yield workshop / "new"
        _publish(workshop, replaced_by)
    finally:
        _clear(workshop)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _owner() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _is_abandoned(workshop: Path) -> bool:
    """Whether the process that made the folder, on this machine, has ended."""
    host, _, process = workshop.name.removeprefix(WORKSHOP).rpartition("-")[0].rpartition("-")
    return host == socket.gethostname() and process.isdigit() and not psutil.pid_exists(int(process))


def _publish(workshop: Path, replaced_by: Mapping[str, str]) -> None:
    folder, staged = workshop.parent, workshop / "new"
    files = [file.relative_to(staged) for file in staged.rglob("*") if file.is_file()]
    removed = [path for path in _outdated(files, replaced_by) if (folder / path).exists()]
    changed = [path for path in files if not _same(folder / path, staged / path)]
    for path in changed:
        _flush(staged / path)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    changed.sort(key=lambda path: path.name == FIRST_READ)
    present = [path for path in changed if (folder / path).exists()]
    if len(changed) + len(removed) > 1 and present:
        _switch(workshop, [*changed, *removed])
    for path in changed:
        os.replace(staged / path, folder / path)
    for path in removed:
        (folder / path).unlink()


def _outdated(files: Iterable[Path], replaced_by: Mapping[str, str]) -> list[Path]:
    return [
        path.with_name(old)
        for path in files
        for old, new in replaced_by.items()
        if path.name == new and path.with_name(old) not in files
    ]


def _same(first: Path, second: Path) -> bool:
    return first.is_file() and filecmp.cmp(first, second, shallow=False)


def _flush(file: Path) -> None:
    # Otherwise, after a power failure, the file could have its name but not its content.
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def _switch(workshop: Path, paths: list[Path]) -> None:
    """Turn the files at `paths` into links to the new ones, all at once; do nothing if links are not supported."""
    folder = workshop.parent
    old, current, following = (workshop / name for name in ("old", "current", "following"))
    for path in paths:
        if (folder / path).is_file():
            (old / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / path, old / path)
    try:
        os.symlink("old", current)
        os.symlink("new", following)
    except OSError:  # this file system has no links: the files are replaced one after the other
        return
    for number, path in enumerate(paths):
        link = workshop / f"link{number}"
        os.symlink(os.path.relpath(current / path, (folder / path).parent), link)
        os.replace(link, folder / path)
    os.replace(following, current)


def _clear(workshop: Path) -> None:
    """Remove the temporary folder; links into it, left by a process that was interrupted, become files."""
    if not workshop.exists():
        return
    for link in _links(workshop.parent):
        target = Path(os.path.abspath(link.parent / os.readlink(link)))
        if workshop not in target.parents:
            continue
        if target.exists():
            copy = shutil.copy2(target, workshop / "copy")
            os.replace(copy, link)
        else:
            link.unlink()
    shutil.rmtree(workshop)


def _links(folder: Path) -> Iterator[Path]:
    # Other processes may save here at the same time: os.walk ignores files that disappear.
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(WORKSHOP)]
        yield from (path for path in (Path(parent, name) for name in files) if path.is_symlink())
