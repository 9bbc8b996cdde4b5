"""Loading an adapter into a plain transformers model, with `model.load_adapter` or an Auto class.

transformers finds the place of each tensor of a checkpoint by the names of the model's modules. The names in a
checkpoint of this package do not depend on those (`layers.N.<part>.<tensor>`). So `load_adapter` is wrapped: the
wrapper renames and checks the tensors. Adapters of other tuner types are loaded exactly as before.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Optional

import torch
from peft import PeftConfig, PeftModel, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from ..backbones.table import resolve
from ..config import EncoderAdapterConfig, method_fields
from ..upstream.peft_modules import freeze_trained_modules
from ..upstream.peft_state_dict import Tensors, allowing_other_sizes, may_sizes_differ, named_as_in_model
from ..upstream.registration import tuner_class
from ..upstream.transformers_loading import (
    LOCATION,
    adapter_location,
    is_called_by_from_pretrained,
    may_sizes_differ_in,
)
from ..upstream.wrapping import LOAD_ADAPTER, LOAD_PEFT_ADAPTER, bind, replace_method
from .adapter_labels import AdapterLabels
from .base_settings import with_labels_that_fit
from .local_copy import local_copy
from .restoring import restore_labels, restore_settings
from .tensors import read_config, read_weights


def wrap_loading() -> None:
    """Wrap `load_adapter` of transformers' models. Calling it again changes nothing."""
    replace_method(LOAD_ADAPTER, _renaming_tensors)
    replace_method(LOAD_PEFT_ADAPTER, _comparing_configurations)


def _renaming_tensors(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_adapter(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        bound = bind(original, self, *args, **kwargs)
        config = bound.arguments.get("peft_config") or _read_config(bound.arguments)
        if not isinstance(config, EncoderAdapterConfig):
            return original(self, *args, **kwargs)
        bound.arguments["peft_config"] = config
        with allowing_other_sizes(may_sizes_differ_in(bound.arguments)):
            _prepare_arguments(self, config, bound.arguments)
            info = original(*bound.args, **bound.kwargs)
        if not bound.arguments.get("is_trainable"):
            # transformers freezes an adapter that is loaded for inference, but not the head that comes with it.
            freeze_trained_modules(self, bound.arguments.get("adapter_name") or "default")
        return info

    return load_adapter


def _prepare_arguments(model: PreTrainedModel, config: EncoderAdapterConfig, arguments: dict[str, Any]) -> None:
    """Put the adapter's tensors among the arguments of `load_adapter`, by the names that they have in the model."""
    adapter_name = arguments.get("adapter_name") or "default"
    tensors = _tensors(arguments)
    if is_called_by_from_pretrained(arguments):
        restore_settings(model, config.base_settings or {})
        restore_labels(model, config)
    if adapter_name not in getattr(model, "peft_config", {}):  # else transformers refuses the name
        arguments["adapter_state_dict"] = renamed(model, config, adapter_name, tensors)


def _comparing_configurations(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(config, EncoderAdapterConfig) for config in self.peft_config.values()):
            return original(self, model_id, adapter_name, *args, **kwargs)
        location = {name: kwargs.pop(name) for name in LOCATION if name in kwargs}
        folder, location = local_copy(os.fspath(model_id), location)
        loaded = read_config(folder, location)
        present = self.peft_config.get(adapter_name)
        if isinstance(present, EncoderAdapterConfig):
            _check_same_method(present, loaded, adapter_name)
        with allowing_other_sizes(kwargs.get("ignore_mismatched_sizes", False)):
            result = original(self, folder, adapter_name, *args, **location, **kwargs)
            if isinstance(loaded, EncoderAdapterConfig):
                _take_labels(self.get_base_model(), adapter_name, loaded.base_settings or {})
        return result

    return load_adapter


def _take_labels(model: nn.Module, adapter_name: str, settings: dict[str, Any]) -> None:
    if may_sizes_differ():
        settings = with_labels_that_fit(settings, model, resolve(model))
    AdapterLabels.of(model).replace(adapter_name, settings)


def _check_same_method(present: EncoderAdapterConfig, loaded: PeftConfig, adapter_name: str) -> None:
    """Raise ValueError if weights trained with `loaded` mean something else in an adapter with `present`."""
    names = [name for name in method_fields(present) if getattr(present, name) != getattr(loaded, name, None)]
    if type(loaded) is not type(present) or names:
        shown = [f"{name}={getattr(loaded, name, None)!r} (here {getattr(present, name)!r})" for name in names]
        raise ValueError(
            f"The model has an adapter {adapter_name!r} with other settings than the one to be loaded, a "
            f"{type(loaded).__name__} with {', '.join(shown) or 'its own fields'}. Load it under another name, or call "
            f"model.delete_adapter({adapter_name!r}) first."
        )


def _read_config(arguments: Mapping[str, Any]) -> Optional[PeftConfig]:
    name = arguments.get("peft_model_id")
    if name is None:
        return None
    try:
        return PeftConfig.from_pretrained(name, **adapter_location(arguments))
    except (ValueError, KeyError):  # no configuration, or of a type unknown to PEFT: transformers raises its own error
        return None


def _tensors(arguments: Mapping[str, Any]) -> Tensors:
    """Return the tensors that a call of `load_adapter` gives, or those in the folder that it names."""
    if arguments.get("adapter_state_dict") is not None:
        return arguments["adapter_state_dict"]
    if arguments.get("peft_model_id") is None:
        raise ValueError(
            "load_adapter with a `peft_config` also needs the adapter's tensors: pass `adapter_state_dict`, or the "
            "adapter's folder or Hub id as `peft_model_id`. To train a new adapter, use add_adapter."
        )
    return read_weights(*local_copy(os.fspath(arguments["peft_model_id"]), adapter_location(arguments)))


def renamed(model: Any, config: EncoderAdapterConfig, adapter_name: str, tensors: Tensors) -> Tensors:
    """Return a checkpoint's tensors by their names in the model, which stays unchanged.

    The names of the layers' tensors come without the adapter's name, which transformers adds. For the head's tensors
    transformers adds it from version 5.18 only, so those have it already.

    Raises:
        ValueError: if the configuration does not fit the model, or the tensors are not exactly the adapter's.
    """
    copied = _copy_without_values(model)
    with torch.device("meta"):  # sizes are compared before memory is given to them
        inject_adapter_in_model(copy.deepcopy(config), copied, adapter_name, low_cpu_mem_usage=True)
    named = named_as_in_model(copied, config, adapter_name, tensors)
    tuner = tuner_class(config)
    parts = "|".join(tuner.prefix + part for part in tuner.tuner_layer_cls.parts)
    return {
        re.sub(rf"\.({parts})\.{re.escape(adapter_name)}\.", r".\1.", key): tensor for key, tensor in named.items()
    }


def _copy_without_values(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model on the meta device: its tensors have shapes, but no values and no memory."""
    parameters = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    buffers = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    copied = copy.deepcopy(model, parameters | buffers)
    vars(copied).pop("hf_device_map", None)  # which would say that values are kept elsewhere
    return copied
