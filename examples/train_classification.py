"""Fine-tunes an audio classifier of transformers with one of sixteen methods, on a folder of clips or a Hub data set.

    python train_classification.py --method ipet --num_virtual_tokens 4 --bottleneck_dim 32 \\
        --model_name_or_path MIT/ast-finetuned-audioset-10-10-0.4593 --data_dir DIR --fold 1 --output_dir OUT
    python train_classification.py --task frames --method ipet --model_name_or_path microsoft/wavlm-base \\
        --data_dir DIR --output_dir OUT

With `--task frames` DIR holds a metadata.csv with the columns file_name, label, start and stop (seconds), one line for each
event, or one with these three empty for a clip without any; each frame of the model then gets labels of its own.
All arguments of the Trainer work too. OUT receives the adapter (with `--method full` the model), the feature
extractor, the model card README.md, curves.png and all_results.json. Needs peft_audio[examples] and no other file.
"""

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from safetensors import SafetensorError
from torch import nn

import peft_audio
from peft_audio import load_classifier, load_frame_classifier, save_activations_in_half
from peft_audio.data import (
    AudioCollator,
    ClipTable,
    DataError,
    SequenceCollator,
    TrainingData,
    pads_to_fixed_seconds,
    prepare_frames,
    read_audiofolder,
)
from peft_audio.trainer import (
    METHODS,
    AudioTrainer,
    AudioTrainingArguments,
    UsageError,
    apply_method,
    multi_label_metrics,
    single_label_metrics,
)
from peft_audio.trainer.command_line import one_line, run_script, silence_peft
from peft_audio.trainer.frames import frame_grid, frame_metrics
from peft_audio.trainer.reports import describe_training, plot_curves, write_reports
from peft_audio.trainer.script_arguments import (
    ClipArguments,
    PretrainedArguments,
    argument,
    load_inputs,
    parse_script_arguments,
)
from peft_audio.whisper import padding_advice


SINGLE_LABEL, MULTI_LABEL = ("accuracy", "macro_f1"), ("map", "micro_f1")  # metrics
TASKS = ("auto", "classification", "multi_label", "frames")
logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)
silence_peft()


# ---- Arguments -------------------------------------------------------------------------------------------------------


@dataclass
class ModelArguments(PretrainedArguments):
    max_length: int | None = argument(None, "AST: frames (10 ms) of the input; the model's own if left out.")
    mask_padding: bool = argument(False, "Whisper: leave the padding of short clips out, see use_padding_mask.")
    cache_frozen: bool = argument(False, "Compute once what no epoch changes; a linear probe does so by itself.")


@dataclass
class DataArguments(ClipArguments):
    task: str = argument(
        "auto", "One label a clip, several, or labels of frames; auto: as the data are.", choices=TASKS
    )
    label_column_name: str = argument("label", "The column of --dataset_name with the labels.")
    streaming: bool = argument(False, "Train while --dataset_name is being fetched; needs --max_steps.")
    shuffle_buffer: int = argument(1000, "Clips of a stream that each next one is drawn from.")


def parse_arguments(arguments: list[str] | None = None):
    """The four groups of arguments, checked. Raises `UsageError` where they do not fit together."""
    groups = ModelArguments, DataArguments, AudioTrainingArguments
    parsed = parse_script_arguments(*groups, SINGLE_LABEL + MULTI_LABEL, arguments)
    model_args, data_args, _, args = parsed
    if data_args.streaming and (data_args.dataset_name is None or args.max_steps < 1 or data_args.fold is not None):
        needs = "give --dataset_name and --max_steps (the length of a stream is not known), and no --fold"
        raise UsageError(f"--streaming is for a data set on the Hub with splits of its own: {needs}.")
    if data_args.task == "frames" and data_args.dataset_name is not None:
        raise UsageError("--task frames reads events from a metadata.csv: give --data_dir instead of --dataset_name.")
    if data_args.task in ("multi_label", "frames") and args.label_smoothing_factor:
        raise UsageError(
            f"--label_smoothing_factor is for one label a clip: leave it out with --task {data_args.task}."
        )
    if data_args.streaming and model_args.cache_frozen:
        raise UsageError("--cache_frozen keeps what it computes of each clip, a stream does not end: leave one out.")
    return parsed


# ---- The run ---------------------------------------------------------------------------------------------------------


