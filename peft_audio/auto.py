"""Loading a trained adapter together with its base model in one line, and a pretrained model for new labels."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, Union

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForAudioClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .ast.resize import resize_ast
from .backbones.table import resolve
from .checkpoints.base_files import load_without_adapter
from .checkpoints.base_settings import LABELS, check_settings, dtype_of, rename_labels, set_labels
from .checkpoints.loading import renamed
from .checkpoints.local_copy import local_copy
from .checkpoints.restoring import restore_settings
from .checkpoints.tensors import check_all_used, read_config, read_weights
from .config import EXACT, EncoderAdapterConfig
from .heads.weighted_layer_sum import MODULE_NAME
from .tuner.quantized import check_not_quantized
from .upstream.peft_state_dict import PEFT_MODEL_PREFIX, Tensors
from .upstream.transformers_loading import keys_left_random
from .upstream.transformers_models import initializer_std
from .whisper.resize import resize_whisper


LABEL_NAMES = ("id2label", "label2id")
LABEL_FIELDS = {"num_labels", *LABEL_NAMES}
OF_LOADING = {"dtype", "torch_dtype", "quantization_config", "attn_implementation"}  # fields that loading itself takes
OF_PEFT = ("autocast_adapter_dtype", "torch_device", "ephemeral_gpu_offload", "key_mapping")  # not of transformers
LAYER_WEIGHTS = "use_weighted_layer_sum"  # field of a model's configuration


class AutoPeftModelForAudioClassification:
    """Loads an adapter of an audio classifier together with its base model; use `from_pretrained`.

    Examples:
        >>> config = ASTConfig(hidden_size=12, num_hidden_layers=1)
        >>> config.id2label = {0: "dog", 1: "rain"}
        >>> ASTForAudioClassification(config).save_pretrained("base")
        >>> base_model = ASTForAudioClassification.from_pretrained("base")
        >>> get_peft_model(base_model, peft_audio.EmbeddingPromptConfig()).save_pretrained("adapter")
        >>> model = peft_audio.AutoPeftModelForAudioClassification.from_pretrained("adapter")
        >>> model.config.id2label
        {0: 'dog', 1: 'rain'}
    """

    def __init__(self) -> None:
        """Refuse to make an object of this class.

        Raises:
            OSError: always.
        """
        raise OSError(f"Use {type(self).__name__}.from_pretrained(folder_or_hub_id).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Union[str, os.PathLike],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: Optional[PeftConfig] = None,
        revision: Optional[str] = None,
        subfolder: Optional[str] = None,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> PeftModel:
        """Load the base model that the adapter names, set it up as in training, and load the adapter.

        Labels, input length and strides, kind of head, and the base model's dtype are those of the training.

        Args:
            pretrained_model_name_or_path: folder or Hub id of the adapter.
            adapter_name: the name that the adapter gets in the model.
            is_trainable: False freezes the adapter and puts the model in evaluation mode.
            config: the adapter's configuration; None reads it from the folder.
            revision: branch, tag or commit of the adapter's repository.
            subfolder: folder of the adapter inside its repository.
            low_cpu_mem_usage: allocate the adapter's tensors only when they are read.
            **kwargs: for the base model's `from_pretrained` (`dtype`, `device_map`, `token`, ...), fields of its
                configuration, and for `PeftModel.from_pretrained` (`autocast_adapter_dtype`, ...).

        Raises:
            ValueError: if there is no adapter, its files cannot be read, or they do not fit the base model.
        """
        source = os.fspath(pretrained_model_name_or_path)
        location = {"revision": revision, "subfolder": subfolder, **_hub_arguments(kwargs)}
        source, location = local_copy(source, location)
        options = {"adapter_name": adapter_name, "is_trainable": is_trainable, "low_cpu_mem_usage": low_cpu_mem_usage}
        return _load(source, location, config or read_config(source, location), options, kwargs)


def _load(
    source: str, location: dict[str, Any], config: PeftConfig, options: dict[str, Any], kwargs: dict[str, Any]
) -> PeftModel:
    weights = read_weights(source, location)
    options |= {name: kwargs.pop(name) for name in OF_PEFT if name in kwargs}
    label_names = {name: kwargs[name] for name in LABEL_NAMES if kwargs.get(name)}
    base_model = _load_base_model(config, weights, source, kwargs)
    _check_sizes(base_model, config, options["adapter_name"], weights)
    model = PeftModel.from_pretrained(base_model, source, config=config, **options, **location)
    check_all_used(model, options["adapter_name"], weights, source)
    rename_labels(model.get_base_model().config, label_names)
    return model


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("token", "cache_dir", "local_files_only", "force_download")
    return {name: kwargs[name] for name in names if name in kwargs}


def _load_base_model(config: PeftConfig, weights: Tensors, source: str, kwargs: dict[str, Any]) -> nn.Module:
    name = config.base_model_name_or_path
    if not name:
        raise ValueError(
            f"The configuration of adapter {source!r} names no base model. Load the base model yourself and use "
            "PeftModel.from_pretrained(base_model, folder)."
        )
    settings = (config.base_settings or {}) if isinstance(config, EncoderAdapterConfig) else {}
    saved_head = tuple(name.removeprefix(EXACT) for name in getattr(config, "modules_to_save", None) or ())
    if kwargs.pop("output_loading_info", False):
        raise ValueError(
            "`output_loading_info` must be left out: one model is returned, with its adapter. Load the base model yourself "
            "and use PeftModel.from_pretrained(base_model, folder)."
        )
    may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    with _quiet():
        location = _hub_arguments(kwargs)
        model_config, kwargs = _model_config(name, config.revision, saved_head, settings, kwargs)
        load = functools.partial(
            AutoModelForAudioClassification.from_pretrained,
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


def _model_config(
    name: str,
    revision: Optional[str],
    saved_head: tuple[str, ...],
    settings: dict[str, Any],
    kwargs: dict[str, Any],
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Return the base model's configuration with what the adapter brings, and the arguments that are none of its fields."""
    hub_arguments = _hub_arguments(kwargs)
    model_config = AutoConfig.from_pretrained(name, revision=revision, **hub_arguments)
    fields = {key: value for key, value in kwargs.items() if hasattr(model_config, key) and key not in OF_LOADING}
    for key, value in fields.items():
        setattr(model_config, key, value)
    if saved_head and settings.get(LABELS):
        _check_labels(fields, settings)
        set_labels(model_config, settings)
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


