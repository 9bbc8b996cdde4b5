"""Hooks of torch modules: whose they are, and removing those of one owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Union

from torch import nn
from torch.nn.modules import module as _torch_module

from ..utils.around import belongs_to


HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Where the hooks are defined by which transformers collects hidden states and attentions.
CAPTURING = "transformers.utils.output_capturing"
AFTER_FORWARD = HOOKS[1:]
# Where torch notes, by the same keys, which of these hooks take keyword arguments or run after errors too.
NOTES = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def forward_hooks(module: nn.Module) -> list[Any]:
    """Return the functions that are hooks before or after this module's forward pass."""
    return [hook for name in HOOKS for hook in getattr(module, name).values()]


def owners_of_hooks(module: nn.Module, names: tuple[str, ...] = HOOKS) -> Iterator[Any]:
    """Yield the object of every hook that is a bound method."""
    for name in names:
        for hook in getattr(module, name).values():
            if hasattr(hook, "__self__"):
                yield hook.__self__


def remove_hooks(model: nn.Module, owner: Union[type, object]) -> list[Any]:
    """Remove every hook, in the model and its submodules, that is a method of `owner`, an object or a class.

    Returns:
        The objects whose hooks were removed, one entry a hook.
    """
    removed = []
    for module in model.modules():
        for name in HOOKS:
            hooks = getattr(module, name)
            for key, hook in list(hooks.items()):
                if belongs_to(hook, owner):
                    removed.append(hook.__self__)
                    del hooks[key]
                    for note in NOTES:
                        getattr(module, note).pop(key, None)
    return removed


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules (`torch.nn.modules.module.register_module_forward_hook`)."""
    return bool(_torch_module._global_forward_hooks or _torch_module._global_forward_pre_hooks)


def is_output_capturing(hook: Any) -> bool:
    """Whether a hook is one of transformers' own, which stay on layers once hidden states or attentions were asked for."""
    return getattr(hook, "__module__", None) == CAPTURING