def load_data(args: DataArguments, model: nn.Module, feature_extractor, min_seconds: float, seed: int) -> TrainingData:
    """The clips for the task, with the labels of all or of the frames that `model` makes of them."""
    limits = {"min_seconds": min_seconds, "max_seconds": args.max_seconds, "skip_bad_files": args.skip_bad_files}
    if args.streaming:
        options = {"config_name": args.dataset_config_name, "shuffle_buffer": args.shuffle_buffer, "seed": seed}
        options |= {"audio_column": args.audio_column_name, "label_column": args.label_column_name}
        data = peft_audio.data.prepare_stream(args.dataset_name, feature_extractor, **options, **limits)
        if args.task not in ("auto", "multi_label" if data.multi_label else "classification"):
            kind = "lists" if data.multi_label else "one label a row"
            raise UsageError(f"--task {args.task}: the stream's column has {kind}. Leave --task or --streaming out.")
        return data
    options = {"fold": args.fold, "test_fraction": args.test_fraction, "seed": seed, "cache_dir": args.cache_dir}
    if args.task == "frames":
        try:
            grid = frame_grid(model, feature_extractor)
        except ValueError as error:
            raise UsageError(f"--task frames: {error}") from error
        table = read_audiofolder(args.data_dir, events=True)
        return prepare_frames(table, feature_extractor, grid, **options, **limits)
    table = for_task(args.read_table(label_column=args.label_column_name), args.task)
    return peft_audio.data.prepare_clips(table, feature_extractor, **options, **limits)


def for_task(table: ClipTable, task: str) -> ClipTable:
    """The clips with one label or several. Raises `DataError` where one has several and must have one."""
    several = [clip for clip in table.clips if len(clip.labels) != 1]
    if task == "classification" and several:
        clip = several[0]
        raise DataError(
            f"{table.origin}: --task classification is for one label a clip, {clip.name!r} has {len(clip.labels)}: "
            f"{'; '.join(clip.labels)}. Give --task multi_label, or correct the labels."
        )
    return table if task == "auto" else replace(table, multi_label=task == "multi_label")


def load_model(args, method_args, data_args, feature_extractor, labels=("a", "b"), multi_label: bool = False):
    """The model, set up for the task, the method and inputs of this length."""
    lengths = {"max_length": args.max_length}
    if pads_to_fixed_seconds(feature_extractor) and data_args.max_seconds is not None:
        lengths["max_seconds"] = feature_extractor.chunk_length
    try:
        if data_args.task == "frames":
            model = load_frame_classifier(args.model_name_or_path, labels)
        else:
            model = load_classifier(args.model_name_or_path, labels, multi_label=multi_label, **lengths)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {args.model_name_or_path}: {one_line(error)}") from error
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
    inputs = model_args.model_name_or_path, model_args.max_length, data_args.max_seconds
    feature_extractor, min_seconds = load_inputs(*inputs)
    setup = model_args, method_args, data_args, feature_extractor
    model = load_model(*setup)  # before the data are read, for what does not fit
    transformers.set_seed(args.seed)
    data = load_data(data_args, model, feature_extractor, min_seconds, args.seed)
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
    if args.label_smoothing_factor and data.multi_label:
        raise UsageError("--label_smoothing_factor is for one label a clip, and clips have several: leave it out.")
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
    metrics, collator = multi_label_metrics if data.multi_label else single_label_metrics, AudioCollator
    if data_args.task == "frames":
        metrics, collator = frame_metrics, SequenceCollator
    sets = {"train_dataset": data.train, "eval_dataset": data.evaluation}
    parts = {"data_collator": collator(feature_extractor), "processing_class": feature_extractor}
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
        report(trainer, data, data_args, results)
    return results


def report(trainer: AudioTrainer, data: TrainingData, data_args: DataArguments, results: dict) -> None:
    """Writes curves.png, the model card and all_results.json, and pushes the folder to the Hub if asked to."""
    hub_name, names = data_args.dataset_name, MULTI_LABEL if data.multi_label else SINGLE_LABEL
    plot_curves(trainer.state.log_history, Path(trainer.args.output_dir) / "curves.png", names)
    scores = {name: (results[f"eval_{name}"], results[f"eval_{name}_standard_error"]) for name in names}
    metrics = ["average_precision" if data.multi_label else "accuracy", "f1"]
    write_reports(
        trainer,
        results,
        training=describe_training(
            results, f"{data_args.data_name}, {data.description}", METHODS[results["method"]].summary
        ),
        scores=scores | {"loss": results["eval_loss"]},
        metadata={"metrics": metrics, "tags": [results["method"]], **({"datasets": [hub_name]} if hub_name else {})},
    )


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run_script(main)
