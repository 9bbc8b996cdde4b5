"""Entries of the feature cache: a file for each clip, with a checksum of what is in it and of where it belongs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import safe_open
from safetensors.numpy import save


STALE_SECONDS = 3600  # no entry takes that long to write: what is older was left behind by a run that was killed
CHECKSUM = "xxh3_128"


def entry_path(folder: Path, key: str) -> Path:
    """Return the file of an entry."""
    return folder / key[:2] / f"{key}.safetensors"


def partial_folder(folder: Path) -> Path:
    """Return the folder of incomplete entries; on the same file system, because moving is atomic only there."""
    return folder / "partial"


def prepare(folder: Path, settings: str) -> None:
    """Make the folder for entries with these settings, and remove what killed runs have left in it."""
    partial_folder(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "settings.json", settings.encode() + b"\n", partial_folder(folder))
    for path in partial_folder(folder).iterdir():
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # another run was faster
            pass


def as_stored(features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return features as they are in a file: contiguous, without which safetensors mixes them up, and little-endian."""
    arrays = {name: np.asarray(value, order="C") for name, value in features.items()}
    return {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}


def write_entry(folder: Path, key: str, features: Mapping[str, Any]) -> None:
    """Write an entry. At every moment the whole file is there, or none of it.

    Raises:
        OSError: the folder cannot be written to.
    """
    arrays = as_stored(features)
    content = save(arrays, {CHECKSUM: _checksum(folder, key, arrays)})
    for place in (partial_folder(folder), entry_path(folder, key).parent):
        place.mkdir(parents=True, exist_ok=True)
    write_atomically(entry_path(folder, key), content, partial_folder(folder))


def read_entry(folder: Path, key: str) -> dict[str, np.ndarray]:
    """Return the features of an entry.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, is damaged, or is the entry of another clip or of other settings.
    """
    try:
        with safe_open(entry_path(folder, key), framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get(CHECKSUM)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header makes of it
        raise OSError(f"no whole safetensors file: {error}") from None
    if expected != _checksum(folder, key, arrays):
        raise OSError("other content than was written here, by its checksum")
    return arrays


def is_complete(folder: Path, key: str) -> bool:
    """Return whether there is an entry that is not damaged."""
    try:
        read_entry(folder, key)
    except OSError:
        return False
    return True


def write_atomically(path: Path, content: bytes, partial: Path) -> None:
    """Write a file in the folder `partial` and move it to `path`, so that `path` never holds a part of it."""
    temporary = partial / uuid.uuid4().hex
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(folder: Path, key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the XXH3 of the features and their place: the entry of another clip or other settings has another one."""
    state = xxhash.xxh3_128(f"{folder.name} {key} ".encode())
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()
