"""Which modules an adapter trains whole and saves: the head, what the checkpoint lacked, or what its configuration names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..backbones.spec import Backbone
from ..config import EXACT, EncoderAdapterConfig
from ..heads.weighted_layer_sum import MODULE_NAME
from ..upstream.transformers_models import new_parameters, was_loaded
from .adapter_checks import check_apart
from .quantized import check_not_quantized, is_quantized
from .trained_modules import paths_of, unambiguous


def modules_to_save(model: Any, config: EncoderAdapterConfig, backbone: Backbone, targets: list[str]) -> list[str]:
    """Return the names that `modules_to_save` stands for on this model, in the form in which PEFT finds them.

    What is in no checkpoint, and neither trained nor saved, is warned of: it would have other values after loading.

    Args:
        model: the base model.
        config: the adapter's configuration.
        backbone: the model's places.
        targets: paths of the modules that get a tuner layer.

    Raises:
        ValueError: if there is no such module, or it cannot be trained whole.
    """
    parameter = backbone.spec.layer_weights
    layer_weights = [MODULE_NAME] if parameter is not None and hasattr(model, parameter) else []
    if config.modules_to_save is None:
        names = unambiguous(list(backbone.head), model) + _frame_adapter(model, backbone) + layer_weights
    else:
        names = [MODULE_NAME if name == parameter and layer_weights else name for name in config.modules_to_save]
        _check_names(names, [name for name, _ in model.named_modules()] + layer_weights, model, backbone)
        names = unambiguous(names, model)
        check_apart(names, model, set(targets))
    check_not_quantized(model, names)
    saved = paths_of(names, model)
    left_out = [name for name in _new(model, backbone) if not _is_within(name, saved)]
    if left_out:
        places = dict.fromkeys(name.rpartition(".")[0] or name for name in left_out)
        warnings.warn(
            f"The checkpoint of the base model lacks weights of {', '.join(places)}, which the adapter neither trains nor "
            "saves: after loading they have other random values. Name modules in `modules_to_save`, or save the base model "
            "as it is now and load it from there.",
            stacklevel=2,
        )
    return names


def _check_names(names: list[str], known: list[str], model: nn.Module, backbone: Backbone) -> None:
    plain = [name.removeprefix(EXACT) for name in names]
    missing = [name for name in plain if not any(path == name or path.endswith("." + name) for path in known)]
    if missing:
        raise ValueError(
            f"`modules_to_save` must name modules of {type(model).__name__}, which has none called "
            f"{', '.join(map(repr, missing))}. Its head: {', '.join(map(repr, backbone.head)) or 'none'}."
        )


def _frame_adapter(model: nn.Module, backbone: Backbone) -> list[str]:
    """Return the marked path of convolutions behind the encoder layers, unless they are known to be in the checkpoint."""
    path = backbone.frame_adapter
    if path is None:
        return []
    is_new = any(_is_within(name, [path]) for name in _new(model, backbone))
    return [EXACT + path] if is_new or not was_loaded(model) else []


def _new(model: nn.Module, backbone: Backbone) -> list[str]:
    """Return the names of parameters that no checkpoint has, apart from those of adapters and the weights of layers."""
    adapters = [path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    names = [name for name in new_parameters(model) if name != backbone.spec.layer_weights]
    # Quantization makes new tensors of those that were loaded.
    return [
        name
        for name in names
        if not _is_within(name, adapters)
        and ".modules_to_save." not in name
        and not is_quantized(model.get_parameter(name))
    ]


def _is_within(path: str, others: Iterable[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)
