"""The fine-tuning methods the examples offer, and their options: one row of `METHODS` each."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    TimeFreqConvAdapterConfig,
)
from peft_audio.backbones.table import resolve


def silence_peft() -> None:
    """Hides the warnings that PEFT causes for every model, and that nobody who runs an example can do anything about."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    # Without a connection to the Hub, PEFT cannot ask whether the vocabulary has grown: audio classifiers have none.
    warnings.filterwarnings("ignore", "Could not find a config file in .* will assume that the vocabulary")


silence_peft()

PROMPT_OPTIONS = ("num_virtual_tokens", "prompt_dropout", "prompt_init")
ADAPTER_OPTIONS = ("bottleneck_dim", "reduction_factor", "adapter_activation", "scaling", "adapter_dropout")
CONFORMER_OPTIONS = ("bottleneck_dim", "reduction_factor", "conv_kernel", "scaling", "adapter_dropout")
SPATIAL_OPTIONS = ("spatial_bottleneck_dim",)
LAYER_OPTIONS = ("layers_to_transform",)
CONV_OPTIONS = ("attention_kernel", "mlp_kernel")
SITE_OPTIONS = ("sites", "placement", "residual", "train_layer_norms")
LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout")

# Options whose field in the configuration has a name that would say too little on a command line.
FIELD_NAMES = {"adapter_activation": "activation", "adapter_dropout": "dropout", "lora_r": "r"}

# What the query and value projections are called: most models, AST before transformers 5.10, SEW-D, conformers.
QUERY_VALUE_NAMES = (("q_proj", "v_proj"), ("query", "value"), ("query_proj", "value_proj"), ("linear_q", "linear_v"))


@dataclass(frozen=True)
class Method:
    """How one method is set up.

    Args:
        summary: what trains, in a few words.
        config_class: its PEFT configuration; None: no adapter, every parameter of the model trains.
        presets: fields of the configuration that differ from its defaults.
        options: names of the options in `MethodArguments` that it takes.
        learning_rate: the one to start from.
        model_fields: fields of the configuration that depend on the model; options given by the user go first.
    """

    summary: str
    config_class: type[PeftConfig] | None
    presets: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    model_fields: Callable[[nn.Module], dict[str, Any]] = lambda model: {}


def head_of(model: nn.Module) -> dict[str, Any]:
    return {"modules_to_save": list(resolve(model).head)}


def head_and_projections_of(model: nn.Module) -> dict[str, Any]:
    return {"target_modules": query_value_names(model), **head_of(model)}


