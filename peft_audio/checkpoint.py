"""Checks on the tensors of an adapter's checkpoint, so that a wrong file never leaves random weights behind."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """Return every tensor of the adapter in `model`, its heads included, by the model's own keys."""
    state_dict = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    tensors = _filter_state_dict_by_key_prefixes(state_dict, prefixes)
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for key in module.adapter_state_dict_load_map(adapter_name).values():
                tensors[f"{name}.{key}"] = state_dict[f"{name}.{key}"]
    return tensors


def check_tensors(model: nn.Module, adapter_name: str, loaded: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless `loaded` has exactly the adapter's tensors, each of its shape.

    Args:
        model: the model with the adapter on it.
        adapter_name: name of the adapter.
        loaded: the tensors about to be loaded, by the model's keys, with or without PEFT's own prefix.
    """
    prefix = "base_model.model."
    expected = {key.removeprefix(prefix): tensor.shape for key, tensor in adapter_tensors(model, adapter_name).items()}
    received = {key.removeprefix(prefix): tensor.shape for key, tensor in loaded.items()}
    problems = [f"missing: {key}" for key in expected if key not in received]
    problems += [f"not of this adapter: {key}" for key in received if key not in expected]
    problems += [
        f"wrong shape: {key} is {tuple(received[key])}, the model needs {tuple(shape)}"
        for key, shape in expected.items()
        if key in received and received[key] != shape
    ]
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"The checkpoint does not fit adapter {adapter_name!r} of this model, nothing was loaded from it:\n  "
            f"{shown}{more}\nWas it made with another configuration, for another base model, or cut short?"
        )
