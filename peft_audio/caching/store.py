"""States on disk: a folder for each frozen part, named after all that its results depend on, and a file for each sample."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel

from ..upstream.torch_tensors import inner_tensors, is_sharded
from ..upstream.transformers_models import attention_implementation
from .split_point import frozen_modules


FORMAT = 2  # of the entries
STATES = "states"
# The states may change with the versions of these.
PACKAGES = ("torch", "transformers")
# Of a model's configuration: they change nothing that is computed before the head.
NAMES_ONLY = ("_name_or_path", "architectures", "id2label", "label2id", "transformers_version")
STALE_SECONDS = 3600  # no entry takes that long to write: what is older was left behind by a run that was killed
CHECKSUM = "xxh3_128"


def settings_of(model: PreTrainedModel, path: str, dtype: torch.dtype, digest: str) -> str:
    """Return all that the states depend on besides the sample, as JSON.

    Args:
        model: the model.
        path: where its frozen part ends.
        dtype: of the states.
        digest: of the frozen tensors, see `digest_of`.
    """
    autocast = autocast_dtype(model)
    settings = {
        "format": FORMAT,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": config_of(model),
        "attention": attention_implementation(model.config),
        "cut": path,  # the split point: by another name, all folders that exist would be of no use
        "dtype": str(dtype),
        "device": next(model.parameters()).device.type,  # others round in other ways
        "autocast": None if autocast is None else str(autocast),
        "frozen": digest,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    return json.dumps(settings, indent=2, sort_keys=True, default=str)


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return the fields of the model's configuration that may change what it computes."""
    return {name: value for name, value in model.config.to_dict().items() if name not in NAMES_ONLY}


def autocast_dtype(model: nn.Module) -> Optional[torch.dtype]:
    """Return the dtype of autocast on the model's device, None where it is off."""
    device_type = next(model.parameters()).device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def digest_of(model: nn.Module, after: Collection[str]) -> str:
    """Return the checksum of all frozen parameters and buffers, with their names."""
    return checksum(_frozen_bytes(model, after))


def _frozen_bytes(model: nn.Module, after: Collection[str]) -> Iterator[Any]:
    for path, module in sorted(frozen_modules(model, after)):
        tensors: dict[str, torch.Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        tensors.update(module.named_buffers(recurse=False, remove_duplicate=False))
        for name, value in sorted(tensors.items()):
            yield f"{path} {name} ".encode()
            yield from _bytes_of(value)


def checksum(parts: Iterable[Any]) -> str:
    """Return the XXH3 of these bytes, at the speed of reading them. Chance makes no two the same."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def key_of(inputs: dict[str, torch.Tensor]) -> str:
    """Return the name of a sample's entry: the SHA-256 of the tensors that reach the frozen part."""
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(f"{name} ".encode())
        for part in _bytes_of(value):
            digest.update(part)
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> Iterator[Any]:
    if is_sharded(tensor):
        raise RuntimeError(
            "The frozen part is sharded over several processes (FSDP or ZeRO-3), and cached states need all of it in each. "
            "Start the same script with torchrun, which copies the model to every process, or train from the input."
        )
    parts = inner_tensors(tensor)
    if parts:
        for part in parts:
            yield from _bytes_of(part)
        return
    if tensor.is_meta:
        raise ValueError(
            "The frozen part has tensors on the meta device, which have no values. Load the weights first."
        )
    yield f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class Store:
    """The entries for one frozen part.

    Args:
        folder: holds the entries for all frozen parts; made if it is missing.
        settings: JSON, see `settings_of`.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.root = folder
        self.settings = settings
        self.folder = folder / hashlib.sha256(settings.encode()).hexdigest()[:32]

    def path(self, key: str) -> Path:
        """Return the file of an entry."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Optional[dict[str, torch.Tensor]]:
        """Return an entry; None if there is none, or a damaged one."""
        try:
            with safe_open(self.path(key), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                expected = (file.metadata() or {}).get(CHECKSUM)
        except (OSError, SafetensorError):
            return None
        return tensors if expected == self._checksum(key, tensors) else None

    def write(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Add an entry, or replace a damaged one. At every moment the whole file is there, or none of it.

        Raises:
            OSError: the folder cannot be written to.
        """
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        self._write(self.path(key), save(tensors, {CHECKSUM: self._checksum(key, tensors)}))

    def prepare(self) -> None:
        """Make the folder, and remove what killed runs have left in it."""
        self._write(self.folder / "settings.json", self.settings.encode() + b"\n")
        for path in self._partial().iterdir():
            with suppress(FileNotFoundError):  # another run was faster
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def check_room(self, num_missing: int, num_samples: int, entry_bytes: int, max_bytes: int) -> None:
        """Check that the missing entries fit in. Nothing is written.

        Raises:
            ValueError: they do not.
        """
        needed = num_missing * entry_bytes
        used = sum(os.path.getsize(Path(place, name)) for place, _, names in os.walk(self.root) for name in names)
        existing = next(place for place in (self.root, *self.root.absolute().parents) if place.exists())
        free = shutil.disk_usage(existing).free
        if used + needed <= max_bytes and needed <= free:
            return
        limit = f"the folder has {gigabytes(used)} of at most max_bytes={max_bytes} ({gigabytes(max_bytes)})"
        raise ValueError(
            f"The states of {num_missing} of {num_samples} samples are missing and need {gigabytes(needed)} "
            f"({entry_bytes} bytes each), but {limit}, and the disk of {str(self.root)!r} has {gigabytes(free)} free. "
            "Remove subfolders that are no longer used, name another folder, give a larger max_bytes, use shorter clips "
            "or fewer of them, or train from the input."
        )

    def _checksum(self, key: str, tensors: dict[str, torch.Tensor]) -> str:
        """Return the checksum of an entry and its place: the entry of another sample or frozen part has another one."""
        parts = [f"{self.folder.name} {key} ".encode()]
        for name in sorted(tensors):
            parts += [f"{name} ".encode(), *_bytes_of(tensors[name])]
        return checksum(parts)

    def _partial(self) -> Path:
        """Return the folder for unfinished files. It is inside the other, because a move within a file system is atomic."""
        return self.folder / "partial"

    def _write(self, path: Path, content: bytes) -> None:
        temporary = self._partial() / uuid.uuid4().hex
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError as error:
            raise OSError(
                error.errno,
                f"Cannot write states: {error.strerror}. Those that are complete stay, and the next call adds the others. "
                "Free space or name another folder",
                str(self.root),
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink()


def gigabytes(num_bytes: int) -> str:
    """Return a number of bytes in words."""
    return f"{num_bytes / 1e9:.3g} GB"
