"""Compares fine-tuning methods on ESC-10: official folds, several seeds, learning rates chosen without the test fold.

    python method_comparison/esc10.py --data_dir ESC10 --output_dir OUT --jobs 2
    python method_comparison/esc10.py --data_dir ESC10 --output_dir OUT --jobs 2 --methods sizes --seeds 0
    python method_comparison/esc10.py --output_dir OUT --table --plot sizes.png

ESC10 is an `audiofolder` whose metadata.csv has the columns file_name, label and fold. For each method and test fold,
every candidate learning rate trains on all other folds but one and is judged on that one; the best then trains on all
other folds, once a seed, and is tested. OUT/results.json keeps every single run and is written anew after each, so an
interrupted comparison goes on where it was, and no run is ever repeated.

The table has one row a method, `esc10_rows.py` lists them. A name with an @ (`ipet@8-32`) is a row at another size. It
takes the learning rates chosen for its row (they are chosen first where that is still to do), so it costs test runs
alone; --sizes prints the sizes too. --plot draws accuracy over the share of the backbone's parameters that trains, each
row and its sizes as one curve.
"""

import functools
import hashlib
import json
import tempfile
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import examples_path
import torch
from comparison_arguments import check_arguments
from esc10_plot import plot_sizes
from esc10_rows import LEARNING_RATES, OPTIONS, ROWS, expand, method_of, row_of
from esc10_table import print_table
from files import write_json
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from peft_audio import head_modules, load_classifier
from peft_audio.data import (
    AudioCollator,
    BadAudioError,
    DataError,
    FeatureDataset,
    extract_features,
    load_feature_extractor,
    read_audiofolder,
)
from peft_audio.trainer import (
    AudioTrainer,
    AudioTrainingArguments,
    UsageError,
    apply_method,
    parameter_counts,
    single_label_metrics,
)
from peft_audio.trainer.command_line import parse_dataclasses
from peft_audio.utils.arguments import run_command


BUNDLED_BACKBONE = examples_path.EXAMPLES / "assets" / "ast-tiny-synthetic"

