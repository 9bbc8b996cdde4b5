"""What runs around each call of a model with adapters and of its encoder: it gives the call a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from torch import nn

from ..backbones.spec import Backbone
from ..upstream.hooks import remove_hooks
from ..utils.around import owners_of_wrappers, unwrap_forward, wrap_forward
from ..utils.forward_pass import ForwardPass, PassState
from .mixed_batch import check_size, run_mixed


class ModelCalls:
    """Wrappers around the forward passes of the model and of its encoder, and a hook before the model."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        self.forward_pass = forward_pass

    def claim(self, model: nn.Module, args: tuple) -> None:
        """Forward pre-hook of the model, the first: what `adapter_names` asked for is not for calls by other hooks."""
        claims = self.forward_pass.claims
        if claims or self.forward_pass.request is not None:
            claims.append(self.forward_pass.request)
            self.forward_pass.request = None

    def run_model(self, forward: Callable[..., Any], model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the model on a batch of its own, with what `adapter_names` asked for."""
        claims = self.forward_pass.claims
        request = claims.pop() if claims else self.forward_pass.request
        if request is None:
            return self.forward_pass.run(PassState(), forward, *args, **kwargs)
        try:
            return run_mixed(self.forward_pass, request, forward, args, kwargs)
        finally:
            self.forward_pass.request = request  # for the next call of the model

    def run_encoder(self, forward: Callable[..., Any], encoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the encoder, for the model or for whoever calls it alone.

        `generate` of an encoder-decoder does, with what `adapter_names` asked for.
        """
        request, outer = self.forward_pass.request, self.forward_pass.current
        if request is not None:
            return run_mixed(self.forward_pass, request, forward, args, kwargs)
        if outer.samples is not None:
            check_size(outer.samples, args, kwargs)
        return self.forward_pass.run(PassState(outer, outer.samples), forward, *args, **kwargs)


def install_model_calls(model: Any, backbone: Backbone) -> None:
    """Put `ModelCalls` around a model and its encoder, unless it is there."""
    if model_calls(model) is not None:
        return
    calls = ModelCalls(ForwardPass.of(model))
    model.register_forward_pre_hook(calls.claim, prepend=True)
    wrap_forward(model, calls.run_model, outermost=True)
    encoders: list[Any] = [backbone.encoder]
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        encoders.append(model.get_encoder())
    for encoder in {id(encoder): encoder for encoder in encoders if encoder is not model}.values():
        wrap_forward(encoder, calls.run_encoder, outermost=True)


def model_calls(model: nn.Module) -> Optional[ModelCalls]:
    """Return the one that is installed on the model."""
    return next((owner for owner in owners_of_wrappers(model) if isinstance(owner, ModelCalls)), None)


def remove_model_calls(model: nn.Module) -> None:
    """Undo `install_model_calls`."""
    remove_hooks(model, ModelCalls)
    unwrap_forward(model, ModelCalls)
