"""Fine-tunes an audio classifier of transformers with one of the methods in `methods.py`.

    python examples/train_classification.py --method ipet --num_virtual_tokens 4 --bottleneck_dim 32 \\
        --model_name_or_path MIT/ast-finetuned-audioset-10-10-0.4593 --data_dir DIR --fold 1 --output_dir OUT

All arguments of the Trainer work too. OUT receives the adapter (with `--method full` the model), the feature
extractor, the model card README.md, curves.png and all_results.json.
"""

import functools
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


sys.path.append(str(Path(__file__).resolve().parents[1] / "method_comparison"))

from audio_data import AudioCollator, BadAudioError, minimum_seconds
from clip_table import DataError
from methods import METHODS, MethodArguments, apply_method, make_config, method_settings
from peft import PeftModel
from reporting import CardFacts, plot_curves, write_json, write_model_card
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from training.checkpoints import CheckpointingTrainer
from training.losses import classification_loss
from training_data import prepare_data
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from peft_audio import last_complete_checkpoint, resize_ast, save_activations_in_half
from peft_audio.backbones.table import resolve


logger = logging.getLogger(__name__)


class UsageError(ValueError):
    """Arguments that do not fit together; the message says which, and the way out."""


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "The pretrained model: a folder, or a name on the Hub."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "AST: frames (10 ms) the input is cut or padded to; the model's own if left out."},
    )
    half_precision_activations: bool = field(
        default=False, metadata={"help": "Keep what the backward pass needs of adapted layers in float16."}
    )


@dataclass
class DataArguments:
    data_dir: str | None = field(
        default=None, metadata={"help": "Class folders, or metadata.csv (file_name, label, optionally fold or split)."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, instead of --data_dir."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of that data set."})
    audio_column_name: str = field(default="audio", metadata={"help": "Its column with the audio."})
    label_column_name: str = field(default="label", metadata={"help": "Its column with the labels."})
    fold: str | None = field(default=None, metadata={"help": "Test on this fold, train on the rest."})
    test_fraction: float = field(
        default=0.2, metadata={"help": "Share of the clips that test, where neither fold nor split says which."}
    )
    max_seconds: float | None = field(default=None, metadata={"help": "Cut longer clips to this length."})
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Keep the features in this folder, for other runs too; in memory if left out."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Train while --dataset_name is being fetched; needs --max_steps."}
    )
    shuffle_buffer: int = field(default=1000, metadata={"help": "Clips of a stream that each next one is drawn from."})
    skip_bad_files: bool = field(
        default=False, metadata={"help": "Leave unusable audio files out (and list them) instead of stopping."}
    )


