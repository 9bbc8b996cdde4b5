"""The tensors of one adapter in a model, and their names in PEFT's checkpoints.

Relied upon: the prefix that `PeftModel` puts before names, PEFT's functions that select an adapter's tensors by the
start of their names, and the class method of a tuner that turns names in a checkpoint into names in the model. Of torch:
the names that its wrappers (FSDP, checkpointing, compile) give the module inside.

PEFT does not tell tuners that sizes may differ: that is read from its functions that are running, by the name of their
argument, `ignore_mismatched_sizes`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from torch import nn

from .peft_modules import tensor_names, trained_modules
from .registration import tuner_class


PEFT_MODEL_PREFIX = "base_model.model."
"""What the names of a base model's tensors start with in a `PeftModel` and in its checkpoints."""

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
Tensors = dict[str, torch.Tensor]
MAY_DIFFER = "ignore_mismatched_sizes"
LOADING = (set_peft_model_state_dict, PeftModel.from_pretrained)
_ALLOWED: ContextVar[bool] = ContextVar("_ALLOWED", default=False)


def adapter_tensors(model: nn.Module, adapter_name: str) -> Tensors:
    """Return every tensor of the adapter, those of modules trained whole included, by their names in the model."""
    state_dict = {without_wrappers(key): tensor for key, tensor in model.state_dict().items()}
    tensors = {name: state_dict[name] for name in tensors_of_layers(model, list(state_dict), adapter_name)}
    for name, module in trained_modules(model):
        for key in tensor_names(module, adapter_name).values():
            path = without_wrappers(f"{name}.{key}")
            tensors[path] = state_dict[path]
    return tensors


def tensors_of_layers(model: nn.Module, names: list[str], adapter_name: Optional[str] = None) -> dict[str, str]:
    """Return those of the names in a state dict that are of the adapter's layers, of all adapters for None.

    PEFT looks for them by the paths of modules, which have torch's wrappers in them where a state dict may not.

    Returns:
        The names in the state dict by the names without wrappers.
    """
    prefixes = set(map(without_wrappers, _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)))
    return _filter_state_dict_by_key_prefixes({without_wrappers(name): name for name in names}, prefixes)


def without_wrappers(name: str) -> str:
    """Return the name that a module or tensor has without the wrappers of torch (FSDP, compile, checkpointing) around."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def by_own_names(model: Any, state_dict: Tensors) -> Tensors:
    """Return a model's state dict by the model's own names, where its names have another prefix.

    A wrapper puts one in front (`module.`, `_orig_mod.`); the state dict of a `PeftModel`'s base model lacks one.
    """
    own = [name for adapter_name in model.peft_config for name in adapter_tensors(model, adapter_name)]
    if not own or not set(own).isdisjoint(state_dict) or not set(model.state_dict()).isdisjoint(state_dict):
        return state_dict
    given = {without_wrappers(name): tensor for name, tensor in state_dict.items()}
    for name, key in ((name, key) for name in own for key in given):
        if key.endswith(f".{name}") or key == name:
            prefix = key.removesuffix(name)
            return {other.removeprefix(prefix): tensor for other, tensor in given.items()}
        if name.endswith(f".{key}"):
            return {name.removesuffix(key) + other: tensor for other, tensor in given.items()}
    return state_dict


def without_prefix(tensors: Tensors) -> Tensors:
    """Return the tensors by their names in the base model, with or without PEFT's prefix and torch's wrappers."""
    return {without_wrappers(key).removeprefix(PEFT_MODEL_PREFIX): tensor for key, tensor in tensors.items()}


def named_as_in_model(model: nn.Module, config: PeftConfig, adapter_name: str, tensors: Tensors) -> Tensors:
    """Return the tensors of a checkpoint by their names in `model`, which has the adapter on it.

    Raises:
        ValueError: if the tuner refuses the tensors.
    """
    named = without_prefix(tensors)
    for name, module in trained_modules(model):
        for stored, own in tensor_names(module, adapter_name).items():
            if f"{name}.{stored}" in named:
                named[f"{name}.{own}"] = named.pop(f"{name}.{stored}")
    return tuner_class(config)._remap_adapter_state_dict_for_load(model, config, adapter_name, named)


@contextmanager
def allowing_other_sizes(allowed: bool) -> Iterator[None]:
    """Within, `may_sizes_differ` is True if `allowed`."""
    token = _ALLOWED.set(allowed or _ALLOWED.get())
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def may_sizes_differ() -> bool:
    """Whether what is loading an adapter was told to leave out tensors of other sizes."""
    if _ALLOWED.get():
        return True
    codes = {inspect.unwrap(getattr(function, "__func__", function)).__code__ for function in LOADING}
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            arguments = {**frame.f_locals.get("kwargs", {}), **frame.f_locals}
            if arguments.get(MAY_DIFFER):
                return True
        frame = frame.f_back
    return False
