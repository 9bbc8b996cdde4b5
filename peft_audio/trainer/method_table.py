"""The methods of the training scripts: what each trains, its configuration, and its options on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from ..backbones.module_names import encoder_layers, head_modules, query_value_projections
from ..backbones.table import resolve
from ..config import EncoderAdapterConfig
from ..methods.bottleneck_adapter import BottleneckAdapterConfig
from ..methods.embedding_prompt import EmbeddingPromptConfig
from ..methods.input_prompt import InputPromptConfig
from ..methods.ipet import IPETConfig
from ..methods.parallel_mlp_adapter import ParallelMLPAdapterConfig
from ..methods.side_network import SideNetworkConfig
from ..methods.time_freq_conv_adapter import TimeFreqConvAdapterConfig
from ..upstream.registration import NO_TARGET_MODULES


FIELD_NAMES = {"adapter_activation": "activation", "adapter_dropout": "dropout", "lora_r": "r"}
"""Options of the command line whose field in the configuration has a name that would say too little there."""


@dataclass(frozen=True)
class Method:
    """What trains, and how.

    Args:
        summary: what trains, in words.
        config_class: its PEFT configuration; None: no adapter.
        presets: the fields of it that differ from its defaults.
        options: those of the command line that it takes.
        learning_rate: of what trains besides the head.
        head_learning_rate: of the head.
        model_fields: makes the fields that depend on the model; options go first.
    """

    summary: str
    config_class: Optional[type[PeftConfig]]
    presets: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    head_learning_rate: float = 3e-3
    model_fields: Callable[[nn.Module], dict[str, Any]] = lambda model: {}


def _options(config_class: type[EncoderAdapterConfig], *left_out: str) -> tuple[str, ...]:
    """Return the options for the fields of a configuration: which layers, and all that the method itself has."""
    shared = EncoderAdapterConfig.__dataclass_fields__
    names = {name: option for option, name in FIELD_NAMES.items()}
    own = [names.get(item.name, item.name) for item in fields(config_class) if item.name not in shared]
    return tuple(option for option in ("layers_to_transform", *own) if option not in left_out)


def _head(model: nn.Module) -> dict[str, Any]:
    return {"modules_to_save": head_modules(model)}


def _head_and_upper_half(model: nn.Module) -> dict[str, Any]:
    layers = encoder_layers(model)
    return {"modules_to_save": head_modules(model) + layers[len(layers) // 2 :]}


def _head_and_projections(model: nn.Module) -> dict[str, Any]:
    return {**_head(model), "target_modules": query_value_projections(model)}


def _vpt_start(model: nn.Module) -> dict[str, Any]:
    # VPT's start is worked out from the patch size; models of waveforms have none.
    return {"prompt_init": "vpt" if hasattr(model.config, "patch_size") else "xavier_uniform"}


# Not as in IPET's paper (residual, relu, 0.1 and 0.1), which ends below a linear probe: docs/real_model/README.md.
IPET = {"adapter_input": "normalized", "activation": "gelu", "scaling": 1.0, "dropout": 0.0}
AAT_M = {"adapter_input": "normalized", "activation": "gelu", "scaling": 1.0, "dropout": 0.0, "reduction_factor": 4}
AAT_MS = AAT_M | {"spatial_adapter": True}
BITFIT = {"target_modules": NO_TARGET_MODULES, "bias": "all"}  # needs no projections to train all biases
NO_LAYER: dict[str, Any] = {"layers_to_transform": []}  # trains the head alone, and saves it as the other methods do
UPPER_HALF: dict[str, Any] = {"learning_rate": 1e-4, "head_learning_rate": 1e-3, "model_fields": _head_and_upper_half}
CONFORMER = {"block": "conformer"}
PARALLEL = _options(ParallelMLPAdapterConfig)
BOTTLENECK = _options(BottleneckAdapterConfig, "block", "conv_kernel")
BESIDE_BLOCKS = " beside or behind the blocks"

# fmt: off
METHODS = {
    "full": Method("all parameters", None, learning_rate=1e-4, head_learning_rate=1e-3),
    "linear_probe": Method("the head alone", ParallelMLPAdapterConfig, NO_LAYER),
    "partial": Method("the head and the upper half of the encoder layers", ParallelMLPAdapterConfig, NO_LAYER,
        **UPPER_HALF),
    "bitfit": Method("the head and all biases", LoraConfig, BITFIT, model_fields=_head),
    "lora": Method("LoRA on the query and value projections", LoraConfig, {"r": 8, "lora_alpha": 16},
        ("lora_r", "lora_alpha", "lora_dropout"), model_fields=_head_and_projections),
    "input_prompt": Method("values on the border of the model's input", InputPromptConfig, {},
        _options(InputPromptConfig, "layers_to_transform"), learning_rate=1e-2),
    "embedding_prompt": Method("prompts in every layer", EmbeddingPromptConfig, {}, _options(EmbeddingPromptConfig)),
    "parallel_mlp": Method("IPET's adapter without its prompts", ParallelMLPAdapterConfig, IPET, PARALLEL),
    "time_freq_conv": Method("LoAA's convolutions over time and frequency, beside attention and the feed-forward blocks",
        TimeFreqConvAdapterConfig, {}, _options(TimeFreqConvAdapterConfig)),
    "bottleneck": Method("bottleneck adapters" + BESIDE_BLOCKS, BottleneckAdapterConfig, {}, BOTTLENECK),
    "conformer": Method("Conformer adapters" + BESIDE_BLOCKS, BottleneckAdapterConfig, CONFORMER,
        _options(BottleneckAdapterConfig, "block", "adapter_activation")),
    "aat_m": Method("AAT's adapter beside the feed-forward blocks", ParallelMLPAdapterConfig, AAT_M, PARALLEL),
    "aat_ms": Method("AAT's adapters beside the feed-forward blocks and after attention", ParallelMLPAdapterConfig,
        AAT_MS, PARALLEL),
    "joint": Method("AAT's two adapters and prompts", IPETConfig, AAT_MS | {"num_virtual_tokens": 12},
        _options(IPETConfig), model_fields=_vpt_start),
    "side_network": Method("a narrow network beside the encoder", SideNetworkConfig, {}, _options(SideNetworkConfig)),
    "ipet": Method("prompts in every layer and an adapter beside the feed-forward blocks", IPETConfig, IPET,
        _options(IPETConfig)),
}
# fmt: on


def make_config(method: str, **options: Any) -> Optional[PeftConfig]:
    """Return the PEFT configuration of a method; None for "full".

    Args:
        method: its name in `METHODS`.
        options: its options, by their names on the command line.

    Raises:
        ValueError: the method is unknown, or an option is not one of its own or has an unusable value.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method} is unknown, choose one of: {', '.join(sorted(METHODS))}.")
    row = METHODS[method]
    for name in options.keys() - set(row.options):
        taken = ", ".join(f"--{option}" for option in row.options) or "no options"
        users = ", ".join(other for other, candidate in METHODS.items() if name in candidate.options)
        hint = f"Leave it out, or use a method that takes it: {users}." if users else "It is no option at all."
        raise ValueError(f"--method {method} does not take --{name}; it takes {taken}. {hint}")
    settings = {FIELD_NAMES.get(name, name): _parse_kernel(name, value) for name, value in options.items()}
    presets = dict(row.presets)
    if "bottleneck_dim" in options:
        presets.pop("reduction_factor", None)  # a preset width gives way to the one asked for
    return None if row.config_class is None else row.config_class(**presets | settings)


