"""What a head that reads special tokens alone saves: the last layer's output for all other tokens."""

from __future__ import annotations

from typing import Any, Optional

from torch import nn

from ..backbones.spec import Backbone
from ..upstream.hooks import forward_hooks, has_global_hooks, remove_hooks
from ..utils.per_thread import PerThread
from .encoder_layer import EncoderTunerLayer


OUTPUTS = ("output_hidden_states", "output_attentions")
# Where transformers' own hooks for these outputs come from, which stay on the layers once they were asked for.
CAPTURING = "transformers.utils.output_capturing"


class Told(PerThread):
    """How many tokens the head of a running classifier reads, until its trunk runs; None for all."""

    def __init__(self) -> None:
        self.num_tokens: Optional[int] = None


class ReadTokens:
    """Hooks of a classifier and its trunk: they tell the last layer which tokens the head reads.

    Nobody sees that the others are missing: where hidden states are asked for, or hooks might read them, nothing is told,
    nor where the trunk runs by itself, also when the call before was interrupted.
    """

    def __init__(self, layer: EncoderTunerLayer, trunk: nn.Module, num_tokens: int) -> None:
        self.layer = layer
        self.trunk = trunk
        self.num_tokens = num_tokens
        self.told = Told()

    def attach(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.enter, with_kwargs=True)
        self.trunk.register_forward_pre_hook(self.enter_trunk)
        model.register_forward_hook(self.leave, always_call=True)

    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        asked = any(kwargs.get(name, getattr(model.config, name, False)) for name in OUTPUTS)
        self.told.num_tokens = None if asked or self._is_watched() else self.num_tokens

    def enter_trunk(self, trunk: nn.Module, args: tuple) -> None:
        self.layer.read_only(self.told.num_tokens)
        self.told.num_tokens = None

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.told.num_tokens = None
        self.layer.read_only(None)

    def _is_watched(self) -> bool:
        modules = (self.trunk, *self.trunk.children(), self.layer, self.layer.get_base_layer())
        hooks = [hook for module in modules for hook in forward_hooks(module)]
        others = [hook for hook in hooks if getattr(hook, "__self__", None) is not self]
        return has_global_hooks() or any(getattr(hook, "__module__", None) != CAPTURING for hook in others)


def tell_read_tokens(model: nn.Module, backbone: Backbone) -> None:
    """Put `ReadTokens` on a classifier whose last layer has adapters, unless it has it or its head reads more."""
    ignore_read_tokens(model)
    last = model.get_submodule(backbone.layer_names[-1])
    if backbone.spec.read_tokens is None or not backbone.head or not isinstance(last, EncoderTunerLayer):
        return
    ReadTokens(last, backbone.trunk, backbone.spec.read_tokens).attach(model)


def ignore_read_tokens(model: nn.Module) -> None:
    """Undo `tell_read_tokens`."""
    remove_hooks(model, ReadTokens)
