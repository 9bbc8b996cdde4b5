"""Fine-tunes an audio classifier of transformers with one of fifteen methods, on a folder of clips or a Hub data set.

    python train_classification.py --method ipet --num_virtual_tokens 4 --bottleneck_dim 32 \\
        --model_name_or_path MIT/ast-finetuned-audioset-10-10-0.4593 --data_dir DIR --fold 1 --output_dir OUT

All arguments of the Trainer work too. OUT receives the adapter (with `--method full` the model), the feature
extractor, the model card README.md, curves.png and all_results.json. Needs peft_audio[examples] and no other file.
"""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig

import peft_audio
from peft_audio import encoder_layers, head_modules, load_classifier, query_value_projections, save_activations_in_half
from peft_audio.data import AudioCollator, BadAudioError, DataError, TrainingData, pads_to_fixed_seconds
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, multi_label_metrics, single_label_metrics
from peft_audio.trainer.command_line import check_before_data, parse_dataclasses
from peft_audio.trainer.reports import describe_training, plot_curves
from peft_audio.whisper import padding_advice


SINGLE_LABEL, MULTI_LABEL = ("accuracy", "macro_f1"), ("map", "micro_f1")  # metrics
logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)


def silence_peft() -> None:
    """Hides what PEFT warns of for every model, though audio classifiers have no vocabulary that it could look for."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")


silence_peft()


class UsageError(ValueError):
    """Arguments that do not fit together; the message says which, and the way out."""


# ---- Methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What trains, its PEFT configuration (None: no adapter), the fields of it that differ from its defaults, the options
    of the command line that it takes, and the fields that depend on the model (options go first)."""

    summary: str
    config_class: type[PeftConfig] | None
    presets: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    head_learning_rate: float = 3e-3
    model_fields: Callable[[nn.Module], dict[str, Any]] = lambda model: {}


# Options of the command line whose field in the configuration has a name that would say too little there.
FIELD_NAMES = {"adapter_activation": "activation", "adapter_dropout": "dropout", "lora_r": "r"}
PROMPT = ("num_virtual_tokens", "prompt_dropout", "prompt_init")
WIDTH = ("layers_to_transform", "bottleneck_dim", "reduction_factor", "scaling", "adapter_dropout")
BOTTLENECK = (*WIDTH, "adapter_activation")
PARALLEL = (*BOTTLENECK, "adapter_input", "learn_scaling", "use_bias", "spatial_adapter", "spatial_bottleneck_dim")
CONVOLUTION = (*BOTTLENECK, "attention_kernel", "mlp_kernel", "adapter_input", "use_bias")
SITES = ("sites", "placement", "residual", "train_layer_norms")

IPET = {"adapter_input": "residual", "activation": "relu", "scaling": 0.1, "dropout": 0.1}
AAT_M = {"adapter_input": "normalized", "activation": "gelu", "scaling": 1.0, "dropout": 0.0, "reduction_factor": 4}
AAT_MS = AAT_M | {"spatial_adapter": True}
BITFIT = {"target_modules": DUMMY_TARGET_MODULES, "bias": "all"}  # needs no projections to train all biases
NO_LAYER = {"layers_to_transform": []}  # trains the head alone, and saves it as the other methods do

