"""Quantized weights, which cannot be trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .trained_modules import paths_of


# Packages whose quantized tensors may pass for floating-point ones.
PACKAGES = ("bitsandbytes.", "torchao.", "optimum.quanto.")


def is_quantized(parameter: nn.Parameter) -> bool:
    """Whether the parameter holds quantized values."""
    return not parameter.is_floating_point() or type(parameter).__module__.startswith(PACKAGES)


def check_not_quantized(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ValueError if a module of these names, which is to be trained, has quantized weights."""
    names = list(names)
    for path in paths_of(names, model):
        if any(map(is_quantized, model.get_submodule(path).parameters())):
            raise ValueError(
                f"`modules_to_save` has {path!r} trained, but its weights are quantized, which cannot be. Load the base "
                f"model with BitsAndBytesConfig(llm_int8_skip_modules={names}), in other quantization configurations "
                f"modules_to_not_convert={names}; or leave the head as it is with modules_to_save=[]."
            )
