"""A data set of cached states, and how it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..backbones.table import resolve
from .checks import check_deterministic, check_replay, states_at, undisturbed
from .plan import Plan, make_plan
from .replay import Replay, argument_names, check_options, is_input
from .split_point import find_cut, trace
from .store import STATES, Store, digest_of, key_of, settings_of


MAX_BYTES = 50 * 10**9
HEADER_BYTES = 512  # of an entry's file, about


def cache_frozen(
    model: nn.Module,
    dataset: Any,
    cache_dir: Union[str, os.PathLike],
    batch_size: int = 8,
    max_bytes: int = MAX_BYTES,
    deterministic: bool = False,
) -> CachedStates:
    """Compute once what the frozen part of a model makes of every sample, keep it on disk, and train from there.

    The frozen part is what runs before the first module that trains or has an active adapter; inside the encoder that
    module's whole layer counts. From then on the model takes both: batches of the returned data set run from there on,
    raw batches as always. Losses and gradients are those of training from the input, but for rounding.

    A second call reads what is there; a killed one goes on where it was. Several processes may use a folder. No entry is
    ever deleted; subfolders that are no longer used can be removed by hand (`settings.json` says what they are of).

    Args:
        model: a classifier of a supported backbone, plain or with adapters (also a `PeftModel`), as it will be trained.
            The states are computed on the device that it is on.
        dataset: has a length, and gives at an index a dictionary with the model's main input and other columns, e.g.
            labels and attention_mask: always the same values, all samples of one shape. Columns that are no inputs of
            the model are kept in memory.
        cache_dir: folder.
        batch_size: samples that are computed together.
        max_bytes: limit for the folder.
        deterministic: accept a frozen part with dropout or SpecAugment (or batch norm in training mode). The cached
            states are without; training from the input has them, so it is not the same training then.

    Returns:
        A data set of the same dictionaries, with states in place of the main input. They have leading dimensions of
        size 1, so that they have one more than a raw sample, by which the model knows them.

    Raises:
        ValueError: nothing trains, or what trains lies before the encoder layers or needs more than the states at one
            place; the frozen part is random in training mode; the data set gives other values each time or samples of
            different shapes; or the states do not fit in.
        OSError: the folder cannot be written to. What it has got stays of use.
        RuntimeError: FSDP or ZeRO-3 has spread the frozen part over processes.

    The model raises RuntimeError for cached states when something before that place trains, has changed since or has
    been spread over processes.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    resolve(base)  # before anything is asked of a model of another kind
    check_options(base, {}, ValueError)
    samples = Samples(base, dataset)
    with undisturbed(model):
        model.eval()
        one, two = samples.probe()
        cut = find_cut(base, trace(base, one))
        plan = make_plan(base, cut, samples.main, one, two)
        expected = states_at(base, cut, two)
        if not deterministic:
            check_deterministic(model, base, cut, one)
        digest = digest_of(base, cut.after)
        store = Store(Path(cache_dir), settings_of(base, cut.path, plan.dtype, digest))
        check_replay(base, plan, two, expected)
        keys, columns = samples.read_all()
        fill(base, plan, samples, keys, store, batch_size, max_bytes)
    replay = Replay.on(base)
    if replay is None or replay.identity != store.folder.name:
        replay = Replay(store.folder.name, digest, digest_of)
    replay.attach(base, plan)
    return CachedStates(store, plan, replay, keys, columns, samples)