def _check_head(model: nn.Module, saved_head: tuple[str, ...], weights: Tensors, source: str) -> None:
    # PEFT reads the head's tensors without checking that they are there.
    modules = {name: module for name, module in model.named_modules() if name in saved_head}
    needed = [f"{PEFT_MODEL_PREFIX}{name}.{key}" for name, module in modules.items() for key in module.state_dict()]
    missing = [key for key in needed if key not in weights]
    if missing:
        raise ValueError(f"The checkpoint of adapter {source!r} lacks {', '.join(missing)}. Was it cut short?")


def load_classifier(
    name: Union[str, os.PathLike],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    max_length: Optional[int] = None,
    max_seconds: Optional[float] = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained model as a classifier for these labels, with a new output layer.

    `from_pretrained(..., ignore_mismatched_sizes=True)` alone would keep an old one that has as many labels by chance.

    Args:
        name: folder or Hub id of the model.
        labels: their names, in the order of the model's outputs.
        multi_label: whether a clip can have several labels.
        max_length: frames of 10 ms that an AST is to take, see `resize_ast`; None for the model's own.
        max_seconds: seconds that a Whisper is to take, see `resize_whisper`; None for the model's own.
        **kwargs: for `AutoModelForAudioClassification.from_pretrained`; but `dtype` is float32 unless it is given.

    Raises:
        OSError: if there is no such model.
        ValueError: if the model type is not supported, or `max_seconds` is given and the model is not a Whisper.
        TypeError: if `max_length` is given and the model is not an AST.
    """
    labels = list(labels)
    old_labels = list(AutoConfig.from_pretrained(name).id2label.values())
    fields = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    fields["problem_type"] = f"{'multi' if multi_label else 'single'}_label_classification"
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **fields, **kwargs}
    model = AutoModelForAudioClassification.from_pretrained(name, **options)
    if old_labels != labels and len(old_labels) == len(labels):
        _renew_output_layer(model)
    if max_length is not None:
        resize_ast(model, max_length=max_length)
    if max_seconds is not None:
        resize_whisper(model, max_seconds)
    return model


def _renew_output_layer(model: PreTrainedModel) -> None:
    for name in resolve(model).head:
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels:
                nn.init.normal_(module.weight, std=initializer_std(model.config))
                nn.init.zeros_(module.bias)