def head_and_upper_half_of(model: nn.Module) -> dict[str, Any]:
    backbone = resolve(model)
    return {"modules_to_save": [*backbone.head, *backbone.layer_names[len(backbone.layer_names) // 2 :]]}


def prompts_like_patches(model: nn.Module) -> dict[str, Any]:
    # VPT's start is worked out from the patch size; models of waveforms have none.
    return {"prompt_init": "xavier_uniform" if resolve(model).patch_size is None else "vpt"}


IPET_ADAPTER = {"adapter_input": "residual", "activation": "relu", "scaling": 0.1, "dropout": 0.1}
AAT_ADAPTER = {"adapter_input": "normalized", "activation": "gelu", "scaling": 1.0, "dropout": 0.0}
AAT_WIDTH = {"reduction_factor": 4}

METHODS = {
    "full": Method("all parameters", None, learning_rate=1e-4),
    # A configuration that adapts no layer trains the head alone, and saves it as the other methods do.
    "linear_probe": Method("the head alone", ParallelMLPAdapterConfig, {"layers_to_transform": []}),
    "partial": Method(
        "the head and the upper half of the encoder layers",
        ParallelMLPAdapterConfig,
        {"layers_to_transform": []},
        learning_rate=1e-4,
        model_fields=head_and_upper_half_of,
    ),
    # LoRA's configuration can train all biases, and needs no projections to do it.
    "bitfit": Method(
        "the head and all biases",
        LoraConfig,
        {"target_modules": DUMMY_TARGET_MODULES, "bias": "all"},
        model_fields=head_of,
    ),
    "lora": Method(
        "LoRA on the query and value projections",
        LoraConfig,
        {"r": 8, "lora_alpha": 16},
        options=LORA_OPTIONS,
        model_fields=head_and_projections_of,
    ),
    "input_prompt": Method(
        "values on the border of the model's input", InputPromptConfig, options=("prompt_size",), learning_rate=1e-2
    ),
    "embedding_prompt": Method(
        "prompts in every layer", EmbeddingPromptConfig, options=PROMPT_OPTIONS + LAYER_OPTIONS
    ),
    "parallel_mlp": Method(
        "IPET's adapter without its prompts",
        ParallelMLPAdapterConfig,
        IPET_ADAPTER,
        ADAPTER_OPTIONS + LAYER_OPTIONS,
    ),
    "time_freq_conv": Method(
        "LoAA's convolutions over time and frequency, beside attention and the feed-forward blocks",
        TimeFreqConvAdapterConfig,
        options=ADAPTER_OPTIONS + CONV_OPTIONS + LAYER_OPTIONS,
    ),
    "bottleneck": Method(
        "bottleneck adapters beside or behind the blocks",
        BottleneckAdapterConfig,
        options=ADAPTER_OPTIONS + SITE_OPTIONS + LAYER_OPTIONS,
    ),
    "conformer": Method(
        "Conformer adapters beside or behind the blocks",
        BottleneckAdapterConfig,
        {"block": "conformer"},
        CONFORMER_OPTIONS + SITE_OPTIONS + LAYER_OPTIONS,
    ),
    "aat_m": Method(
        "AAT's adapter beside the feed-forward blocks",
        ParallelMLPAdapterConfig,
        AAT_ADAPTER | AAT_WIDTH,
        ADAPTER_OPTIONS + LAYER_OPTIONS,
    ),
    "aat_ms": Method(
        "AAT's adapters beside the feed-forward blocks and after attention",
        ParallelMLPAdapterConfig,
        AAT_ADAPTER | AAT_WIDTH | {"spatial_adapter": True},
        ADAPTER_OPTIONS + SPATIAL_OPTIONS + LAYER_OPTIONS,
    ),
    "joint": Method(
        "AAT's two adapters and prompts",
        IPETConfig,
        AAT_ADAPTER | AAT_WIDTH | {"spatial_adapter": True, "num_virtual_tokens": 12},
        PROMPT_OPTIONS + ADAPTER_OPTIONS + SPATIAL_OPTIONS + LAYER_OPTIONS,
        model_fields=prompts_like_patches,
    ),
    "ipet": Method(
        "prompts in every layer and an adapter beside the feed-forward blocks",
        IPETConfig,
        options=PROMPT_OPTIONS + ADAPTER_OPTIONS + LAYER_OPTIONS,
    ),
}


SWITCH = {"nargs": "?", "const": True}  # a flag that can be given without "True"; left out it is None


@dataclass
class MethodArguments:
    """The method and its options. Options left out keep the method's own default."""

    method: str = field(metadata={"help": "What is trained.", "choices": sorted(METHODS)})
    num_virtual_tokens: int | None = field(default=None, metadata={"help": "Prompts in every layer."})
    prompt_dropout: float | None = field(default=None, metadata={"help": "Dropout of the prompts."})
    prompt_init: str | None = field(
        default=None, metadata={"help": "Start of the prompts.", "choices": ["xavier_uniform", "vpt"]}
    )
    bottleneck_dim: int | None = field(default=None, metadata={"help": "Inner width of the adapters."})
    reduction_factor: int | None = field(
        default=None, metadata={"help": "Instead of bottleneck_dim: hidden size over inner width."}
    )
    adapter_activation: str | None = field(default=None, metadata={"help": "Activation function of the adapters."})
    scaling: float | None = field(default=None, metadata={"help": "Factor on the adapters' output."})
    adapter_dropout: float | None = field(default=None, metadata={"help": "Dropout inside the adapters."})
    spatial_bottleneck_dim: int | None = field(
        default=None, metadata={"help": "Inner width of the adapters after attention, if another."}
    )
    layers_to_transform: list[int] | None = field(
        default=None, metadata={"help": "The encoder layers to adapt (negative: from the end); all by default."}
    )
    attention_kernel: str | None = field(
        default=None, metadata={"help": "Convolution beside attention: FREQUENCYxTIME (1x3), auto or none."}
    )
    mlp_kernel: str | None = field(default=None, metadata={"help": "The same beside the feed-forward blocks."})
    sites: list[str] | None = field(
        default=None, metadata={"help": "Blocks with an adapter.", "choices": ["attention", "mlp"]}
    )
    placement: str | None = field(
        default=None, metadata={"help": "Beside the blocks or behind them.", "choices": ["parallel", "sequential"]}
    )
    residual: bool | None = field(default=None, metadata={"help": "Add the adapter's input to its output.", **SWITCH})
    train_layer_norms: bool | None = field(
        default=None, metadata={"help": "Train the norms before those blocks too.", **SWITCH}
    )
    conv_kernel: int | None = field(default=None, metadata={"help": "Taps of the Conformer's convolution."})
    prompt_size: int | None = field(default=None, metadata={"help": "Width of the border of an input prompt."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank of LoRA."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA's scale, as a multiple of 1 / rank."})
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout before LoRA's projections."})

    def options(self) -> dict[str, Any]:
        """The options that were given, by name."""
        values = {option.name: getattr(self, option.name) for option in fields(self) if option.name != "method"}
        return {name: value for name, value in values.items() if value is not None}


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Raises `ValueError` if `method` does not exist or does not take one of `options`; the message lists what is."""
    if method not in METHODS:
        raise ValueError(f"--method {method} is unknown, choose one of: {', '.join(sorted(METHODS))}.")
    taken = METHODS[method].options
    for name in options:
        if name not in taken:
            listed = ", ".join(f"--{option}" for option in taken) or "no options"
            users = ", ".join(other for other, row in METHODS.items() if name in row.options)
            hint = f"Leave it out, or use a method that takes it: {users}." if users else "It is no option at all."
            raise ValueError(f"--method {method} does not take --{name}; it takes {listed}. {hint}")


def make_config(method: str, **options) -> PeftConfig | None:
    """The PEFT configuration of `method` with these options; None for "full".

    Raises:
        ValueError: the method is unknown, or an option is not one of its own or has an unusable value.
    """
    check_options(method, options)
    row = METHODS[method]
    if row.config_class is None:
        return None
    settings = dict(row.presets)
    if "bottleneck_dim" in options:
        settings.pop("reduction_factor", None)  # a preset width gives way to the one asked for
    return row.config_class(**settings | {FIELD_NAMES.get(name, name): parse(name, options[name]) for name in options})


def parse(option: str, value: Any) -> Any:
    """The value of a field of the configuration, from that of the option on the command line.

    Raises:
        ValueError: it is no kernel, for an option that is one.
    """
    if option not in CONV_OPTIONS or not isinstance(value, str) or value == "auto":
        return value
    if value == "none":
        return None
    sizes = [int(size) if size.isdecimal() else 0 for size in value.split("x")]
    if len(sizes) != 2 or any(size % 2 == 0 for size in sizes):
        raise ValueError(
            f"--{option} must be FREQUENCYxTIME, two odd numbers (e.g. 1x3), auto or none, got {value!r}."
        )
    return tuple(sizes)


def apply_method(model: PreTrainedModel, method: str, **options) -> nn.Module:
    """Sets `model` up to be trained with `method`.

    Args:
        model: an audio classifier of transformers; it is changed in place.
        method: a key of `METHODS`.
        options: options of that method, named as in `MethodArguments`.

    Returns:
        A `PeftModel` around `model`; for "full" the model itself.

    Raises:
        ValueError: the method is unknown, an option is not one of its own or has an unusable value, or the method
            does not fit this model.
    """
    config = make_config(method, **options)
    if config is None:
        return model.requires_grad_(True)
    for name, value in METHODS[method].model_fields(model).items():
        if name not in options:
            setattr(config, name, value)
    if isinstance(config, LoraConfig) and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # else its backward pass runs for nothing; PEFT lets biases that train out again
    return get_peft_model(model, config)


def method_settings(model: nn.Module, method: str) -> dict[str, Any]:
    """The values in force for the options of `method`, by option name, of a model that `apply_method` returned."""
    config = getattr(model, "peft_config", {}).get("default")
    values = {name: getattr(config, FIELD_NAMES.get(name, name)) for name in METHODS[method].options}
    return {name: value for name, value in values.items() if value is not None}


def query_value_names(model: nn.Module) -> list[str]:
    """What this model calls its query and value projections. Raises `ValueError` where it has none."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pair in QUERY_VALUE_NAMES:
        if names.issuperset(pair):
            return list(pair)
    raise ValueError(
        f"--method lora found no query and value projections in {type(model).__name__}: its linear layers are called "
        f"{', '.join(sorted(names))}, looked for {' or '.join(' and '.join(pair) for pair in QUERY_VALUE_NAMES)}."
    )
