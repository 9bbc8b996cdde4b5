"""What loading an adapter into a plain transformers model does beside transformers' own.

`model.load_adapter` finds the places of a checkpoint's tensors by the names of the model's modules, and an adapter of
this package does not depend on those. So this wraps it; other tuner types are loaded exactly as before.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Callable
from typing import Any, Optional

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..config import EncoderAdapterConfig
from ..upstream.wrapping import replace_method
from .restoring import restore_labels, restore_settings
from .tensors import read_weights


def wrap_loading() -> None:
    """Let `load_adapter` of transformers' models find the tensors' places. Doing it again changes nothing."""
    replace_method(PreTrainedModel, "load_adapter", _finding_places)


def _finding_places(original: Callable) -> Callable:
    signature = inspect.signature(original)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        arguments = bound.arguments
        location = _location(arguments)
        config = arguments.get("peft_config") or _read_config(arguments.get("peft_model_id"), location)
        if not isinstance(config, EncoderAdapterConfig):
            return original(self, *args, **kwargs)
        adapter_name = arguments.get("adapter_name") or "default"
        tensors = arguments.get("adapter_state_dict")
        if tensors is None:
            if arguments.get("peft_model_id") is None:
                raise ValueError(
                    "load_adapter with a `peft_config` needs the adapter's tensors too, `adapter_state_dict`, or a folder "
                    "or Hub id with them, `peft_model_id`. For an adapter to be trained, use add_adapter."
                )
            tensors = read_weights(os.fspath(arguments["peft_model_id"]), location)
        if arguments.get("load_config") is not None:
            # AutoModel...from_pretrained(adapter's folder): the model was made for this adapter just now.
            restore_settings(self, config.base_settings or {})
            restore_labels(self, config)
        arguments["peft_config"] = config
        if adapter_name not in getattr(self, "peft_config", {}):  # else transformers refuses the name
            arguments["adapter_state_dict"] = _checked_with_module_names(self, config, adapter_name, tensors)
        info = original(*bound.args, **bound.kwargs)
        if not arguments.get("is_trainable"):
            _freeze_heads(self, adapter_name)
        return info

    return load_adapter


def _location(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return where on the Hub the adapter is, in the words of PEFT's loading functions."""
    given = dict(getattr(arguments.get("load_config"), "download_kwargs", None) or {})
    given |= arguments.get("kwargs", {}).get("download_kwargs") or {}
    given |= arguments.get("adapter_kwargs") or {}
    if arguments.get("local_files_only"):
        given["local_files_only"] = True
    names = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
    return {name: given[name] for name in names if given.get(name) is not None}


def _read_config(name: Optional[str], location: dict[str, Any]) -> Optional[PeftConfig]:
    if name is None:
        return None
    try:
        return PeftConfig.from_pretrained(name, **location)
    except (ValueError, KeyError):  # none there, or of a type that PEFT does not know: transformers says what is wrong
        return None


def _checked_with_module_names(
    model: PreTrainedModel, config: EncoderAdapterConfig, adapter_name: str, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint (`layers.N.<part>.<tensor>`) by the model's own names. Leaves the model alone.

    Those of the layers come without the adapter's name, which transformers adds. For heads it does so from 5.18 only.

    Raises:
        ValueError: if the configuration does not fit the model, or the tensors are not exactly the adapter's.
    """
    copied = _without_memory(model)
    inject_adapter_in_model(config, copied, adapter_name, low_cpu_mem_usage=True)
    received = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    for name, module in copied.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for stored, own in module.adapter_state_dict_load_map(adapter_name).items():
                if f"{name}.{stored}" in received:
                    received[f"{name}.{own}"] = received.pop(f"{name}.{stored}")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    named = tuner._remap_adapter_state_dict_for_load(copied, config, adapter_name, received)
    parts = "|".join(tuner.prefix + part for part in tuner.tuner_layer_cls.parts)
    return {
        re.sub(rf"\.({parts})\.{re.escape(adapter_name)}\.", r".\1.", key): tensor for key, tensor in named.items()
    }


def _without_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model whose tensors have shapes and no numbers."""
    parameters = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    buffers = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, parameters | buffers)


def _freeze_heads(model: PreTrainedModel, adapter_name: str) -> None:
    # transformers freezes an adapter that is loaded for inference, but not the head that comes with it.
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            module.set_requires_grad(adapter_name, False)
