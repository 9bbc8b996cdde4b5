"""What a head that reads special tokens alone saves: the last layer's output for all other tokens."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as global_hooks

from .encoder_spec import Backbone
from .layer import EncoderTunerLayer


OUTPUTS = ("output_hidden_states", "output_attentions")
# Where transformers' own hooks for these outputs come from, which stay on the layers once they were asked for.
CAPTURING = "transformers.utils.output_capturing"


class ReadTokens:
    """Two hooks of a classifier: before it runs, they tell its last layer which tokens the head reads.

    Nobody sees that the others are missing: where hidden states are asked for, or hooks might read them, nothing is told.
    """

    def __init__(self, layer: EncoderTunerLayer, trunk: nn.Module, num_tokens: int) -> None:
        self.layer = layer
        self.trunk = trunk
        self.num_tokens = num_tokens

    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        asked = any(kwargs.get(name, getattr(model.config, name, False)) for name in OUTPUTS)
        self.layer.read_only(None if asked or self._is_watched() else self.num_tokens)

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.layer.read_only(None)

    def _is_watched(self) -> bool:
        modules = (self.trunk, *self.trunk.children(), self.layer, self.layer.get_base_layer())
        hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        return has_global_hooks() or any(getattr(hook, "__module__", None) != CAPTURING for hook in hooks)


def has_global_hooks() -> bool:
    """Whether there are hooks on all modules (`torch.nn.modules.module.register_module_forward_hook`)."""
    return bool(global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)


def tell_read_tokens(model: nn.Module, backbone: Backbone) -> None:
    """Put `ReadTokens` on a classifier whose last layer has adapters, unless it has it or its head reads more."""
    ignore_read_tokens(model)
    last = model.get_submodule(backbone.layer_names[-1])
    if backbone.spec.read_tokens is None or not backbone.head or not isinstance(last, EncoderTunerLayer):
        return
    reads = ReadTokens(last, backbone.trunk, backbone.spec.read_tokens)
    model.register_forward_pre_hook(reads.enter, with_kwargs=True)
    model.register_forward_hook(reads.leave, always_call=True)


def ignore_read_tokens(model: nn.Module) -> None:
    """Undo `tell_read_tokens`."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), ReadTokens)]:
            del hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
            model._forward_hooks_always_called.pop(key, None)
