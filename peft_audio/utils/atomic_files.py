"""Replacing several files of a folder together: even if the process is killed, all of them are old or all are new."""

from __future__ import annotations

import filecmp
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


LOCK_NAME = ".saving.lock"
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
    try:
        _clear_abandoned(folder)
        with _made_workshop(folder) as workshop:
            yield workshop / "new"
            with alone_in(folder):
                _publish(workshop, replaced_by)
                _clear(workshop)
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _made_workshop(folder: Path) -> Iterator[Path]:
    workshop = Path(tempfile.mkdtemp(prefix=f"{WORKSHOP}{_owner(psutil.Process())}-", dir=folder))
    try:
        (workshop / "new").mkdir()
        workshop.chmod((workshop / "new").stat().st_mode)  # readers go through it for a moment
        yield workshop
    finally:
        _clear(workshop)


def _clear_abandoned(folder: Path) -> None:
    abandoned = [path for path in folder.glob(f"{WORKSHOP}*") if _is_abandoned(path)]
    if abandoned:
        with alone_in(folder):
            for path in abandoned:
                _clear(path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process or thread is here for the same folder, where the file system has locks."""
    file = folder / LOCK_NAME
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            is_current = file.exists() and os.path.samestat(os.fstat(handle), file.stat())
        except OSError:
            is_current = True  # no locks here
        if is_current:
            break
        os.close(handle)  # who had the lock has removed the file meanwhile
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def _owner(process: psutil.Process) -> str:
    """Return what tells a process of this machine from others, here and where its files are shared."""
    return f"{_place()}-{process.pid}-{process.create_time():.0f}"


def _place() -> str:
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # containers may have one host name and the same numbers
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}-{namespace}"


def _is_abandoned(workshop: Path) -> bool:
    """Whether the process that made the folder, on this machine, has ended."""
    owner = workshop.name.removeprefix(WORKSHOP).rpartition("-")[0]
    place, _, numbers = owner.partition(f"{_place()}-")
    number = numbers.partition("-")[0]
    if place or not number.isdigit():
        return False  # of another machine, or not of this package
    try:
        return _owner(psutil.Process(int(number))) != owner
    except psutil.NoSuchProcess:
        return True


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
    links = [workshop / f"link{number}" for number in range(len(paths))]
    for path, link in zip(paths, links):  # all before the first is used: there may be no room for one
        os.symlink(os.path.relpath(current / path, (folder / path).parent), link)
    for path, link in zip(paths, links):
        os.replace(link, folder / path)
    os.replace(following, current)


def _clear(workshop: Path) -> None:
    """Remove the temporary folder; links into it, left by a process that was interrupted, become files."""
    if workshop.is_symlink() or workshop.is_file():
        workshop.unlink()  # something else by this name
        return
    if not workshop.exists():
        return
    for link in _links(workshop.parent):
        target = Path(os.path.abspath(link.parent / os.readlink(link)))
        if workshop not in target.parents:
            continue
        if target.exists():
            os.replace(target.resolve(), link)  # without a copy, for which there may be no room
        else:
            link.unlink()
    shutil.rmtree(workshop)


def _links(folder: Path) -> Iterator[Path]:
    # Other processes may save here at the same time: os.walk ignores files that disappear.
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(WORKSHOP)]
        yield from (path for path in (Path(parent, name) for name in files) if path.is_symlink())
