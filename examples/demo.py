"""Adapts Whisper tiny.en's encoder to real recordings with IPET, beside a linear probe, and loads the adapter back.

    python examples/demo.py

Needs no network and no GPU, and under three minutes on two cores. The recordings are 240 of ESC-10: two folds train, one
tests, and no fold has clips of a sound that another has. The learning rates were chosen on the training folds alone. The
exit status is 1 if the adapter, loaded in a new process, does not give the same predictions.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from demo_small import predict, reload_and_predict
from peft import PeftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from peft_audio import IPETConfig, ParallelMLPAdapterConfig, load_classifier
from peft_audio.data import AudioCollator, TrainingData, load_feature_extractor, prepare_clips, read_audiofolder
from peft_audio.trainer import (
    AudioTrainer,
    AudioTrainingArguments,
    cache_training_data,
    parameter_counts,
    saved_bytes,
    single_label_metrics,
)
from peft_audio.utils.ranges import COUNT


# PEFT warns of this for every model, and nobody who runs this can do anything about it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")

ASSETS = Path(__file__).resolve().parent / "assets"
MODEL, CLIPS = ASSETS / "whisper-tiny.en-encoder", ASSETS / "esc10"
TEST_FOLD = "3"
SECONDS = 5  # of input: Whisper's own 30 would be 1500 tokens a clip instead of 250


class Method(NamedTuple):
    """What the table shows of one method, and how it trains."""

    title: str
    config: PeftConfig
    learning_rate: float
    head_learning_rate: float
    epochs: int


METHODS = {
    "linear_probe": Method("Linear probe", ParallelMLPAdapterConfig(layers_to_transform=[]), 3e-3, 3e-3, 15),
    "ipet": Method(
        "IPET",
        IPETConfig(num_virtual_tokens=8, adapter_input="normalized", activation="gelu", scaling=1.0, dropout=0.0),
        1e-3,
        3e-3,
        5,
    ),
}


def load_data(feature_extractor, clips_per_class: int | None) -> TrainingData:
    """The recordings as spectrograms; `clips_per_class` limits those to train on."""
    table = read_audiofolder(CLIPS)
    if clips_per_class is not None:
        seen = dict.fromkeys({clip.labels for clip in table.clips}, 0)
        kept = []
        for clip in table.clips:
            seen[clip.labels] += clip.fold != TEST_FOLD
            if clip.fold == TEST_FOLD or seen[clip.labels] <= clips_per_class:
                kept.append(clip)
        table.clips = kept
    return prepare_clips(table, feature_extractor, fold=TEST_FOLD, max_seconds=SECONDS)


def train(method: Method, data: TrainingData, feature_extractor, epochs: int, folder: Path) -> dict:
    """Trains one method and saves its adapter in `folder`; returns its results."""
    set_seed(0)
    model = get_peft_model(load_classifier(MODEL, data.labels, max_seconds=SECONDS), method.config)
    started = time.perf_counter()
    if method.config.layers_to_transform == []:  # the encoder is frozen, so it runs once
        data = cache_training_data(model, data, folder / "frozen")
    arguments = AudioTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=method.learning_rate,
        head_learning_rate=method.head_learning_rate,
        eval_strategy="no",
        save_strategy="no",
        use_cpu=True,
    )
    parts = {"data_collator": AudioCollator(feature_extractor), "compute_metrics": single_label_metrics}
    trainer = AudioTrainer(model, arguments, train_dataset=data.train, **parts)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = time.perf_counter() - started
    model.save_pretrained(folder)
    results = trainer.test(data.test) | parameter_counts(model)
    return results | {"seconds": seconds, "bytes": saved_bytes(folder), "model": model}


def check_reload(model: torch.nn.Module, data: TrainingData, folder: Path, console: Console) -> bool:
    """Whether the adapter in `folder`, loaded in a new process, gives the predictions of `model`."""
    features = torch.stack([torch.as_tensor(clip["input_features"]) for clip in data.test])
    torch.save(features, folder / "features.pt")
    command = [sys.executable, __file__, "--reload", folder, folder / "features.pt", folder / "logits.pt"]
    subprocess.run(command, check=True)
    logits, again = predict(model, features), torch.load(folder / "logits.pt", weights_only=True)
    same = torch.allclose(again, logits, atol=1e-5) and torch.equal(again.argmax(1), logits.argmax(1))
    console.print(
        f"IPET adapter saved, loaded in a new process: predictions on {len(features)} clips are "
        f"{'identical' if same else 'NOT identical'} (logits differ by {(again - logits).abs().max():.0e} at most)"
    )
    return same


def run(console: Console, folder: Path, epochs: int | None, clips_per_class: int | None) -> bool:
    """The whole demonstration; returns whether the reloaded predictions are the same."""
    started = time.perf_counter()
    feature_extractor = load_feature_extractor(MODEL, max_seconds=SECONDS)
    data = load_data(feature_extractor, clips_per_class)
    console.print(f"{len(data.train)} recordings to train on, {len(data.test)} to test on, {len(data.labels)} classes")
    table = Table(title="Adapting Whisper tiny.en's encoder to ESC-10")
    columns = ("Accuracy %", "Trainable parameters", "of all %", "Checkpoint KB", "Training s")
    table.add_column("Method")
    for column in columns:
        table.add_column(column, justify="right")
    for name, method in METHODS.items():
        console.print(f"Training: {method.title}")
        result = train(method, data, feature_extractor, epochs or method.epochs, folder / name)
        error = result["eval_accuracy_standard_error"]
        table.add_row(
            method.title,
            f"{100 * result['eval_accuracy']:.1f} +- {100 * error:.1f}",
            f"{result['trainable_parameters']:,}",
            f"{100 * result['trainable_parameters'] / result['total_parameters']:.1f}",
            f"{result['bytes'] / 1000:,.0f}",
            f"{result['seconds']:.0f}",
        )
    console.print(table)
    same = check_reload(result["model"], data, folder / name, console)
    console.print(f"Total {time.perf_counter() - started:.0f} s")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=COUNT, help="passes over the training clips, instead of each method's own")
    parser.add_argument("--clips_per_class", type=COUNT, help="training clips of each class, instead of all 16")
    parser.add_argument("--reload", nargs=3, metavar=("ADAPTER", "FEATURES", "LOGITS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.reload:
        logging.disable_progress_bar()
        reload_and_predict(*arguments.reload)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(Console(), Path(folder), arguments.epochs, arguments.clips_per_class) else 1


if __name__ == "__main__":
    sys.exit(main())