class CachedStates(Dataset):
    """What `cache_frozen` returns: the samples of a data set, with states in place of the main input.

    Raises:
        RuntimeError: when asked for a sample after `cache_frozen` was called for another cut or other weights.
        OSError: when the sample's entry has been damaged or removed since.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        replay: Replay,
        keys: list[str],
        columns: list[dict[str, Any]],
        samples: Samples,
    ) -> None:
        self.store = store
        self.keys = keys
        self.columns = columns
        self._replay = replay
        self._main = plan.main
        self._shape = plan.packed_shape
        self._dtypes = samples.dtypes

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._replay.is_replaced:
            raise RuntimeError(
                "These states are of another cut or of other weights than the model has now: cache_frozen was called "
                "again since. Use the data set that it returned."
            )
        entry = self.store.read(self.keys[index])
        if entry is None:
            raise OSError(
                f"{self.store.path(self.keys[index])}: the states of sample {index} have been damaged or removed since "
                "they were computed. cache_frozen computes them again."
            )
        inputs = {name: value.to(self._dtypes[name]) for name, value in entry.items() if name != STATES}
        inputs[self._main] = entry[STATES].reshape(self._shape)
        return {name: inputs.get(name, value) for name, value in self.columns[index].items()}


class Samples:
    """The samples of a data set, as the model's frozen part sees them."""

    def __init__(self, model: nn.Module, dataset: Any) -> None:
        self.dataset = dataset
        self.main = model.main_input_name
        self.device = next(model.parameters()).device
        self.names = [name for name in argument_names(model) if is_input(name)]
        if len(dataset) == 0:
            raise ValueError("cache_frozen needs a data set with at least one sample, got none.")
        first = self.inputs_of(0)
        self.shapes = {name: tuple(value.shape) for name, value in first.items()}
        self.dtypes = {name: value.dtype for name, value in first.items()}
        if not first[self.main].is_floating_point():
            raise ValueError(f"{self.main!r} must be of floating point, got {first[self.main].dtype}.")

    def inputs_of(self, index: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a sample that reach the frozen part."""
        return self._split(self.dataset[index], index)[0]

    def _split(self, sample: Any, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        if not isinstance(sample, Mapping) or self.main not in sample:
            found = ", ".join(map(repr, sample)) if isinstance(sample, Mapping) else type(sample).__name__
            raise ValueError(
                f"Sample {index} must be a dictionary with the model's main input, {self.main!r}, got {found}."
            )
        inputs = {name: sample[name] for name in self.names if sample.get(name) is not None}
        # What an entry holds is not kept in memory as well; the names keep their order.
        others = {name: None if name in inputs else value for name, value in sample.items()}
        return {name: _as_tensor(value) for name, value in inputs.items()}, others

    def read_all(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the names of the samples' entries, and their other columns."""
        self._check_same_each_time()
        keys, columns = [], []
        for index in tqdm(range(len(self.dataset)), "Reading samples", unit="sample", leave=False):
            inputs, others = self._split(self.dataset[index], index)
            self._check_shapes(inputs, index)
            keys.append(key_of(inputs))
            columns.append(others)
        return keys, columns

    def _check_same_each_time(self) -> None:
        for index in {0, len(self.dataset) // 2, len(self.dataset) - 1}:
            self.check_same(index, key_of(self.inputs_of(index)), self.inputs_of(index))

    def check_same(self, index: int, key: str, again: dict[str, torch.Tensor]) -> None:
        if key_of(again) != key:
            raise ValueError(
                f"Sample {index} of the data set has other values each time that it is asked for (augmentation?), so its "
                "states cannot be kept. Take the augmentation out, or train from the input."
            )

    def _check_shapes(self, inputs: dict[str, torch.Tensor], index: int) -> None:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        dtypes = {name: value.dtype for name, value in inputs.items()}
        if (shapes, dtypes) != (self.shapes, self.dtypes):
            raise ValueError(
                f"All samples must have inputs of the same shape, which may be padded in no batch: sample 0 has "
                f"{_told(self.shapes, self.dtypes)}, sample {index} {_told(shapes, dtypes)}. Let the feature extractor "
                "pad or cut all to one length (padding='max_length', truncation=True, max_length=...), and give an "
                "attention_mask where the model takes one."
            )

    def batch(self, items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([item[name] for item in items]).to(self.device) for name in self.shapes}

    def probe(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return a batch of the first sample, and one of it and noise, whose last quarter is padding."""
        first = self.inputs_of(0)
        noise = dict(first)
        generator = torch.Generator().manual_seed(0)
        main = first[self.main]
        noise[self.main] = torch.randn(main.shape, generator=generator).to(main.dtype)
        if "attention_mask" in first:
            length = first["attention_mask"].shape[-1]
            noise["attention_mask"] = torch.ones_like(first["attention_mask"])
            noise["attention_mask"][..., length - length // 4 :] = 0
        return self.batch([first]), self.batch([first, noise])


def fill(
    model: nn.Module, plan: Plan, samples: Samples, keys: list[str], store: Store, batch_size: int, max_bytes: int
) -> None:
    """Compute the entries that are missing or damaged."""
    missing = {key: index for index, key in enumerate(keys) if store.read(key) is None}
    if not missing:
        return
    kept = {name: _narrow(value) for name, value in samples.inputs_of(0).items() if name != plan.main}
    entry_bytes = plan.dtype.itemsize * math.prod(plan.shape) + sum(value.nbytes for value in kept.values())
    store.check_room(len(missing), len(keys), entry_bytes + HEADER_BYTES, max_bytes)
    store.prepare()
    pending = _own_share_first(list(missing))
    progress = tqdm(total=len(pending), desc="Computing frozen states", unit="sample", leave=False)
    with progress:
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]
            progress.update(len(batch))
            batch = [key for key in batch if store.read(key) is None]  # other processes fill, too
            items = [samples.inputs_of(missing[key]) for key in batch]
            for key, item in zip(batch, items):
                samples.check_same(missing[key], key, item)
            if not items:
                continue
            for key, item, states in zip(batch, items, states_at(model, plan.cut, samples.batch(items))):
                others = {name: _narrow(value) for name, value in item.items() if name != plan.main}
                store.write(key, {STATES: states, **others})


def _own_share_first(keys: list[str]) -> list[str]:
    """Let each of several processes, as torchrun starts them, begin at another place."""
    start = len(keys) * int(os.environ.get("RANK", 0)) // max(1, int(os.environ.get("WORLD_SIZE", 1)))
    return keys[start:] + keys[:start]


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    tensor = torch.as_tensor(np.asarray(value))
    # As collators do: numbers in lists have no type of their own.
    is_typed = isinstance(value, np.ndarray) or not tensor.is_floating_point()
    return tensor if is_typed else tensor.to(torch.get_default_dtype())


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """Return masks, which are of 64 bits by custom, in 8; they are widened again when they are read."""
    if tensor.is_floating_point():
        return tensor
    small = tensor.to(torch.int8)
    return small if torch.equal(small.to(tensor.dtype), tensor) else tensor


def _told(shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype]) -> str:
    return ", ".join(f"{name} {shape} of {dtypes[name]}" for name, shape in shapes.items())
