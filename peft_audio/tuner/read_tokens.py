"""What a head that reads the first tokens alone saves: the last layer's output for all other tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..backbones.spec import Backbone
from ..backbones.table import was_checked
from ..upstream.hooks import forward_hooks, has_global_hooks, is_output_capturing
from ..upstream.transformers_models import is_class_of_transformers
from ..utils.around import unwrap_forward, wrap_forward
from ..utils.forward_pass import ForwardPass
from .encoder_layer import EncoderTunerLayer


OUTPUTS = ("output_hidden_states", "output_attentions")


class ReadTokens:
    """Wrappers of a classifier and its encoder that tell the last layer when only the first tokens are read.

    All tokens are computed where hidden states or attentions are asked for, where other hooks might read them, and
    where the encoder runs without the classifier.
    """

    def __init__(self, layer: EncoderTunerLayer, encoder: nn.Module, forward_pass: ForwardPass) -> None:
        self.layer = layer
        self.encoder = encoder
        self.forward_pass = forward_pass

    def install(self, model: nn.Module) -> None:
        """Put the wrappers around the classifier and its encoder."""
        wrap_forward(model, self.around_classifier)
        wrap_forward(self.encoder, self.around_encoder)

    def around_classifier(
        self, forward: Callable[..., Any], model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Run the classifier, which has its own state."""
        is_asked = any(kwargs.get(name, getattr(model.config, name, False)) for name in OUTPUTS)
        self.forward_pass.current.head_reads_first = not (is_asked or self._is_watched())
        return forward(*args, **kwargs)

    def around_encoder(
        self, forward: Callable[..., Any], encoder: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Run the encoder, whose state is within that of the classifier, where that is what calls it."""
        state = self.forward_pass.current
        if state.outer is not None:
            # For the classifier's one call: whoever calls the encoder again reads all of it.
            state.only_first_read, state.outer.head_reads_first = state.outer.head_reads_first, False
        return forward(*args, **kwargs)

    def _is_watched(self) -> bool:
        modules = (self.encoder, *self.encoder.children(), self.layer, self.layer.get_base_layer())
        hooks = [hook for module in modules for hook in forward_hooks(module)]
        return has_global_hooks() or not all(map(is_output_capturing, hooks))


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
    for owner in unwrap_forward(model, ReadTokens):
        owner.layer.set_read_tokens(None)
