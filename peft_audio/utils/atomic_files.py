"""Writing several files of a folder as one: whenever the process ends, all of them are the old or all the new ones."""

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


WORKSHOP = ".saving-"  # start of the name of a folder, inside the one written to, for what is not finished
FIRST_READ = "adapter_config.json"  # a folder without it holds no adapter, so it comes last where nothing was before


@contextmanager
def written_together(folder: Path, replaced_by: Mapping[str, str] = MappingProxyType({})) -> Iterator[Path]:
    """Give an empty folder to write to; when the block ends, its files take their places in `folder` together.

    The files are moved one by one, so a single `os.replace` cannot do it. Instead each file of `folder` first becomes a
    link through one further link, `current`; replacing that one is the moment when all change.

    Args:
        folder: made if it is not there. Files that are not written again stay as they are.
        replaced_by: files to remove from the same folder when another one, their value, is written.

    Raises:
        ValueError: if `folder` is a file.
        Whatever the block raises; `folder` is left as it was.
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
    """Whether the process that made it, on this machine, is no more."""
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
    # Else, after a power failure, the name could be there before the content.
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def _switch(workshop: Path, paths: list[Path]) -> None:
    """Turn the files at `paths` into links to the new ones, all at once; nothing where there are no links to be had."""
    folder = workshop.parent
    old, current, following = (workshop / name for name in ("old", "current", "following"))
    for path in paths:
        if (folder / path).is_file():
            (old / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / path, old / path)
    try:
        os.symlink("old", current)
        os.symlink("new", following)
    except OSError:  # no such thing on this file system: the files are replaced one after the other
        return
    for number, path in enumerate(paths):
        link = workshop / f"link{number}"
        os.symlink(os.path.relpath(current / path, (folder / path).parent), link)
        os.replace(link, folder / path)
    os.replace(following, current)


def _clear(workshop: Path) -> None:
    """Remove the workshop; links to what is in it, where its process was interrupted, become files."""
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
    # Other processes may be saving here too: os.walk does not mind what vanishes.
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(WORKSHOP)]
        yield from (path for path in (Path(parent, name) for name in files) if path.is_symlink())