SELECTION_SEED = 0  # whatever --seeds is, so that seeds can be added without choosing learning rates anew


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Where results.json is, or will be."})
    data_dir: str | None = field(default=None, metadata={"help": "ESC-10 as an audiofolder with a column fold."})
    model_name_or_path: str = field(default=str(BUNDLED_BACKBONE), metadata={"help": "The pretrained AST."})
    methods: list[str] = field(
        default_factory=lambda: ["rows"],
        metadata={
            "help": "Rows of the table, rows at other sizes (NAME@SIZE), or all of either: rows, sizes.",
            "choices": ["rows", "sizes", *OPTIONS],
            "metavar": "NAME",
        },
    )
    folds: list[str] = field(default_factory=lambda: list("12345"), metadata={"help": "The folds to test on."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the test runs."})
    epochs: int = field(default=10, metadata={"help": "Epochs of every run."})
    batch_size: int = field(default=16, metadata={"help": "Training clips a step."})
    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Candidates for every method; by default each method has its own."}
    )
    jobs: int = field(default=1, metadata={"help": "Runs at a time, each on one thread."})
    table: bool = field(default=False, metadata={"help": "Only print the table of the results there are."})
    sizes: bool = field(default=False, metadata={"help": "Print the rows' other sizes too."})
    plot: str | None = field(
        default=None, metadata={"help": "The picture of accuracy over trainable parameters to write, e.g. sizes.png."}
    )

    def __post_init__(self):
        self.methods = expand(self.methods)
        check_arguments(self)


class Run(NamedTuple):
    """One training. `stage` is "select" (judged on a fold held out of the training folds) or "test"."""

    method: str
    stage: str
    test_fold: str
    learning_rate: float
    seed: int


class Settings(NamedTuple):
    """What all runs of one results file share."""

    model: str
    weights_sha256: str | None
    data: str
    epochs: int
    batch_size: int
    options: dict[str, dict[str, Any]]
    learning_rates: dict[str, list[float]]


def main(arguments: list[str] | None = None) -> dict:
    """Trains what is missing, prints the table and draws the picture. Returns the content of results.json.

    Raises:
        UsageError: the arguments do not fit together, the data, or the runs in results.json.
    """
    (args,) = parse_dataclasses([Arguments], arguments)
    path = Path(args.output_dir) / "results.json"
    results = read_results(path) if path.is_file() else None
    if not args.table:
        results = run_missing(args, results, path)
    elif results is None:
        raise UsageError(f"--table: there is no {path}. Run the comparison first, without --table.")
    results["summary"] = summarize(by_run(results["runs"]), results["settings"]["learning_rates"])
    if not args.table:
        write_json(path, results)
    print_table(results, args.sizes)
    if args.plot is not None:
        plot_sizes(results["summary"], Path(args.plot))
    return results


def read_results(path: Path) -> dict:
    """The content of a results file. Raises `UsageError` where it is damaged."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        by_run(results["runs"])
        results["settings"]["learning_rates"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: is no file of results ({error!r}). Remove it, or name another folder.") from None
    return results


def run_missing(args: Arguments, results: dict | None, path: Path) -> dict:
    """Trains until `results` holds every run of the comparison, writing it to `path` after each."""
    check_folds(args)
    settings = make_settings(args)
    results = results or {"settings": settings._asdict(), "runs": []}
    results["settings"] = join_settings(results["settings"], settings, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {row_of(name) for name in args.methods}
    runs_a_fold = sum(len(settings.learning_rates[row]) for row in rows) + len(args.methods) * len(args.seeds)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with make_executor(args.jobs) as executor, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("ESC-10", total=len(args.folds) * runs_a_fold)
        active = {}
        while True:
            finished = by_run(results["runs"])
            ready = [run for run in ready_runs(args, settings, finished) if run not in active.values()]
            for run in ready[: args.jobs - len(active)]:
                active[executor.submit(train, args.model_name_or_path, args.data_dir, settings, run)] = run
            progress.update(task, completed=sum(is_wanted(run, args, rows) for run in finished))
            if not active:
                return results
            for future in wait(active, return_when=FIRST_COMPLETED).done:
                record = {**active.pop(future)._asdict(), **future.result()}
                results["runs"].append(record)
                write_json(path, results)
                progress.console.print(
                    "{method}, {stage} fold {judged_fold}, lr {learning_rate:g}, seed {seed}: accuracy {accuracy:.3f} "
                    "({train_seconds:.0f} s)".format(**record)
                )


def check_folds(args: Arguments) -> None:
    there = fold_names(read_audiofolder(args.data_dir).clips)
    if len(there) < 3:
        raise UsageError(
            f"{args.data_dir}: needs three folds or more (train, select, test), it has {there or 'none'}."
        )
    if not set(args.folds) <= set(there):
        raise UsageError(f"--folds {' '.join(args.folds)}: the folds of {args.data_dir} are {', '.join(there)}.")


def make_settings(args: Arguments) -> Settings:
    weights = Path(args.model_name_or_path) / "model.safetensors"
    return Settings(
        model=Path(args.model_name_or_path).name,
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
        data=Path(args.data_dir).name,
        epochs=args.epochs,
        batch_size=args.batch_size,
        options=OPTIONS,
        learning_rates={row: args.learning_rates or LEARNING_RATES[row] for row in ROWS},
    )


def join_settings(stored: dict, settings: Settings, path: Path) -> dict:
    """The settings of the runs in the file at `path`, and of methods it lacks; learning rates may change.

    Raises:
        UsageError: the runs in the file were made with other settings.
    """
    joined = stored | {"options": settings.options | stored["options"], "learning_rates": settings.learning_rates}
    for name, value in settings._asdict().items():
        if joined[name] != value:
            raise UsageError(
                f"{path} holds runs with {name} = {stored[name]}, now it is {value}. They cannot be compared: choose "
                "another --output_dir, or go back to the old value."
            )
    return joined


def make_executor(jobs: int) -> Executor:
    if jobs == 1:
        return ThreadPoolExecutor(max_workers=1)
    return ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"))


def by_run(records: list[dict]) -> dict[Run, dict]:
    return {Run(*(record[name] for name in Run._fields)): record for record in records}


def ready_runs(args: Arguments, settings: Settings, finished: dict[Run, dict]) -> list[Run]:
    """The runs still to do whose learning rate is known, in order. Test runs wait for the selection on their fold."""
    runs = []
    for name in args.methods:
        row = row_of(name)
        for fold in args.folds:
            rates = settings.learning_rates[row]
            runs += candidates(row, fold, rates)
            best = best_rate(row, fold, rates, finished)
            runs += [Run(name, "test", fold, best, seed) for seed in args.seeds if best is not None]
    return [run for run in dict.fromkeys(runs) if run not in finished]


def is_wanted(run: Run, args: Arguments, rows: set[str]) -> bool:
    if run.test_fold not in args.folds:
        return False
    return run.method in rows if run.stage == "select" else run.method in args.methods and run.seed in args.seeds


def candidates(row: str, test_fold: str, rates: list[float]) -> list[Run]:
    return [Run(row, "select", test_fold, rate, SELECTION_SEED) for rate in rates]


def best_rate(row: str, test_fold: str, rates: list[float], finished: dict[Run, dict]) -> float | None:
    """The learning rate of the most accurate candidate (of equals: of lower loss), None while one is missing."""
    runs = candidates(row, test_fold, rates)
    if not all(run in finished for run in runs):
        return None
    return max(runs, key=lambda run: (finished[run]["accuracy"], -finished[run]["loss"])).learning_rate


def train(model_name: str, data_dir: str, settings: Settings, run: Run) -> dict:
    """Trains one run and judges it. Returns its results."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    clips, features, feature_extractor = load_data(model_name, data_dir)
    labels = sorted({label for clip in clips for label in clip.labels})
    folds = fold_names(clips)
    judged_fold = run.test_fold if run.stage == "test" else folds[(folds.index(run.test_fold) + 1) % len(folds)]
    train_set = [clip for clip in clips if clip.fold not in (run.test_fold, judged_fold)]
    judged_set = [clip for clip in clips if clip.fold == judged_fold]

    set_seed(run.seed)
    model = load_classifier(model_name, labels)
    head = sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters())
    model = apply_method(model, method_of(run.method), **settings.options[run.method])
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(folder, settings, run)
        datasets = [FeatureDataset(part, features, labels) for part in (train_set, judged_set)]
        trainer = build_trainer(model, args, feature_extractor, *datasets)
        trainer.remove_callback(PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"]
        metrics = trainer.evaluate()
    return {
        "judged_fold": judged_fold,
        **{name: metrics[f"eval_{name}"] for name in ("accuracy", "macro_f1", "loss")},
        **parameter_counts(model),
        "head_parameters": head,
        "train_clips": len(train_set),
        "train_seconds": seconds,
    }


def build_trainer(model, args, feature_extractor, train_set, judged_set) -> AudioTrainer:
    return AudioTrainer(
        model,
        args,
        train_dataset=train_set,
        eval_dataset=judged_set,
        data_collator=AudioCollator(feature_extractor),
        processing_class=feature_extractor,
        compute_metrics=single_label_metrics,
        prompts_from_clips=False,  # as in the papers, and in the results that are there
    )


def training_arguments(folder: str, settings: Settings, run: Run) -> AudioTrainingArguments:
    return AudioTrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=run.learning_rate,
        seed=run.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


@functools.cache  # once a process: its runs share the features
def load_data(model_name: str, data_dir: str):
    clips = read_audiofolder(data_dir).clips
    feature_extractor = load_feature_extractor(model_name)
    return clips, extract_features(clips, feature_extractor)[0], feature_extractor


def fold_names(clips: list) -> list[str]:
    return sorted({clip.fold for clip in clips} - {None})


def summarize(finished: dict[Run, dict], learning_rates: dict[str, list[float]]) -> dict[str, dict]:
    """Per method the mean accuracy of its test runs, and how it varies: over seeds (of the mean over the folds), and
    over folds (of the mean over the seeds); both as sample standard deviations, None of a single value."""
    summary = {}
    for method in dict.fromkeys([*learning_rates, *(run.method for run in finished)]):
        row = row_of(method)
        runs = {run: record for run, record in finished.items() if run.method == method}
        tests = [
            record
            for run, record in runs.items()
            if run.stage == "test"
            and run.learning_rate == best_rate(row, run.test_fold, learning_rates[row], finished)
        ]
        if not tests:
            continue

        def means_by(name: str, tests: list[dict] = tests) -> dict:
            values = sorted({record[name] for record in tests})
            return {str(v): mean(record["accuracy"] for record in tests if record[name] == v) for v in values}

        summary[method] = {
            "test_runs": len(tests),
            "accuracy": mean(record["accuracy"] for record in tests),
            "accuracy_std_over_seeds": spread(means_by("seed")),
            "accuracy_std_over_folds": spread(means_by("test_fold")),
            "macro_f1": mean(record["macro_f1"] for record in tests),
            "accuracy_by_seed": means_by("seed"),
            "accuracy_by_fold": means_by("test_fold"),
            "learning_rate_by_fold": {record["test_fold"]: record["learning_rate"] for record in tests},
            "trainable_parameters": tests[0]["trainable_parameters"],
            **without_head(tests[0]),
            "total_parameters": tests[0]["total_parameters"],
            "train_seconds": mean(record["train_seconds"] for record in tests),
            "train_seconds_of_all_runs": sum(record["train_seconds"] for record in runs.values()),
        }
    return summary


def without_head(record: dict) -> dict[str, int | float]:
    """What trains beside the head: in parameters, and as a share of the backbone's."""
    trainable, total, head = (record[f"{name}parameters"] for name in ("trainable_", "total_", "head_"))
    # Unless everything trains, all that does lies beside the frozen model, which keeps a head of its own.
    backbone = total - head if trainable == total else total - head - trainable
    return {"trainable_without_head": trainable - head, "share_of_backbone": (trainable - head) / backbone}


def spread(means: dict) -> float | None:
    return stdev(means.values()) if len(means) > 1 else None


if __name__ == "__main__":
    run_command(main, (BadAudioError, DataError))