@dataclass
class AudioTrainingArguments(TrainingArguments):
    """The Trainer's arguments, with defaults for this job."""

    num_train_epochs: float = field(default=15, metadata={"help": "Number of training epochs."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Training clips a step and device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Evaluation clips a step and device."})
    learning_rate: float | None = field(default=None, metadata={"help": "The method's own if left out."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate's schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or (below 1) share of all steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, epoch or steps."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: no, epoch or steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write checkpoints: no, epoch or steps."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept."})
    report_to: str | None = field(default="none", metadata={"help": "Where to log besides, e.g. tensorboard."})
    hub_strategy: str = field(default="end", metadata={"help": "When to push to the Hub, with --push_to_hub."})
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "Pin memory; of use with an accelerator only."}
    )


def main(arguments: list[str] | None = None) -> dict:
    """Trains as the command line (or `arguments`) says. Returns the content of all_results.json."""
    model_args, data_args, method_args, args = parse_arguments(arguments)
    set_seed(args.seed)

    config = load_config(model_args.model_name_or_path)
    feature_extractor = load_feature_extractor(model_args.model_name_or_path, config, model_args.max_length)
    min_seconds = minimum_seconds(config, feature_extractor.sampling_rate)
    if data_args.max_seconds is not None and data_args.max_seconds < min_seconds:
        raise UsageError(f"--max_seconds {data_args.max_seconds}: this model needs at least {min_seconds:.3f} s.")
    data = prepare_data(data_args, feature_extractor, min_seconds, args.seed)
    if args.load_best_model_at_end and data.evaluation is data.test:
        logger.warning("There is no validation split, so the best checkpoint is chosen by the test clips.")

    model = load_model(model_args.model_name_or_path, data.labels, data.multi_label, model_args.max_length)
    try:
        model = apply_method(model, method_args.method, **method_args.options())
        if model_args.half_precision_activations:
            save_activations_in_half(model)
    except ValueError as error:  # what only the model shows, e.g. a kernel over frequency on a model of waveforms
        raise UsageError(f"--method {method_args.method}: {error}") from error
    trainer = build_trainer(model, args, feature_extractor, data.train, data.evaluation, data.multi_label)
    train_result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
    test_metrics = trainer.evaluate(data.test)
    test_samples, errors = standard_errors(trainer, data.test)
    trainer.save_model(_internal_call=True)  # else it pushes to the Hub at once, without the card

    results = {
        "method": method_args.method,
        "learning_rate": args.learning_rate,
        **train_result.metrics,
        **test_metrics,
        **errors,
        **parameter_counts(model),
        "adapter_bytes": saved_bytes(Path(args.output_dir), method_args.method),
        "train_seconds": train_result.metrics["train_runtime"],
        "train_samples": None if data_args.streaming else len(data.train),
        "eval_samples": test_samples,
        "skipped_files": data.skipped,
    }
    if trainer.is_world_process_zero():
        facts = CardFacts(
            location=(args.push_to_hub and trainer.hub_model_id) or args.output_dir,
            base_model=model_args.model_name_or_path,
            method=method_args.method,
            summary=METHODS[method_args.method].summary,
            settings=method_settings(model, method_args.method),
            labels=data.labels,
            multi_label=data.multi_label,
            sampling_rate=feature_extractor.sampling_rate,
            max_length=getattr(model.config, "max_length", None) if hasattr(config, "patch_size") else None,
            resized=model_args.max_length is not None,
            results=results,
            data=data.description,
            dataset_name=data_args.dataset_name,
        )
        write_reports(Path(args.output_dir), facts, trainer.state.log_history)
        if args.push_to_hub:
            upload(trainer)
    return results


def parse_arguments(arguments: list[str] | None = None):
    """The four groups of arguments, checked. Raises `UsageError` where they do not fit together."""
    parser = HfArgumentParser((ModelArguments, DataArguments, MethodArguments, AudioTrainingArguments))
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        parsed = parser.parse_json_file(arguments[0])
    else:
        parsed = parser.parse_args_into_dataclasses(arguments)
    _, data_args, method_args, args = parsed
    try:
        make_config(method_args.method, **method_args.options())
    except ValueError as error:
        raise UsageError(str(error)) from None
    if (data_args.data_dir is None) == (data_args.dataset_name is None):
        raise UsageError("Give either --data_dir (a folder) or --dataset_name (a data set on the Hub).")
    if data_args.streaming and (data_args.dataset_name is None or args.max_steps < 1 or data_args.fold is not None):
        raise UsageError(
            "--streaming is for a data set on the Hub with splits of its own: give --dataset_name and --max_steps (the "
            "length of a stream is not known), and no --fold."
        )
    if args.learning_rate is None:
        args.learning_rate = METHODS[method_args.method].learning_rate
    args.label_names = args.label_names or ["labels"]
    args.remove_unused_columns = False  # the data sets hold exactly what the model takes
    return parsed


def load_config(name: str):
    """The configuration of the model. Raises `UsageError` where there is no such model."""
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        raise UsageError(
            f"--model_name_or_path {name}: neither a folder with a model, nor a model that can be had from the Hub "
            f"({str(error).splitlines()[0]})"
        ) from None


def load_feature_extractor(name: str, config, max_length: int | None = None):
    """The model's feature extractor, its number of frames that of the model (AST), or `max_length` if given."""
    feature_extractor = AutoFeatureExtractor.from_pretrained(name)
    if hasattr(config, "patch_size"):
        feature_extractor.max_length = max_length or config.max_length
    elif max_length is not None:
        raise UsageError(
            f"--max_length {max_length} is for AST, whose input has a fixed number of frames; {name} is of type "
            f"{config.model_type!r}. To cut long clips use --max_seconds."
        )
    return feature_extractor


def load_model(name: str, labels: list[str], multi_label: bool = False, max_length: int | None = None, **options):
    """The pretrained classifier with these labels and a new output layer, taking `max_length` frames (AST); `options`
    are fields of its configuration."""
    old_labels = list(AutoConfig.from_pretrained(name).id2label.values())
    model = AutoModelForAudioClassification.from_pretrained(
        name,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=f"{'multi' if multi_label else 'single'}_label_classification",
        ignore_mismatched_sizes=True,
        **options,
    )
    if old_labels != labels and len(old_labels) == len(labels):
        renew_output_layer(model)  # as many labels, but other ones: the old weights were loaded
    if max_length is not None:
        resize_ast(model, max_length=max_length)
    return model


def renew_output_layer(model: PreTrainedModel) -> None:
    for name in resolve(model).head:
        for module in model.get_submodule(name).modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == model.config.num_labels:
                torch.nn.init.normal_(module.weight, std=model.config.initializer_range)
                torch.nn.init.zeros_(module.bias)


def build_trainer(model, args, feature_extractor, train_set, eval_set, multi_label: bool) -> Trainer:
    return CheckpointingTrainer(
        model=model,
        args=args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=AudioCollator(feature_extractor),
        processing_class=feature_extractor,
        compute_metrics=multi_label_metrics if multi_label else single_label_metrics,
        compute_loss_func=functools.partial(classification_loss, label_smoothing=args.label_smoothing_factor),
        callbacks=[GradientCheck()],
    )


def single_label_metrics(prediction) -> dict[str, float]:
    """Accuracy and macro-F1 of logits (clips, labels) against class indices (clips,)."""
    predicted = first(prediction.predictions).argmax(axis=-1)
    return {
        "accuracy": accuracy_score(prediction.label_ids, predicted),
        "macro_f1": f1_score(prediction.label_ids, predicted, average="macro", zero_division=0),
    }


def multi_label_metrics(prediction) -> dict[str, float]:
    """Mean average precision and micro-F1 of logits (clips, labels) against 0/1 targets (clips, labels).

    Average precision is the mean over the labels that some clip has: it is undefined for the others.
    """
    logits, targets = first(prediction.predictions), prediction.label_ids
    present = targets.any(axis=0)
    return {
        "map": average_precision_score(targets[:, present], logits[:, present], average="macro"),
        "micro_f1": f1_score(targets, logits > 0, average="micro", zero_division=0),
    }


def standard_errors(trainer: Trainer, test_set, num_resamples: int = 100) -> tuple[int, dict[str, float]]:
    """The number of test clips, and by eval_<metric>_standard_error the bootstrap standard error over them of every
    metric, 0 for a single clip."""
    output = trainer.predict(test_set)
    logits, targets = first(output.predictions), output.label_ids

    def metrics_of(clips: np.ndarray) -> np.ndarray:
        return np.array(list(trainer.compute_metrics(EvalPrediction(logits[clips], targets[clips])).values()))

    random = np.random.default_rng(0)
    resamples = random.integers(len(targets), size=(num_resamples, len(targets)))
    errors = np.std([metrics_of(clips) for clips in resamples], axis=0, ddof=1)
    names = trainer.compute_metrics(EvalPrediction(logits, targets))
    return len(targets), {f"eval_{name}_standard_error": float(error) for name, error in zip(names, errors)}


def first(predictions) -> np.ndarray:
    """The logits; a model set to return its hidden states puts them behind."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


class GradientCheck(TrainerCallback):
    """Warns when parameters that should train have had no gradient in the whole first epoch."""

    def __init__(self):
        self.waiting = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.waiting is None:
            self.waiting = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.waiting = {name: parameter for name, parameter in self.waiting.items() if parameter.grad is None}

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.waiting:
            logger.warning(
                "%d of the parameters to train got no gradient, so they stay as they are: %s%s. If they are the "
                "method's own, it cannot reach this kind of model: choose another --method.",
                len(self.waiting),
                ", ".join(list(self.waiting)[:3]),
                ", ..." if len(self.waiting) > 3 else "",
            )
            self.waiting = {}


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """The checkpoint folder to go on from: the one named, or the last complete one in the output folder for "True"."""
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    found = last_complete_checkpoint(args.output_dir) if str(wanted).lower() in ("true", "last") else wanted
    if found is None or not Path(found).is_dir():
        raise UsageError(
            f"--resume_from_checkpoint {wanted}: no such checkpoint. Give a checkpoint-N folder, or True for the last "
            f"one in {args.output_dir}."
        )
    return found


def parameter_counts(model) -> dict[str, int]:
    """Trainable and total parameters, as PEFT's `print_trainable_parameters` counts them."""
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
    else:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
    return {"trainable_parameters": trainable, "total_parameters": total}


def saved_bytes(folder: Path, method: str) -> int:
    """Size of the weights a run has saved: the adapter's, or the whole model's."""
    pattern = "model*.safetensors" if method == "full" else "adapter_model.safetensors"
    return sum(file.stat().st_size for file in folder.glob(pattern))


def write_reports(folder: Path, facts: CardFacts, log_history: list[dict]) -> None:
    plot_curves(log_history, folder / "curves.png", tuple(facts.metrics))
    write_model_card(folder, facts)
    write_json(folder / "all_results.json", facts.results)


def upload(trainer: Trainer) -> None:
    """Pushes the output folder as it is. (`Trainer.push_to_hub` would replace the card by its own.)"""
    from huggingface_hub import upload_folder

    upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        token=trainer.args.hub_token,
        ignore_patterns=["checkpoint-*", "_*"],
        commit_message="Training finished",
    )


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        main()
    except (BadAudioError, DataError, UsageError) as error:
        sys.exit(f"error: {error}")
