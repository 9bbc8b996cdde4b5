"""Checks of an adapter's files, so that a wrong file never leaves random weights in the model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any, Optional

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.utils import CONFIG_NAME
from torch import nn

from ..upstream.peft_state_dict import Tensors, adapter_tensors, may_sizes_differ, without_prefix


# What PEFT raises for a file that holds something else; what breaks a rule of a field is a ValueError that names it.
DAMAGED = (
    KeyError,
    TypeError,
    AttributeError,
    UnboundLocalError,
    RecursionError,
    OverflowError,
    UnicodeDecodeError,
    json.JSONDecodeError,
)


def read_weights(source: str, location: dict[str, Any]) -> Tensors:
    """Read the tensors of an adapter.

    Args:
        source: folder or Hub id of the adapter.
        location: `subfolder`, `revision` and the like, as PEFT's loading functions take them.

    Returns:
        The tensors by their names in the file, on the CPU.

    Raises:
        ValueError: if the file is missing, incomplete or damaged.
    """
    try:
        return load_peft_weights(source, device="cpu", **location)
    except Exception as error:
        raise ValueError(
            f"The weights of adapter {source!r} cannot be read ({type(error).__name__}: {error}). The file is missing "
            "or incomplete; copy or download it again."
        ) from error


def read_config(source: str, location: dict[str, Any]) -> PeftConfig:
    """Read the configuration of an adapter.

    Args:
        source: folder or Hub id of the adapter.
        location: `subfolder`, `revision` and the like, as PEFT's loading functions take them.

    Raises:
        ValueError: if there is no configuration, or the file does not hold one of a type that PEFT knows.
    """
    try:
        return PeftConfig.from_pretrained(source, **location)
    except DAMAGED as error:
        raise ValueError(
            f"The configuration of adapter {source!r}, {CONFIG_NAME}, cannot be read ({type(error).__name__}: {error}). "
            "The file is damaged, or its `peft_type` is not one that PEFT knows; copy or download it again."
        ) from error


def check_tensors(model: nn.Module, adapter_name: str, loaded: Tensors) -> None:
    """Check that `loaded` has exactly the adapter's tensors, each of the right shape and kind, all finite.

    Args:
        model: the model with the adapter on it.
        adapter_name: name of the adapter.
        loaded: the tensors about to be loaded, by their names in the model, with or without PEFT's prefix.

    Shapes may differ while an adapter is loaded with `ignore_mismatched_sizes`; who loads it leaves those tensors out.

    Raises:
        ValueError: if they are not; it lists the first ten differences.
    """
    expected, received = without_prefix(adapter_tensors(model, adapter_name)), without_prefix(loaded)
    problems = [f"missing: {key}" for key in expected if key not in received]
    problems += [f"not of this adapter: {key}" for key in received if key not in expected]
    pairs = {key: (received[key], expected[key]) for key in expected if key in received}
    if may_sizes_differ():
        pairs = {key: (old, new) for key, (old, new) in pairs.items() if old.shape == new.shape}
    problems += filter(None, (_mismatch(key, *pair) for key, pair in pairs.items()))
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"The checkpoint does not fit adapter {adapter_name!r} of this model, nothing was loaded from it:\n  "
            f"{shown}{more}\nWas it made with another configuration or for another base model? Was it cut short? Or did "
            "its training diverge?"
        )


def check_saved(saved: Iterable[str], given: Iterable[str], needed: Iterable[str]) -> None:
    """Check that a state dict which somebody gave for saving has the tensors of the adapter's layers.

    Args:
        saved: the names that were found in it.
        given: the names in it; none in processes that save nothing.
        needed: the names of the adapter's tensors.

    Raises:
        ValueError: if it has none of them. If it lacks some, there is a warning.
    """
    given, missing = list(given), sorted(set(needed) - set(saved))
    if not given or not missing:
        return
    told = f"`state_dict` has no tensors by the names {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    if len(missing) == len(set(needed)):
        raise ValueError(
            f"{told}, those of the adapter in model.state_dict(); its own are {', '.join(given[:3])}, ... Leave "
            "`state_dict` out, or give it the names of the model."
        )
    warnings.warn(f"{told}: the adapter is saved without them, and cannot be loaded as it is.", stacklevel=4)


def check_all_used(model: PeftModel, adapter_name: str, loaded: Tensors, source: str) -> None:
    """Check that every tensor of a checkpoint has a place in the model, whatever the type of the adapter.

    Raises:
        ValueError: if not: PEFT leaves such tensors out without a word.
    """
    # "auto" would ask the Hub for the base model's configuration.
    used = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    unused = sorted(set(without_prefix(loaded)) - set(without_prefix(used)) - set(without_prefix(model.state_dict())))
    if unused:
        raise ValueError(
            f"The checkpoint of adapter {source!r} has tensors that a {type(model.peft_config[adapter_name]).__name__} has "
            f"no place for: {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}. Its {CONFIG_NAME} names another "
            "`peft_type` than it was trained with."
        )


def _mismatch(key: str, received: torch.Tensor, expected: torch.Tensor) -> Optional[str]:
    """Return why the one tensor cannot take the other's place, None if it can."""
    if received.shape != expected.shape:
        return f"wrong shape: {key} is {tuple(received.shape)}, the model needs {tuple(expected.shape)}"
    if received.is_floating_point() != expected.is_floating_point():
        return f"wrong type: {key} is {received.dtype}, the model needs {expected.dtype}"
    # In the model's dtype: a number can be finite in the file and too large for a model in half precision.
    if not received.to(expected.dtype).isfinite().all():
        return f"not finite: {key} has numbers that are NaN, or infinite in {expected.dtype}"
    if key.endswith("running_var") and (received < 0).any():
        return f"negative: {key} is a variance, of which the square root is taken"
    return None
