"""Computing the states that are not on disk yet."""

from __future__ import annotations

import logging
import math
import os

import torch
from torch import nn
from tqdm.auto import tqdm

from .checks import is_same_sample, states_at
from .plan import Plan
from .samples import Samples
from .store import STATES, Store, autocast_dtype, gigabytes


logger = logging.getLogger(__name__)
HEADER_BYTES = 512  # of an entry's file, about


def fill(
    model: nn.Module, plan: Plan, samples: Samples, keys: list[str], store: Store, batch_size: int, max_bytes: int
) -> None:
    """Compute the entries that are missing or damaged.

    Raises:
        ValueError: they do not fit in, a sample has changed since it was read, or an entry is not what the model
            computes.
        OSError: the folder cannot be written to.
    """
    missing = {key: index for index, key in enumerate(keys) if store.read(key) is None}
    _check_found(model, plan, samples, [index for index, key in enumerate(keys) if key not in missing], keys, store)
    if not missing:
        return
    kept = _other_inputs(samples.inputs_of(0), plan)
    itemsize = torch.half.itemsize if plan.parts else plan.dtype.itemsize
    entry_bytes = itemsize * math.prod(plan.shape) + sum(value.nbytes for value in kept.values()) + HEADER_BYTES
    store.check_room(len(missing), len(keys), entry_bytes, max_bytes)
    if plan.parts:
        size, count = gigabytes(len(missing) * entry_bytes), len(missing)
        logger.warning("What the encoder layers give for %d samples takes %s in %s.", count, size, store.folder)
    store.prepare()
    pending = _own_share_first(list(missing))
    with tqdm(total=len(pending), desc="Computing frozen states", unit="sample", leave=False) as progress:
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]
            progress.update(len(batch))
            # Other processes may have computed some meanwhile.
            indices = {key: missing[key] for key in batch if store.read(key) is None}
            _write_states(model, plan, samples, indices, store)


def _check_found(
    model: nn.Module, plan: Plan, samples: Samples, found: list[int], keys: list[str], store: Store
) -> None:
    """Check by one sample that the entries on disk are by this model, which may have hooks that no setting tells of."""
    entry = store.read(keys[found[0]]) if found else None
    if entry is None:
        return
    computed = states_at(model, plan.split_point, samples.batch([samples.inputs_of(found[0])]))[0].cpu()
    if not is_same_sample(entry[STATES], computed, autocast_dtype(model)):
        raise ValueError(
            f"{store.path(keys[found[0]])}: the states of sample {found[0]} are not those that {type(model).__name__} "
            "computes now, with the same weights and configuration: a hook, a function, a module or an attribute of one "
            "differs. Undo that, or name another folder."
        )


def _write_states(model: nn.Module, plan: Plan, samples: Samples, indices: dict[str, int], store: Store) -> None:
    items = [samples.inputs_of(index) for index in indices.values()]
    for (key, index), item in zip(indices.items(), items):
        samples.check_same(index, key, item)
    if not items:
        return
    for key, item, states in zip(indices, items, states_at(model, plan.split_point, samples.batch(items))):
        store.write(key, {STATES: _halved(states) if plan.parts else states, **_other_inputs(item, plan)})


def _halved(states: torch.Tensor) -> torch.Tensor:
    """Return the outputs of many layers in float16, which is closest, or in bfloat16 where a number is too large for it."""
    half = states.half()
    return half if half.isfinite().all() else states.bfloat16()


def _other_inputs(item: dict[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    return {name: _narrow(value) for name, value in item.items() if name != plan.main}


def _own_share_first(keys: list[str]) -> list[str]:
    """Let each of several processes, as torchrun starts them, begin at another place."""
    start = len(keys) * int(os.environ.get("RANK", 0)) // max(1, int(os.environ.get("WORLD_SIZE", 1)))
    return keys[start:] + keys[:start]


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """Return masks, which are of 64 bits by custom, in 8 bits. They are widened again when they are read."""
    if tensor.is_floating_point():
        return tensor
    small = tensor.to(torch.int8)
    return small if torch.equal(small.to(tensor.dtype), tensor) else tensor