def _parse_kernel(option: str, value: Any) -> Any:
    """Return a kernel size from FREQUENCYxTIME, auto or none; values of other options as they are."""
    is_kernel = option in ("attention_kernel", "mlp_kernel")
    if not is_kernel or not isinstance(value, str) or value == "auto":
        return value
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in value.split("x"))
    if value != "none" and (len(sizes) != 2 or any(size % 2 == 0 for size in sizes)):
        raise ValueError(
            f"--{option} must be FREQUENCYxTIME, two odd numbers (e.g. 1x3), auto or none, got {value!r}."
        )
    return None if value == "none" else sizes


def apply_method(model: Any, method: str, **options: Any) -> Any:
    """Set a model up for a method: a `PeftModel` around it; for "full" the model itself, whose parameters all train.

    Args:
        model: a classifier, a recognizer or another model of transformers with a supported encoder.
        method: its name in `METHODS`.
        options: its options, by their names on the command line.

    Raises:
        ValueError: as `make_config`, or the method does not fit this model.
    """
    config = make_config(method, **options)
    if config is None:
        return model.requires_grad_(True)
    for name, value in METHODS[method].model_fields(model).items():
        if name not in options:
            setattr(config, name, value)
    if method == "linear_probe" and not head_modules(model):
        raise ValueError(
            f"--method linear_probe trains the head alone, and {type(model).__name__} has no head of its own. Choose "
            "another method."
        )
    if isinstance(config, LoraConfig) and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # else its backward pass runs for nothing; BitFit lets its biases train again
    model = get_peft_model(model, config)
    if isinstance(config, LoraConfig):
        _freeze_copied_convolutions(model, config)
    return model


def _freeze_copied_convolutions(model: Any, config: LoraConfig) -> None:
    """Freeze the feature encoder where PEFT took it for the module of the same name in an x-vector head."""
    copies = getattr(resolve(model.get_base_model()).feature_encoder, "modules_to_save", None)
    for name, parameter in () if copies is None else copies.named_parameters():
        parameter.requires_grad_(config.bias == "all" and name.endswith("bias"))
