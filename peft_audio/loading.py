"""What loading an adapter into a plain transformers model does beside transformers' own.

`model.load_adapter` finds the places of a checkpoint's tensors by the names of the model's modules, and an adapter of
this package does not depend on those. So this wraps it; other tuner types are loaded exactly as before.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Optional

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedModel

from .backbones import resolve
from .config import EncoderAdapterConfig
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
        tensors = arguments.get("adapter_state_dict")
        if tensors is None:
            tensors = load_peft_weights(arguments["peft_model_id"], device="cpu", **location)
        if arguments.get("load_config") is not None:
            # AutoModel...from_pretrained(adapter's folder): the model was made for this adapter just now.
            restore_settings(self, config.base_settings or {})
            restore_labels(self, config)
        arguments["peft_config"] = config
        _check_finite(tensors)
        # Tensors of other shapes are told of below, with all else that does not fit.
        arguments["kwargs"] = {**arguments.get("kwargs", {}), "ignore_mismatched_sizes": True}
        arguments["adapter_state_dict"] = with_module_names(self, config, tensors)
        adapter_name = arguments.get("adapter_name") or "default"
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


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    damaged = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if damaged:
        raise ValueError(
            f"The checkpoint has numbers that are NaN or infinite in {', '.join(damaged[:10])}, nothing was loaded from "
            "it. Did its training diverge? Take an earlier one."
        )


def with_module_names(
    model: PreTrainedModel, config: EncoderAdapterConfig, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint (`layers.N.<part>.<tensor>`) by the model's own names, without adapter name."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    backbone = resolve(model)
    places = {f"layers.{index}": name for index, name in enumerate(backbone.layer_names)}
    places["input"] = backbone.input_name
    parts = "|".join(tuner.tuner_layer_cls.parts)
    named = {}
    for key, tensor in tensors.items():
        key = key.removeprefix("base_model.model.")
        match = re.fullmatch(rf"(layers\.\d+|input)\.({parts})\.(.+)", key)
        if match is not None and match[1] in places:
            key = f"{places[match[1]]}.{tuner.prefix}{match[2]}.{match[3]}"
        named[key] = tensor
    return named


def _checked(model: PreTrainedModel, adapter_name: str, load: Callable) -> Any:
    """Return what `load` returns; an adapter with a tensor that was not loaded is taken off again.

    Raises:
        ValueError: if the checkpoint has not exactly the adapter's tensors.
    """
    info = load()
    problems = [f"missing: {key}" for key in sorted(info.missing_keys) if adapter_name in key.split(".")]
    problems += [f"not of this adapter: {key}" for key in sorted(info.unexpected_keys)]
    problems += [f"wrong shape: {key}" for key, *_ in sorted(info.mismatched_keys)]
    if problems:
        model.delete_adapter(adapter_name)
        shown = "\n  ".join(problems[:10])
        raise ValueError(
            f"The checkpoint does not fit adapter {adapter_name!r} of this model, which was taken off again:\n  {shown}"
            "\nWas it made with another configuration, for another base model, or cut short?"
        )
    return info


def _freeze_heads(model: PreTrainedModel, adapter_name: str) -> None:
    # transformers freezes an adapter that is loaded for inference, but not the head that comes with it.
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            module.set_requires_grad(adapter_name, False)
