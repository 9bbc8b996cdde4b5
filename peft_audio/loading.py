"""What loading an adapter into a plain transformers model does beside transformers' own.

`model.load_adapter` finds the places of a checkpoint's tensors by the names of the model's modules, and an adapter of
this package does not depend on those. So this wraps it; other tuner types are loaded exactly as before.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Optional

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from .backbones import resolve
from .checkpoint import check_numbers, read_weights, refuse
from .config import EncoderAdapterConfig
from .layer_weights import MODULE_NAME
from .restoring import restore_labels, restore_settings
from .wrapping import replace_method


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
            tensors = read_weights(os.fspath(arguments["peft_model_id"]), location)
        if arguments.get("load_config") is not None:
            # AutoModel...from_pretrained(adapter's folder): the model was made for this adapter just now.
            restore_settings(self, config.base_settings or {})
            restore_labels(self, config)
        arguments["peft_config"] = config
        check_numbers(adapter_name, tensors)
        # Tensors of other shapes are told of below, with all else that does not fit.
        arguments["kwargs"] = {**arguments.get("kwargs", {}), "ignore_mismatched_sizes": True}
        named = with_module_names(self, config, tensors, adapter_name)
        refuse(_foreign(self, config, named), adapter_name)
        arguments["adapter_state_dict"] = named
        info = _checked(self, adapter_name, lambda: original(*bound.args, **bound.kwargs))
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


def with_module_names(
    model: PreTrainedModel, config: EncoderAdapterConfig, tensors: dict[str, torch.Tensor], adapter_name: str
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint (`layers.N.<part>.<tensor>`) by the model's own names.

    Those of the layers come without the adapter's name, which transformers adds. For heads it does so from 5.18 only.
    """
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    backbone = resolve(model)
    places = {f"layers.{index}": name for index, name in enumerate(backbone.layer_names)}
    places["input"] = backbone.input_name
    parts = "|".join(tuner.tuner_layer_cls.parts)
    heads = backbone.head if config.modules_to_save is None else config.modules_to_save
    heads = "|".join(map(re.escape, [*heads, MODULE_NAME]))
    named = {}
    for key, tensor in tensors.items():
        key = key.removeprefix("base_model.model.")
        match = re.fullmatch(rf"(layers\.\d+|input)\.({parts})\.(.+)", key)
        if match is not None and match[1] in places:
            key = f"{places[match[1]]}.{tuner.prefix}{match[2]}.{match[3]}"
        else:
            key = re.sub(rf"^((?:.+?\.)?(?:{heads}))\.", rf"\1.modules_to_save.{adapter_name}.", key)
        named[key] = tensor
    return named


def _heads(model: PreTrainedModel, config: EncoderAdapterConfig) -> Iterable[str]:
    return resolve(model).head if config.modules_to_save is None else config.modules_to_save


def _foreign(model: PreTrainedModel, config: EncoderAdapterConfig, named: dict[str, torch.Tensor]) -> list[str]:
    """Return what is wrong with tensors that would take the place of the base model's own."""
    if not all(any(path.endswith(head) for path, _ in model.named_modules()) for head in _heads(model, config)):
        return []  # of another model, as the tuner will say
    own = model.state_dict()
    return [f"not of this adapter: {key}" for key in named if key in own]


def _checked(model: PreTrainedModel, adapter_name: str, load: Callable) -> Any:
    """Return what `load` returns; an adapter with a tensor that was not loaded is taken off again.

    Raises:
        ValueError: if the checkpoint has not exactly the adapter's tensors.
    """
    info = load()
    problems = [f"missing: {key}" for key in sorted(info.missing_keys) if adapter_name in key.split(".")]
    problems += [f"not of this adapter: {key}" for key in sorted(info.unexpected_keys)]
    problems += [
        f"wrong shape: {key} is {tuple(received)}, the model needs {tuple(expected)}"
        for key, received, expected in sorted(info.mismatched_keys)
    ]
    if problems:
        model.delete_adapter(adapter_name)
    refuse(problems, adapter_name)
    return info


def _freeze_heads(model: PreTrainedModel, adapter_name: str) -> None:
    # transformers freezes an adapter that is loaded for inference, but not the head that comes with it.
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            module.set_requires_grad(adapter_name, False)
