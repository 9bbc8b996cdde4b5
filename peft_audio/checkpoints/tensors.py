"""Checks on the tensors of an adapter's checkpoint, so that a wrong file never leaves random weights behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Optional

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils import CONFIG_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import load_peft_weights
from torch import nn


def read_weights(source: str, location: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read the tensors of the adapter in the folder or Hub repository `source`.

    Raises:
        ValueError: if they cannot be read.
    """
    try:
        return load_peft_weights(source, device="cpu", **location)
    except Exception as error:
        raise ValueError(
            f"The weights of adapter {source!r} cannot be read ({type(error).__name__}: {error}). The file is missing "
            "or incomplete; copy or download it again."
        ) from error


def read_config(source: str, location: dict[str, Any]) -> PeftConfig:
    """Read an adapter's configuration.

    Raises:
        ValueError: if there is none, or the file holds none.
    """
    try:
        return PeftConfig.from_pretrained(source, **location)
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The configuration of adapter {source!r}, {CONFIG_NAME}, cannot be read ({type(error).__name__}: {error}). "
            "It is no configuration of a type that PEFT knows, or damaged; copy or download it again."
        ) from error


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
    """Raise ValueError unless `loaded` has exactly the adapter's tensors, each of its shape and kind, all finite.

    Args:
        model: the model with the adapter on it.
        adapter_name: name of the adapter.
        loaded: the tensors about to be loaded, by the model's keys, with or without PEFT's own prefix.
    """
    prefix = "base_model.model."
    expected = {key.removeprefix(prefix): tensor for key, tensor in adapter_tensors(model, adapter_name).items()}
    received = {key.removeprefix(prefix): tensor for key, tensor in loaded.items()}
    problems = [f"missing: {key}" for key in expected if key not in received]
    problems += [f"not of this adapter: {key}" for key in received if key not in expected]
    problems += filter(None, (_misfit(key, received[key], expected[key]) for key in expected if key in received))
    refuse(problems, adapter_name)


def refuse(problems: Iterable[str], adapter_name: str) -> None:
    """Raise ValueError if there are problems with a checkpoint."""
    problems = list(problems)
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"The checkpoint does not fit adapter {adapter_name!r} of this model, nothing was loaded from it:\n  "
            f"{shown}{more}\nWas it made with another configuration, for another base model, cut short, or did its "
            "training diverge?"
        )


def _misfit(key: str, received: torch.Tensor, expected: torch.Tensor) -> Optional[str]:
    """Return why the one tensor cannot take the other's place, None if it can."""
    if received.shape != expected.shape:
        return f"wrong shape: {key} is {tuple(received.shape)}, the model needs {tuple(expected.shape)}"
    if received.is_floating_point() != expected.is_floating_point():
        return f"wrong type: {key} is {received.dtype}, the model needs {expected.dtype}"
    # As it will be in the model: a number can be finite in the file and too large for a model in half precision.
    if not received.to(expected.dtype).isfinite().all():
        return f"not finite: {key} has numbers that are NaN, or infinite in {expected.dtype}"
    return None
