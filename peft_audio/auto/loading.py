"""Loading an adapter together with its base model, set up as in training."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from ..backbones.table import resolve
from ..checkpoints.base_files import load_without_adapter
from ..checkpoints.base_settings import AUTO_CLASS, HEAD, LABELS, check_settings, dtype_of, rename_labels, set_labels
from ..checkpoints.loading import renamed
from ..checkpoints.restoring import restore_settings
from ..checkpoints.tensors import check_all_used, read_weights
from ..config import EXACT, EncoderAdapterConfig
from ..heads.weighted_layer_sum import MODULE_NAME
from ..tuner.quantized import check_not_quantized
from ..upstream.auto_classes import SPEECH_TASKS, auto_class_of
from ..upstream.model_cards import is_hub_id
from ..upstream.peft_state_dict import PEFT_MODEL_PREFIX, Tensors
from ..upstream.transformers_loading import LOCATION, keys_left_random


LABEL_NAMES = ("id2label", "label2id")
LABEL_FIELDS = {"num_labels", *LABEL_NAMES}
OF_LOADING = {"dtype", "torch_dtype", "quantization_config", "attn_implementation"}  # fields that loading itself takes
OF_PEFT = ("autocast_adapter_dtype", "torch_device", "ephemeral_gpu_offload", "key_mapping")  # not of transformers
LAYER_WEIGHTS = "use_weighted_layer_sum"  # field of a model's configuration


def load_with_base(
    auto_class: Any,
    source: str,
    location: dict[str, Any],
    config: PeftConfig,
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> PeftModel:
    """Return the adapter on its base model.

    Args:
        auto_class: transformers' class that loads the base model.
        source: folder of the adapter.
        location: its subfolder there.
        config: its configuration.
        options: its name, and whether it trains.
        kwargs: what else the caller gave; see `AutoPeftModel.from_pretrained`.

    Raises:
        ValueError: if the adapter does not fit the base model, or is for another task.
    """
    weights = read_weights(source, location)
    options |= {name: kwargs.pop(name) for name in OF_PEFT if name in kwargs}
    label_names = {name: kwargs[name] for name in LABEL_NAMES if kwargs.get(name)}
    base_model = _load_base_model(auto_class, config, weights, source, kwargs)
    _check_sizes(base_model, config, options["adapter_name"], weights)
    model = PeftModel.from_pretrained(base_model, source, config=config, **options, **location)
    check_all_used(model, options["adapter_name"], weights, source)
    rename_labels(model.get_base_model().config, label_names)
    return model


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that say how files come from the Hub."""
    return {name: kwargs[name] for name in LOCATION if name in kwargs}


def _load_base_model(
    auto_class: Any, config: PeftConfig, weights: Tensors, source: str, kwargs: dict[str, Any]
) -> nn.Module:
    name = _base_model_name(config, source)
    settings = (config.base_settings or {}) if isinstance(config, EncoderAdapterConfig) else {}
    _check_task(auto_class, config, settings, source)
    saved_head = tuple(name.removeprefix(EXACT) for name in getattr(config, "modules_to_save", None) or ())
    if kwargs.pop("output_loading_info", False):
        raise ValueError(
            "`output_loading_info` must be left out: one model is returned, with its adapter. Load the base model yourself "
            "and use PeftModel.from_pretrained(base_model, folder)."
        )
    may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    with _quiet():
        location = hub_arguments(kwargs)
        model_config, kwargs = _model_config(name, config.revision, saved_head, settings, kwargs)
        _check_head_sizes(auto_class, model_config, settings, weights, source)
        load = functools.partial(
            auto_class.from_pretrained,
            config=model_config,
            ignore_mismatched_sizes=bool(saved_head) or may_differ,
            output_loading_info=True,
            **(kwargs if _names_dtype(kwargs) else {**dtype_of(settings), **kwargs}),
        )
        model, info = load_without_adapter(load, name, config.revision, location)
    _check_loading(info, saved_head, name, may_differ)
    restore_settings(model, settings)
    if settings:
        check_settings(settings, model, resolve(model))
    check_not_quantized(model, saved_head)
    _check_head(model, saved_head, weights, source)
    return model


def _base_model_name(config: PeftConfig, source: str) -> str:
    """Return the id or folder of the base model, or raise an error if there is none or the folder is missing."""
    name = config.base_model_name_or_path
    if not name:
        raise ValueError(
            f"The configuration of adapter {source!r} names no base model. Load the base model yourself and use "
            "PeftModel.from_pretrained(base_model, folder)."
        )
    if not os.path.exists(name) and not is_hub_id(name):
        raise FileNotFoundError(
            f"Adapter {source!r} was trained on the base model in {name!r}, and {os.path.abspath(name)!r} does not exist. "
            "Call this from the folder where the training ran, or load the base model yourself and use "
            "PeftModel.from_pretrained(base_model, folder)."
        )
    return name


