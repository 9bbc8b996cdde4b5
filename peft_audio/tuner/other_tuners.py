"""Adapters of PEFT's own types on a model that has adapters of this package: PEFT does not look inside tuner layers.

LoRA on queries and values would find none of them there, or only those of layers without an adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn

from ..upstream.wrapping import INJECT_ADAPTER, bind, replace_method
from .model import EncoderTuner
from .tuner_layer import HookedTunerLayer


WAY_OUT = (
    "Put the other adapter on first: inject_adapter_in_model(other_config, model, 'other'), then get_peft_model(model, "
    "config)."
)


def wrap_injection() -> None:
    """Wrap the method of PEFT's tuners that puts an adapter on a model. Calling it again changes nothing."""
    replace_method(INJECT_ADAPTER, _telling_what_is_left_out)


def _telling_what_is_left_out(original: Callable[..., None]) -> Callable[..., None]:
    def inject_adapter(self: BaseTuner, *args: Any, **kwargs: Any) -> None:
        arguments = bind(original, self, *args, **kwargs).arguments
        model, adapter_name = arguments["model"], arguments["adapter_name"]
        inside = {} if isinstance(self, EncoderTuner) else dict(_modules_inside(model))
        if not inside:
            return original(self, *args, **kwargs)
        methods = {layer.prefix.rstrip("_") for layer in model.modules() if isinstance(layer, HookedTunerLayer)}
        place = f"the encoder layers that have adapters of another method ({', '.join(methods)})"
        # PEFT replaces the word by the names that it finds.
        wants_all = getattr(self.peft_config[adapter_name], "target_modules", None) == INCLUDE_LINEAR_LAYERS_SHORTHAND
        try:
            original(self, *args, **kwargs)
        except ValueError as error:
            raise type(error)(f"{error} PEFT finds no modules inside {place}. {WAY_OUT}") from error
        config = self.peft_config[adapter_name]
        if wants_all:
            left_out = [name for name, module in inside.items() if isinstance(module, nn.Linear)]
        else:
            left_out = [name for name in inside if self._check_target_module_exists(config, name) is True]
        if left_out:
            warnings.warn(
                f"Adapter {adapter_name!r} is not on {', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''}: PEFT "
                f"finds no modules inside {place}. {WAY_OUT}",
                stacklevel=2,
            )

    return inject_adapter


def _modules_inside(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside of tuner layers with the paths that they would have without these."""
    for path, layer in model.named_modules():
        if isinstance(layer, HookedTunerLayer):
            yield from ((f"{path}.{name}", inner) for name, inner in layer.base_layer.named_modules() if name)
