"""Disabling and enabling all adapters of a plain model: its heads and labels follow.

transformers' `disable_adapters` reaches the heads that are trained whole, its `enable_adapters` forgets them.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from ..checkpoints.adapter_labels import AdapterLabels
from ..upstream.peft_modules import trained_modules
from ..upstream.wrapping import DISABLE_ADAPTERS, ENABLE_ADAPTERS, replace_method
from .tuner_layer import HookedTunerLayer


def wrap_switching() -> None:
    """Wrap the two methods of transformers' models. Calling it again changes nothing."""
    replace_method(DISABLE_ADAPTERS, _with_heads_and_labels)
    replace_method(ENABLE_ADAPTERS, _with_heads_and_labels)


def _with_heads_and_labels(original: Callable[[PreTrainedModel], None]) -> Callable[[PreTrainedModel], None]:
    def switch(self: PreTrainedModel) -> None:
        original(self)
        layers = [module for module in self.modules() if isinstance(module, HookedTunerLayer)]
        if not layers:
            return
        enabled = not layers[0].disable_adapters
        for _, head in trained_modules(self):
            head.enable_adapters(enabled)
        AdapterLabels.of(self).activate(layers[0].active_adapters if enabled else [])

    return switch