def _check_task(auto_class: Any, config: PeftConfig, settings: dict[str, Any], source: str) -> None:
    """Raise ValueError if the adapter's base model is known to be for another task than those of `auto_class`."""
    trained_for = settings.get(AUTO_CLASS) or auto_class_of((config.auto_mapping or {}).get("base_model_class"))
    if trained_for in (None, auto_class.__name__):
        return
    ours = trained_for.replace("AutoModel", "AutoPeftModel")
    way_out = f"Use peft_audio.{ours}.from_pretrained."
    if trained_for not in SPEECH_TASKS:
        way_out = f"Load its base model with {trained_for} and use PeftModel.from_pretrained(base_model, folder)."
    raise ValueError(
        f"Adapter {source!r} was trained for another task than those of {auto_class.__name__}, with a model of "
        f"{trained_for}. {way_out}"
    )


def _model_config(
    name: str,
    revision: Optional[str],
    saved_head: tuple[str, ...],
    settings: dict[str, Any],
    kwargs: dict[str, Any],
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return the base model's configuration with what the adapter brings, and the arguments that are none of its fields."""
    model_config = AutoConfig.from_pretrained(name, revision=revision, **hub_arguments(kwargs))
    fields = {key: value for key, value in kwargs.items() if hasattr(model_config, key) and key not in OF_LOADING}
    for key, value in fields.items():
        setattr(model_config, key, value)
    if saved_head and settings.get(LABELS):
        _check_labels(fields, settings)
        set_labels(model_config, settings)
    for key, value in (settings.get(HEAD) or {}).items():
        if key not in fields:
            setattr(model_config, key, value)
    if LAYER_WEIGHTS in settings:
        setattr(model_config, LAYER_WEIGHTS, settings[LAYER_WEIGHTS])
    return model_config, {key: value for key, value in kwargs.items() if key not in fields}


def _check_labels(fields: dict[str, Any], settings: dict[str, Any]) -> None:
    num_labels = len(settings[LABELS])
    for name in LABEL_FIELDS & set(fields):
        value = fields[name]
        given = value if name == "num_labels" else len(value)
        if given != num_labels:
            raise ValueError(
                f"`{name}` must be for {num_labels} labels, which the adapter's head has, got {value!r}. For a task with "
                "other labels load the base model with load_classifier and train a new adapter."
            )


def _names_dtype(kwargs: dict[str, Any]) -> bool:
    """Whether arguments of `from_pretrained` say which dtype the weights get."""
    return any(kwargs.get(name) is not None for name in ("dtype", "torch_dtype", "quantization_config"))


@contextmanager
def _quiet() -> Iterator[None]:
    # transformers would warn about a head of another size. The adapter's head replaces it; the rest is checked below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_loading(info: dict[str, Any], saved_head: tuple[str, ...], name: str, may_differ: bool) -> None:
    replaced = tuple(f"{module}." for module in saved_head) + ("layer_weights",) * (MODULE_NAME in saved_head)
    missing, mismatched = ([key for key in keys if not key.startswith(replaced)] for keys in keys_left_random(info))
    if may_differ:
        missing, mismatched = [*missing, *mismatched], []
    if mismatched:
        raise ValueError(
            f"The base model {name!r} does not fit its own configuration: {', '.join(mismatched)} have other shapes. "
            "Its files are damaged or not those of this model."
        )
    if missing:
        warnings.warn(
            f"The checkpoint of the base model {name!r} lacks {', '.join(missing)}, which are left at random values. "
            "The adapter gives the results it had in training only if its training did not use them either.",
            stacklevel=4,
        )


def _check_sizes(model: Any, config: PeftConfig, adapter_name: str, weights: Tensors) -> None:
    """Compare the sizes that a configuration asks for with the file, before memory is given to them."""
    if isinstance(config, EncoderAdapterConfig) and not getattr(model, "is_quantized", False):
        renamed(model, config, adapter_name, weights)


def _check_head_sizes(
    auto_class: Any, model_config: PreTrainedConfig, settings: dict[str, Any], weights: Tensors, source: str
) -> None:
    """Raise ValueError if a head as the adapter's file describes it is not that of its tensors, before it gets memory."""
    if not settings.get(HEAD):
        return
    with torch.device("meta"):
        model = auto_class.from_config(copy.deepcopy(model_config))
    for name, tensor in model.state_dict().items():
        saved = weights.get(PEFT_MODEL_PREFIX + name)
        if saved is not None and saved.shape != tensor.shape:
            raise ValueError(
                f"The configuration of adapter {source!r} does not fit its weights: {name} is {tuple(saved.shape)}, but "
                f"`base_settings` make it {tuple(tensor.shape)}. Was one of the two files changed?"
            )


def _check_head(model: nn.Module, saved_head: tuple[str, ...], weights: Tensors, source: str) -> None:
    # PEFT reads the head's tensors without checking that they are there.
    modules = {name: module for name, module in model.named_modules() if name in saved_head}
    needed = [f"{PEFT_MODEL_PREFIX}{name}.{key}" for name, module in modules.items() for key in module.state_dict()]
    missing = [key for key in needed if key not in weights]
    if missing:
        raise ValueError(f"The checkpoint of adapter {source!r} lacks {', '.join(missing)}. Was it cut short?")
