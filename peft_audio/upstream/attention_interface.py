"""transformers' table of attention functions, and the place where an attention module looks its function up."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn
from transformers import AttentionInterface


# The names that transformers' modeling files have for their table of functions and for their own function in it.
TABLE, OWN_FUNCTION = "ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"


def register_attention_function(name: str, function: Callable) -> None:
    """Let attention modules find `function` where their configuration says `_attn_implementation = name`."""
    AttentionInterface.register(name, function)


def attention_function(attention: nn.Module, implementation: str) -> Callable:
    """Return the function that an attention module calls for this `_attn_implementation`, "eager" for its own.

    Raises:
        TypeError: if the file that defines the module has no such table.
    """
    names = inspect.unwrap(type(attention).forward).__globals__
    if TABLE not in names:
        raise TypeError(
            f"{type(attention).__name__} calls no function of transformers' AttentionInterface, which prompts as keys "
            "and values need. Leave `keys_and_values` out of the EncoderSpec of this model type."
        )
    return names[TABLE].get_interface(implementation, names.get(OWN_FUNCTION))