# fmt: off
METHODS = {
    "full": Method("all parameters", None, learning_rate=1e-4, head_learning_rate=1e-3),
    "linear_probe": Method("the head alone", peft_audio.ParallelMLPAdapterConfig, NO_LAYER),
    "partial": Method("the head and the upper half of the encoder layers", peft_audio.ParallelMLPAdapterConfig, NO_LAYER,
        learning_rate=1e-4, head_learning_rate=1e-3, model_fields=lambda model: {
            "modules_to_save": head_modules(model) + encoder_layers(model)[len(encoder_layers(model)) // 2:]}),
    "bitfit": Method("the head and all biases", LoraConfig, BITFIT,
        model_fields=lambda model: {"modules_to_save": head_modules(model)}),
    "lora": Method("LoRA on the query and value projections", LoraConfig, {"r": 8, "lora_alpha": 16},
        ("lora_r", "lora_alpha", "lora_dropout"), model_fields=lambda model: {
            "modules_to_save": head_modules(model), "target_modules": query_value_projections(model)}),
    "input_prompt": Method("values on the border of the model's input", peft_audio.InputPromptConfig, {},
        ("prompt_size",), learning_rate=1e-2),
    "embedding_prompt": Method("prompts in every layer", peft_audio.EmbeddingPromptConfig, {},
        ("layers_to_transform", *PROMPT)),
    "parallel_mlp": Method("IPET's adapter without its prompts", peft_audio.ParallelMLPAdapterConfig, IPET, PARALLEL),
    "time_freq_conv": Method("LoAA's convolutions over time and frequency, beside attention and the feed-forward blocks",
        peft_audio.TimeFreqConvAdapterConfig, {}, CONVOLUTION),
    "bottleneck": Method("bottleneck adapters beside or behind the blocks", peft_audio.BottleneckAdapterConfig, {},
        BOTTLENECK + SITES),
    "conformer": Method("Conformer adapters beside or behind the blocks", peft_audio.BottleneckAdapterConfig,
        {"block": "conformer"}, (*WIDTH, "conv_kernel", *SITES)),
    "aat_m": Method("AAT's adapter beside the feed-forward blocks", peft_audio.ParallelMLPAdapterConfig, AAT_M, PARALLEL),
    "aat_ms": Method("AAT's adapters beside the feed-forward blocks and after attention",
        peft_audio.ParallelMLPAdapterConfig, AAT_MS, PARALLEL),
    # VPT's start is worked out from the patch size; models of waveforms have none.
    "joint": Method("AAT's two adapters and prompts", peft_audio.IPETConfig, AAT_MS | {"num_virtual_tokens": 12},
        PROMPT + PARALLEL, model_fields=lambda model: {
            "prompt_init": "vpt" if hasattr(model.config, "patch_size") else "xavier_uniform"}),
    "ipet": Method("prompts in every layer and an adapter beside the feed-forward blocks", peft_audio.IPETConfig, {},
        PROMPT + PARALLEL),
}
# fmt: on


def make_config(method: str, **options) -> PeftConfig | None:
    """The PEFT configuration of `method` with these options; None for "full".

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
    settings = {FIELD_NAMES.get(name, name): parse_kernel(name, value) for name, value in options.items()}
    presets = dict(row.presets)
    if "bottleneck_dim" in options:
        presets.pop("reduction_factor", None)  # a preset width gives way to the one asked for
    return row.config_class and row.config_class(**presets | settings)


def parse_kernel(option: str, value: Any) -> Any:
    """A kernel size from FREQUENCYxTIME, auto or none; values of other options as they are."""
    if not option.endswith("_kernel") or not isinstance(value, str) or value == "auto":
        return value
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in value.split("x"))
    if value != "none" and (len(sizes) != 2 or any(size % 2 == 0 for size in sizes)):
        raise ValueError(
            f"--{option} must be FREQUENCYxTIME, two odd numbers (e.g. 1x3), auto or none, got {value!r}."
        )
    return None if value == "none" else sizes


def apply_method(model: nn.Module, method: str, **options) -> nn.Module:
    """Sets a classifier up for `method`: puts a `PeftModel` around it; for "full" all its parameters train.

    Raises:
        ValueError: as `make_config`, or the method does not fit this model.
    """
    config = make_config(method, **options)
    if config is None:
        return model.requires_grad_(True)
    for name, value in METHODS[method].model_fields(model).items():
        if name not in options:
            setattr(config, name, value)
    if isinstance(config, LoraConfig) and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # else its backward pass runs for nothing; BitFit lets its biases train again
    return get_peft_model(model, config)


# ---- Arguments -------------------------------------------------------------------------------------------------------


def argument(default: Any, help_text: str, **more) -> Any:
    return field(default=default, metadata={"help": help_text, **more})


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "The pretrained model: a folder, or a name on the Hub."})
    max_length: int | None = argument(None, "AST: frames (10 ms) of the input; the model's own if left out.")
    mask_padding: bool = argument(False, "Whisper: leave the padding of short clips out, see use_padding_mask.")
    cache_frozen: bool = argument(False, "Compute once what no epoch changes; a linear probe does so by itself.")
    half_precision_activations: bool = argument(False, "Keep what adapted layers save for backward in float16.")


@dataclass
class DataArguments:
    data_dir: str | None = argument(None, "Class folders, or metadata.csv (file_name, label, maybe fold or split).")
    dataset_name: str | None = argument(None, "A data set on the Hub, instead of --data_dir.")
    dataset_config_name: str | None = argument(None, "The configuration of that data set.")
    audio_column_name: str = argument("audio", "Its column with the audio.")
    label_column_name: str = argument("label", "Its column with the labels.")
    fold: str | None = argument(None, "Test on this fold, train on the rest.")
    test_fraction: float = argument(0.2, "Share of the clips that test, where neither fold nor split says which.")
    max_seconds: float | None = argument(None, "Cut longer clips to this length; a Whisper's input gets as short.")
    cache_dir: str | None = argument(None, "Keep the features in this folder, for other runs too; else in memory.")
    streaming: bool = argument(False, "Train while --dataset_name is being fetched; needs --max_steps.")
    shuffle_buffer: int = argument(1000, "Clips of a stream that each next one is drawn from.")
    skip_bad_files: bool = argument(False, "Leave unusable audio files out (and list them) instead of stopping.")


# Options whose type is not that of the configuration's default.
OPTION_TYPES = {"layers_to_transform": list[int], "sites": list[str], "reduction_factor": int}
OPTION_TYPES |= {"spatial_bottleneck_dim": int, "residual": bool}


def method_argument(option: str) -> tuple[str, Any, Any]:
    """A field of a configuration as an argument, which is None where it is left out."""
    config_class = next(row.config_class for row in METHODS.values() if option in row.options)
    original = config_class.__dataclass_fields__[FIELD_NAMES.get(option, option)]
    kind = OPTION_TYPES.get(option, type(original.default))
    more = {"nargs": "?", "const": True} if kind is bool else {}  # "True" can be left out
    more["aliases"] = [f"--{FIELD_NAMES[option]}"] if option in FIELD_NAMES else []
    return option, kind | None, argument(None, original.metadata.get("help", ""), **more)


METHOD = ("method", str, field(metadata={"help": "What is trained.", "choices": sorted(METHODS)}))
OPTIONS = dict.fromkeys(option for row in METHODS.values() for option in row.options)
GIVEN = {"options": lambda self: {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}}
MethodArguments = make_dataclass("MethodArguments", [METHOD, *map(method_argument, OPTIONS)], namespace=GIVEN)


def parse_arguments(arguments: list[str] | None = None):
    """The four groups of arguments, checked. Raises `UsageError` where they do not fit together."""
    try:
        parsed = parse_dataclasses((ModelArguments, DataArguments, MethodArguments, AudioTrainingArguments), arguments)
        model_args, data_args, method_args, args = parsed
        make_config(method_args.method, **method_args.options())
        check_before_data(args, vars(model_args) | vars(data_args), SINGLE_LABEL + MULTI_LABEL)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if (data_args.data_dir is None) == (data_args.dataset_name is None):
        raise UsageError("Give either --data_dir (a folder) or --dataset_name (a data set on the Hub).")
    if data_args.streaming and (data_args.dataset_name is None or args.max_steps < 1 or data_args.fold is not None):
        needs = "give --dataset_name and --max_steps (the length of a stream is not known), and no --fold"
        raise UsageError(f"--streaming is for a data set on the Hub with splits of its own: {needs}.")
    if data_args.streaming and model_args.cache_frozen:
        raise UsageError("--cache_frozen keeps what it computes of each clip, a stream does not end: leave one out.")
    row, is_given = METHODS[method_args.method], args.learning_rate is not None
    args.learning_rate = args.learning_rate if is_given else row.learning_rate
    if args.head_learning_rate is None:
        args.head_learning_rate = args.learning_rate if is_given else row.head_learning_rate
    args.remove_unused_columns = False  # the data sets hold exactly what the model takes
    return parsed


# ---- The run ---------------------------------------------------------------------------------------------------------


def load_data(args: DataArguments, feature_extractor, min_seconds: float, seed: int) -> TrainingData:
    columns = {"audio_column": args.audio_column_name, "label_column": args.label_column_name}
    limits = {"min_seconds": min_seconds, "max_seconds": args.max_seconds, "skip_bad_files": args.skip_bad_files}
    if args.streaming:
        options = {"config_name": args.dataset_config_name, "shuffle_buffer": args.shuffle_buffer, "seed": seed}
        return peft_audio.data.prepare_stream(args.dataset_name, feature_extractor, **options, **columns, **limits)
    if args.dataset_name:
        table = peft_audio.data.read_hub_dataset(args.dataset_name, args.dataset_config_name, **columns)
    else:
        table = peft_audio.data.read_audiofolder(args.data_dir)
    split = {"fold": args.fold, "test_fraction": args.test_fraction, "seed": seed}
    return peft_audio.data.prepare_clips(table, feature_extractor, cache_dir=args.cache_dir, **split, **limits)


def load_inputs(args: ModelArguments, max_seconds: float | None):
    """The model's feature extractor, and the length in seconds of the shortest clip that it takes."""
    name = args.model_name_or_path
    try:
        feature_extractor = peft_audio.data.load_feature_extractor(name, args.max_length, max_seconds)
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        reason = f"neither a folder with a model and its feature extractor, nor one on the Hub ({str(error).splitlines()[0]})"
        raise UsageError(f"--model_name_or_path {name}: {reason}") from None
    except ValueError as error:  # e.g. max_length for a model of waveforms
        raise UsageError(f"--{error}") from None
    min_seconds = peft_audio.data.minimum_seconds(config, feature_extractor.sampling_rate)
    if max_seconds is not None and max_seconds < min_seconds:
        raise UsageError(f"--max_seconds {max_seconds}: this model needs at least {min_seconds:.3f} s.")
    return feature_extractor, min_seconds


def load_model(args, method_args, feature_extractor, max_seconds, labels=("a", "b"), multi_label: bool = False):
    """The model, set up for the method and for inputs of this length."""
    lengths = {"max_length": args.max_length}
    if pads_to_fixed_seconds(feature_extractor) and max_seconds is not None:
        lengths["max_seconds"] = feature_extractor.chunk_length
    try:
        model = load_classifier(args.model_name_or_path, labels, multi_label=multi_label, **lengths)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {args.model_name_or_path}: {' '.join(str(error).split())}") from error
    try:
        model = peft_audio.use_padding_mask(model) if args.mask_padding else model
        model = apply_method(model, method_args.method, **method_args.options())
        if args.half_precision_activations:
            save_activations_in_half(model)
    except ValueError as error:  # what only the model shows, e.g. a kernel over frequency on a model of waveforms
        raise UsageError(f"--method {method_args.method}: {error}") from error
    return model


def main(arguments: list[str] | None = None) -> dict:
    """Trains as the command line (or `arguments`) says. Returns the content of all_results.json."""
    model_args, data_args, method_args, args = parse_arguments(arguments)
    feature_extractor, min_seconds = load_inputs(model_args, data_args.max_seconds)
    setup = model_args, method_args, feature_extractor, data_args.max_seconds
    load_model(*setup)  # before the data are read, for what does not fit
    transformers.set_seed(args.seed)
    data = load_data(data_args, feature_extractor, min_seconds, args.seed)
    advise(args, data, feature_extractor, data_args.max_seconds)
    model = load_model(*setup, data.labels, data.multi_label)
    with tempfile.TemporaryDirectory(prefix="frozen-states-") as folder:
        if model_args.cache_frozen or (method_args.method == "linear_probe" and not data_args.streaming):
            data = with_frozen_states(model, data, folder, model_args.cache_frozen)
        results = {"method": method_args.method} | {k: v for k, v in vars(args).items() if k.endswith("learning_rate")}
        return run(model, args, data, data_args, feature_extractor, results)


def advise(args, data: TrainingData, feature_extractor, max_seconds: float | None) -> None:
    """Says what the data show of the arguments. Raises `UsageError` where the metric is not one of these data's."""
    try:
        peft_audio.trainer.check_metric(args, MULTI_LABEL if data.multi_label else SINGLE_LABEL)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.load_best_model_at_end and data.evaluation is data.test:
        logger.warning("There is no validation split, so the best checkpoint is chosen by the test clips.")
    if pads_to_fixed_seconds(feature_extractor) and max_seconds is not None:
        logger.info("The model's input is now %d s long.", feature_extractor.chunk_length)
    elif pads_to_fixed_seconds(feature_extractor) and hasattr(data.train, "__len__"):
        for advice in padding_advice(feature_extractor, data.train):
            logger.warning(advice)


def with_frozen_states(model: nn.Module, data: TrainingData, folder: str, is_asked: bool) -> TrainingData:
    """The data with what the frozen part makes of each clip in its place; as they are, where that cannot be."""
    try:
        return peft_audio.trainer.cache_training_data(model, data, folder)
    except ValueError as error:
        if is_asked:
            raise UsageError(f"--cache_frozen: {error}") from error
        logger.info("Every epoch runs the whole model: %s", error)
        return data


def run(model: nn.Module, args, data: TrainingData, data_args, feature_extractor, results: dict) -> dict:
    """Trains, saves, tests and reports. Returns `results` with what comes out."""
    metrics = multi_label_metrics if data.multi_label else single_label_metrics
    sets = {"train_dataset": data.train, "eval_dataset": data.evaluation}
    parts = {"data_collator": AudioCollator(feature_extractor), "processing_class": feature_extractor}
    trainer = AudioTrainer(model, args, **sets, **parts, compute_metrics=metrics)
    training = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trainer.save_model(_internal_call=True)  # else it pushes to the Hub at once, without the card
    results |= {
        **training,
        "adapter_bytes": peft_audio.trainer.saved_bytes(args.output_dir),
        "train_seconds": training["train_runtime"],
    }
    has_probe = args.compare_with_probe and peft_audio.trainer.has_frozen_base(model) and args.world_size == 1
    results |= trainer.test(data.test, data.train if has_probe and not data_args.streaming else None)
    results |= peft_audio.trainer.parameter_counts(trainer.model) | {
        "train_samples": None if data_args.streaming else len(data.train),  # a stream has no length
        "skipped_files": data.skipped,
    }
    results["problem"] = peft_audio.trainer.problem_at_the_end(trainer.state.log_history)
    if trainer.is_world_process_zero():
        write_reports(trainer, data, data_args, results)
    return results


def write_reports(trainer: AudioTrainer, data: TrainingData, data_args: DataArguments, results: dict) -> None:
    """Writes curves.png, the model card and all_results.json, and pushes the folder to the Hub if asked to."""
    args, folder, hub_name = trainer.args, Path(trainer.args.output_dir), data_args.dataset_name
    data_name = hub_name or Path(data_args.data_dir).name
    names = MULTI_LABEL if data.multi_label else SINGLE_LABEL
    plot_curves(trainer.state.log_history, folder / "curves.png", names)
    scores = {name: (results[f"eval_{name}"], results[f"eval_{name}_standard_error"]) for name in names}
    metrics = ["average_precision" if data.multi_label else "accuracy", "f1"]
    metadata = {"metrics": metrics, "tags": [results["method"]], **({"datasets": [hub_name]} if hub_name else {})}
    peft_audio.write_card(
        folder,
        model=trainer.model,
        location=(args.push_to_hub and trainer.hub_model_id) or args.output_dir,
        training=describe_training(results, f"{data_name}, {data.description}", METHODS[results["method"]].summary),
        results=scores | {"loss": results["eval_loss"]},
        metadata=metadata,
    )
    (folder / "all_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if args.push_to_hub:  # as it is: Trainer.push_to_hub would replace the card by its own
        content = {"folder_path": args.output_dir, "ignore_patterns": ["checkpoint-*", "_*"]}
        content["commit_message"] = "Training finished"
        huggingface_hub.upload_folder(repo_id=trainer.hub_model_id, token=args.hub_token, **content)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        problem = main()["problem"]
    except (BadAudioError, DataError, OSError, UsageError) as error:
        sys.exit(f"error: {error}")
    sys.exit(problem and f"error: {problem} What was trained so far is saved.")
