"""Compares methods on Whisper tiny.en's encoder and ESC-10: whole training sets, and 1 to 16 clips a class.

    python method_comparison/real_model.py --data_dir ESC10 --output_dir OUT --jobs 2
    python method_comparison/real_model.py --data_dir ESC10 --output_dir OUT --jobs 2 --shots 4 --methods ipet lora
    python method_comparison/real_model.py --output_dir OUT --table --plot shots.png

ESC10 is an `audiofolder` with five folds. OUT/results.jsonl gets a line for each run as it ends, with the classes that
it predicted, so an interrupted comparison goes on where it was, and no run is repeated. Inputs are 5 s long. A GPU is used
where there is one. `--cpu` trains on CPU cores, into OUT/cpu.jsonl: the tables take from it what a run costs there.

A run with N shots draws N clips of each class from the folds that train, by its seed: the same for all methods.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import examples_path
import numpy as np
import torch
from comparison_runs import RunArguments, append_missing, check_file, read_records
from real_model_report import print_report
from real_model_rows import EPOCHS, ROWS, Row
from train_classification import apply_method, single_label_metrics
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from peft_audio import cache_frozen, load_classifier
from peft_audio.data import (
    AudioCollator,
    Clip,
    FeatureCache,
    FeatureDataset,
    load_feature_extractor,
    read_audiofolder,
)
from peft_audio.trainer import AudioTrainer, AudioTrainingArguments, logits_of, parameter_counts
from peft_audio.trainer.command_line import parse_dataclasses
from peft_audio.utils.arguments import run_command


MODEL = examples_path.EXAMPLES / "assets" / "whisper-tiny.en-encoder"
SECONDS = 5
# They leave all that the encoder computes as it is, so it runs once for each training clip. The weighted layer sum does so
# too, but what `cache_frozen` keeps is not enough for it.
CACHED = ("linear_probe", "side_network")


@dataclass
class SharedArguments(RunArguments):
    """Of this script and of real_model_rates.py."""

    data_dir: str | None = field(default=None, metadata={"help": "ESC-10 as an audiofolder with a column fold."})
    model_name_or_path: str = field(default=str(MODEL), metadata={"help": "A Whisper."})
    methods: list[str] = field(
        default_factory=lambda: list(ROWS), metadata={"help": "Rows of the table.", "choices": list(ROWS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds; with --shots: of the draws too."})


@dataclass
class Arguments(SharedArguments):
    shots: list[int] | None = field(default=None, metadata={"help": "Training clips of a class; without: all clips."})
    folds: list[str] = field(
        default_factory=lambda: list("12345"),
        metadata={"help": "The folds to test on, and that the tables are of.", "choices": list("12345")},
    )
    cpu: bool = field(default=False, metadata={"help": "Train on the CPU, into OUT/cpu.jsonl."})
    plot: str | None = field(default=None, metadata={"help": "The picture of accuracy over shots to write."})


class Source(NamedTuple):
    """What all runs read: the model, the clips, the folder of their features; and whether they leave a GPU alone."""

    model_name: str
    data_dir: str
    cache_dir: str
    cpu: bool = False


class Run(NamedTuple):
    """One training: a row, the clips of a class (None: all), the test fold, the seed."""

    row: str
    shots: int | None
    fold: str
    seed: int


def main(arguments: list[str] | None = None) -> list[dict]:
    """Trains what is missing and prints the tables. Returns the records of all runs.

    Raises:
        UsageError: the arguments do not fit together.
    """
    (args,) = parse_dataclasses([Arguments], arguments)
    folder = Path(args.output_dir)
    path = folder / ("cpu.jsonl" if args.cpu else "results.jsonl")
    run_missing(args, path, wanted_runs(args), train, args.cpu)
    records = [record for record in read_records(path) if record["fold"] in args.folds]
    print_report(records, read_records(folder / "cpu.jsonl"), args.plot)
    return records


def wanted_runs(args: Arguments) -> list[Run]:
    """The runs that the arguments ask for, those that compare all methods first."""
    # With few clips a draw and a test fold go together, so that draws cover the folds.
    if args.shots is None:
        return [Run(row, None, fold, seed) for seed in args.seeds for fold in args.folds for row in args.methods]
    fold_of = {seed: args.folds[seed % len(args.folds)] for seed in args.seeds}
    return [Run(row, n, fold_of[seed], seed) for seed in args.seeds for n in args.shots for row in args.methods]


def run_missing(
    args: SharedArguments, path: Path, runs: list, train_one: Callable[[Source, Any], dict], cpu: bool = False
) -> None:
    """Appends what `train_one` returns for those of `runs` that the file at `path` lacks; with --table nothing.

    Raises:
        UsageError: there is no data to train on, or no file to print.
    """
    if args.table:
        return check_file(path)
    with tempfile.TemporaryDirectory() as cache_dir:
        source = Source(args.model_name_or_path, args.data_dir, cache_dir, cpu)
        load_data(source)  # computes the features, once for all processes
        append_missing(path, runs, functools.partial(train_one, source), args.jobs)


def train(source: Source, run: Run) -> dict[str, Any]:
    """Trains one run and tests it. Returns its record."""
    clips = load_data(source)[0]
    chosen = draw([clip for clip in clips if clip.fold != run.fold], run.shots, run.seed)
    tested = [clip for clip in clips if clip.fold == run.fold]
    figures = fit(source, ROWS[run.row], (chosen, tested), EPOCHS[run.shots], run.seed)
    return {**run._asdict(), **figures}


def fit(source: Source, row: Row, parts: tuple[list, list], epochs: int, seed: int) -> dict[str, Any]:
    """Trains `row` on the first of two lists of clips and tests it on the second. Returns what a record keeps."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    clips, features, extractor = load_data(source)
    labels = sorted({label for clip in clips for label in clip.labels})
    sets = [FeatureDataset(part, features, labels) for part in parts]
    set_seed(seed)
    model = load_classifier(source.model_name, labels, max_seconds=SECONDS, **row.model_fields)
    device = torch.device("cpu" if source.cpu or not torch.cuda.is_available() else "cuda")
    model = apply_method(model, row.method, **row.options).to(device)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()  # what else the machine does, and pauses, do not count
        training_set, test_set = sets
        if row.method in CACHED and not row.model_fields:
            training_set = cache_frozen(model, training_set, Path(folder) / "frozen")
        trainer = make_trainer(model, row, epochs, seed, (training_set, extractor), folder)
        outcome = trainer.train()
        seconds = time.process_time() - started
        output = trainer.predict(test_set)
    logits = logits_of(output.predictions)
    return {
        "accuracy": float((logits.argmax(1) == output.label_ids).mean()),
        "train_loss": outcome.training_loss,
        "test_loss": output.metrics["test_loss"],
        "seconds": seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "training_clips": len(parts[0]),
        **parameter_counts(model),
        "learning_rate": row.learning_rate,
        "head_learning_rate": row.head_learning_rate,
        "epochs": epochs,
        "labels": output.label_ids.tolist(),
        "predicted": logits.argmax(1).tolist(),
    }


