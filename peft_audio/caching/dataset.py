"""A data set of cached states, and how it is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Union

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..backbones.table import resolve
from ..utils.undisturbed import undisturbed
from .calls import trace
from .checks import check_deterministic, check_replay, states_at
from .fill import fill
from .frozen_part import FrozenPart
from .plan import Plan, make_plan
from .replay import Replay, check_options
from .samples import Samples
from .side_split import find_side_split
from .split_point import find_split_point
from .store import STATES, Store, digest_of, settings_of


MAX_BYTES = 50 * 10**9


def cache_frozen(
    model: nn.Module,
    dataset: Any,
    cache_dir: Union[str, os.PathLike],
    batch_size: int = 8,
    max_bytes: int = MAX_BYTES,
    deterministic: bool = False,
) -> CachedStates:
    """Compute once what the frozen part of a model returns for each sample, keep it on disk, and train from there.

    The frozen part is all that runs before the first encoder layer or head that trains. Beside a side network no encoder
    layer trains: what the layers give that it reads is kept, in float16 (in bfloat16 where a number is too large), and no
    layer runs again. See `CachedStates` on its use.

    Args:
        model: classifier of a supported backbone, plain or with adapters, as it will be trained.
        dataset: its samples are dictionaries with the model's main input, e.g. `input_values`, and other columns.
        cache_dir: folder for the states. Several models and processes may share it.
        batch_size: number of samples that are computed together.
        max_bytes: limit for the folder.
        deterministic: accept dropout and SpecAugment in the frozen part. The cached states are without.

    Raises:
        ValueError: the model has a decoder, no part is frozen, it is random in training mode, the samples are not all of
            one shape and always the same, the states do not fit in, or those in the folder are not what the model computes.
        OSError: the folder cannot be written to. The entries in it can still be used.
        RuntimeError: the frozen part is sharded (FSDP, ZeRO-3).

    Examples:
        >>> config = ASTConfig(hidden_size=12, num_hidden_layers=2, max_length=32)
        >>> model = ASTForAudioClassification(config)
        >>> model = get_peft_model(model, peft_audio.IPETConfig(layers_to_transform=[1]))
        >>> clips = [{"input_values": torch.randn(32, 128), "labels": index % 2} for index in range(4)]
        >>> states = peft_audio.cache_frozen(model, clips, "frozen")
        >>> states[0]["input_values"].shape  # what enters layer 1: 1, tokens, hidden size
        torch.Size([1, 26, 12])
    """
    return _cache(model, dataset, Path(cache_dir), batch_size, max_bytes, deterministic)


def _cache(
    model: nn.Module, dataset: Any, folder: Path, batch_size: int, max_bytes: int, deterministic: bool
) -> CachedStates:
    base = _base_model(model)
    check_options(base, {}, ValueError)
    samples = Samples(base, dataset)
    with torch.no_grad(), undisturbed(model):
        model.eval()
        one, two = samples.probe()
        calls = trace(base, one)
        split_point = find_side_split(base, resolve(base), calls) or find_split_point(base, calls)
        plan = make_plan(base, split_point, samples.main, one, two)
        expected = states_at(base, split_point, two)
        if not deterministic:
            check_deterministic(model.train, base, split_point, one)
            model.eval()
        digest = digest_of(base, split_point.after)
        store = Store(folder, settings_of(base, plan.name, plan.dtype, digest))
        check_replay(base, plan, two, expected)
        keys, columns = samples.read_all()
        fill(base, plan, samples, keys, store, batch_size, max_bytes)
        frozen = FrozenPart(base, split_point, digest, two, expected, deterministic)
    replay = Replay.on(base)
    if replay is None or replay.identity != store.folder.name or not replay.frozen.is_unchanged(base):
        replay = Replay(store.folder.name, frozen)
    replay.install(base, plan)
    return CachedStates(store, plan, replay, keys, columns, samples)


def _base_model(model: Any) -> PreTrainedModel:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = resolve(base)  # before anything is asked of a model of another kind
    if backbone.decoder is not None:
        raise ValueError(
            f"cache_frozen takes a classifier or an encoder, got a {type(base).__name__}, whose decoder reads transcripts of "
            "any length beside the clip. Train it from the clips."
        )
    return base


class CachedStates(Dataset):
    """What `cache_frozen` returns: the samples of a data set, with states in place of the main input.

    States have one dimension more than a raw sample, by leading dimensions of size 1 if need be. From this the model
    tells them apart, so it takes both: batches of states run from the first module that trains on, batches of raw input
    as always. Losses and gradients are those of training from the input, but for rounding; of a side network to 1e-3.
    Columns that are no inputs of the model are kept in memory.

    For a side network the states are what layer after layer gives, in a row. Where the head reads the first tokens alone and
    no block mixes tokens, those are all that is kept. What is to be written is logged first; `every_nth_layer` of
    `SideNetworkConfig` makes it less.

    A second call of `cache_frozen` reads what is there, and continues where a killed one stopped. Several processes may
    use one folder. No entry is ever deleted. Subfolders that are no longer used can be removed by hand; their
    `settings.json` says which model they are for.

    The model raises RuntimeError for cached states when something in the frozen part trains, has changed since, or has
    been sharded. Changes that torch does not count (through `Tensor.data`, NumPy, hooks, attributes) are noticed by
    reading the frozen part again: up to 4 MB at every batch, more at the first batch, at every change between training
    and evaluation mode, and so often that it takes 3% of the time. So they go unnoticed for some 30 times as long as
    reading takes, 1 to 2 seconds for 90 million parameters.

    Raises:
        RuntimeError: when asked for a sample after `cache_frozen` was called for another split point or other weights.
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
        self._dtype = plan.dtype
        self._dtypes = samples.dtypes

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._replay.is_replaced:
            raise RuntimeError(
                "These states are for another split point or other weights than the model has now: cache_frozen was "
                "called again since. Use the data set that it returned."
            )
        entry = self.store.read(self.keys[index])
        if entry is None:
            raise OSError(
                f"{self.store.path(self.keys[index])}: the states of sample {index} have been damaged or removed since "
                "they were computed. cache_frozen computes them again."
            )
        inputs = {name: value.to(self._dtypes[name]) for name, value in entry.items() if name != STATES}
        inputs[self._main] = entry[STATES].to(self._dtype).reshape(self._shape)
        return {name: inputs.get(name, value) for name, value in self.columns[index].items()}
