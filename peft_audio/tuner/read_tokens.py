"""What a head that reads the first tokens alone saves: the last layer's output for all other tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbones.spec import Backbone
from ..backbones.table import was_checked
from ..upstream.hooks import forward_hooks, has_global_hooks, is_output_capturing, remove_hooks
from ..upstream.transformers_models import is_class_of_transformers
from ..utils.forward_pass import ForwardPass
from .encoder_layer import EncoderTunerLayer


OUTPUTS = ("output_hidden_states", "output_attentions")


class ReadTokens:
    """Hooks of a classifier and its encoder that tell the last layer when only the first tokens are read.

    All tokens are computed where hidden states or attentions are asked for, where other hooks might read them, and
    where the encoder runs without the classifier, also after an interrupted call of the classifier.
    """

    def __init__(self, layer: EncoderTunerLayer, encoder: nn.Module, forward_pass: ForwardPass) -> None:
        self.layer = layer
        self.encoder = encoder
        self.forward_pass = forward_pass

    def install(self, model: nn.Module) -> None:
        """Put the hooks on the classifier and its encoder."""
        model.register_forward_pre_hook(self.enter, with_kwargs=True)
        self.encoder.register_forward_pre_hook(self.enter_encoder)
        model.register_forward_hook(self.leave, always_call=True)

    def enter(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the classifier."""
        is_asked = any(kwargs.get(name, getattr(model.config, name, False)) for name in OUTPUTS)
        self.forward_pass.head_reads_first = not (is_asked or self._is_watched())

    def enter_encoder(self, encoder: nn.Module, args: tuple) -> None:
        """Forward pre-hook of the encoder."""
        self.forward_pass.only_first_read = self.forward_pass.head_reads_first
        self.forward_pass.head_reads_first = False

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of the classifier, called after errors too."""
        self.forward_pass.head_reads_first = self.forward_pass.only_first_read = False

    def _is_watched(self) -> bool:
        modules = (self.encoder, *self.encoder.children(), self.layer, self.layer.get_base_layer())
        hooks = [hook for module in modules for hook in forward_hooks(module)]
        others = [hook for hook in hooks if getattr(hook, "__self__", None) is not self]
        return has_global_hooks() or not all(map(is_output_capturing, others))


def install_read_tokens(model: nn.Module, backbone: Backbone) -> None:
    """Put `ReadTokens` on a classifier whose last layer has adapters, where its head reads the first tokens alone.

    A user's own class may read other tokens than transformers' classes of the same type do, so it gets all of them,
    unless the user's own row was checked on it.
    """
    remove_read_tokens(model)
    last, num_tokens = model.get_submodule(backbone.layer_names[-1]), backbone.spec.read_tokens
    is_known = is_class_of_transformers(model) or was_checked(backbone)
    if num_tokens is not None and is_known and backbone.head and isinstance(last, EncoderTunerLayer):
        last.set_read_tokens(num_tokens)
        ReadTokens(last, backbone.encoder, last.forward_pass).install(model)


def remove_read_tokens(model: nn.Module) -> None:
    """Undo `install_read_tokens`."""
    for owner in remove_hooks(model, ReadTokens):
        owner.layer.set_read_tokens(None)