def make_trainer(model, row: Row, epochs: int, seed: int, data: tuple, folder: str) -> AudioTrainer:
    training_set, extractor = data
    arguments = AudioTrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        learning_rate=row.learning_rate,
        head_learning_rate=row.head_learning_rate,
        seed=seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
    )
    parts = {"data_collator": AudioCollator(extractor), "compute_metrics": single_label_metrics}
    trainer = AudioTrainer(model, arguments, train_dataset=training_set, **parts)
    trainer.remove_callback(PrinterCallback)
    return trainer


def draw(clips: list, shots: int | None, seed: int) -> list:
    """`shots` clips of each class, by the seed; all clips for None."""
    if shots is None:
        return clips
    generator, chosen = np.random.default_rng(seed), []
    for label in sorted({clip.labels for clip in clips}):
        of_class = [clip for clip in clips if clip.labels == label]
        chosen += [of_class[index] for index in generator.permutation(len(of_class))[:shots]]
    return chosen


@functools.cache  # once a process: its runs share the features
def load_data(source: Source) -> tuple[list[Clip], dict[str, dict[str, np.ndarray]], Any]:
    """The clips, their features by name, and the feature extractor."""
    clips = read_audiofolder(source.data_dir).clips
    extractor = load_feature_extractor(source.model_name, max_seconds=SECONDS)
    features = FeatureCache(source.cache_dir, extractor, max_seconds=SECONDS).compute(clips)
    return clips, {clip.name: features[clip.name] for clip in clips}, extractor


if __name__ == "__main__":
    run_command(main)
