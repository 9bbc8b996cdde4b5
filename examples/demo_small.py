"""Adapt the bundled backbone to a new task with five methods, then load one adapter back in a new process.

    python examples/demo_small.py

Needs no network, no data and no GPU. The sounds are generated; their sources and rhythms are ones that the backbone
has not seen in pretraining. The exit status is 1 if the reloaded adapter does not give the very same predictions.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from synthetic_sounds import SAMPLING_RATE, generate
from torch.utils.data import TensorDataset
from transformers import (
    AutoFeatureExtractor,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from peft_audio import (
    AutoPeftModelForAudioClassification,
    EmbeddingPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    load_classifier,
)
from peft_audio.utils.ranges import COUNT


# PEFT warns of this for every model, and nobody who runs this can do anything about it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated|Could not find a config file in")

BACKBONE = Path(__file__).resolve().parent / "assets" / "ast-tiny-synthetic"
MAX_LENGTH = 256  # frames of 10 ms: clips of 2.56 s take half the time of the backbone's 5.12 s
SOURCES = ("creak", "croak", "quack", "zipper")
PATTERNS = ("decelerating_repeats", "pairs")
CLASSES = tuple((source, pattern) for source in SOURCES for pattern in PATTERNS)
LABELS = tuple(f"{source}, {pattern.replace('_', ' ')}" for source, pattern in CLASSES)


class Method(NamedTuple):
    """What the table shows of one method and how it trains; without a configuration all parameters train."""

    title: str
    learning_rate: float
    config: PeftConfig | None


ADAPTER = {"bottleneck_dim": 32, "scaling": 1.0, "dropout": 0.1, "adapter_input": "residual"}
METHODS = {
    "linear_probe": Method("Linear probe", 2e-2, ParallelMLPAdapterConfig(layers_to_transform=[])),
    "embedding_prompt": Method("Embedding prompt", 1e-2, EmbeddingPromptConfig(num_virtual_tokens=8)),
    "parallel_mlp": Method("Parallel MLP", 1e-2, ParallelMLPAdapterConfig(**ADAPTER)),
    "ipet": Method("IPET", 1e-2, IPETConfig(num_virtual_tokens=8, **ADAPTER)),
    "full": Method("Full fine-tuning", 1e-3, None),
}


def make_task(extractor, clips_per_class: int, seed: int) -> TensorDataset:
    """Inputs (clips, 256, 64) and labels (clips,) of `clips_per_class` new clips of each class, in class order."""
    clips, labels = [], []
    for label, (source, pattern) in enumerate(CLASSES):
        for index in range(clips_per_class):
            rng = np.random.default_rng([seed, label, index])
            settings = {"snr": (5, 30), "whole": True, "num_samples": MAX_LENGTH * SAMPLING_RATE // 100}
            clips.append(generate(source, pattern, rng, **settings).waveform)
            labels.append(label)
    inputs = extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="np").input_values
    return TensorDataset(torch.from_numpy(np.stack(inputs)).float(), torch.tensor(labels))


def collate(examples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    inputs, labels = zip(*examples)
    return {"input_values": torch.stack(inputs), "labels": torch.stack(labels)}


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train(
    name: str, task: TensorDataset, test: TensorDataset, epochs: int, folder: str
) -> tuple[torch.nn.Module, dict]:
    """Train one method; returns the model and its accuracy, parameters and seconds."""
    set_seed(0)
    method = METHODS[name]
    # The bundled AST with a new head for the task, at the task's clip length.
    model = load_classifier(BACKBONE, LABELS, max_length=MAX_LENGTH)
    if method.config is not None:
        model = get_peft_model(model, copy.deepcopy(method.config))
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=40,
        learning_rate=method.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.01,
        label_names=["labels"],
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model, arguments, data_collator=collate, train_dataset=task, eval_dataset=test, compute_metrics=accuracy
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return model, {"accuracy": trainer.evaluate()["eval_accuracy"], "parameters": parameters, "seconds": seconds}


@torch.inference_mode()
def predict(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (clips, classes)."""
    model.eval()
    return torch.cat([model(batch).logits for batch in inputs.split(40)])


def reload_and_predict(adapter: str, inputs_file: str, logits_file: str) -> None:
    """What the new process does: everything it knows of the task is in the adapter's folder."""
    model = AutoPeftModelForAudioClassification.from_pretrained(adapter)
    inputs = torch.load(inputs_file, weights_only=True)
    torch.save(predict(model, inputs), logits_file)
    base = model.get_base_model()
    print(
        f"loaded {type(base).__name__} with {model.peft_config['default'].peft_type.value} and {base.config.num_labels} labels"
    )


def check_reload(model: torch.nn.Module, test: TensorDataset, folder: Path) -> bool:
    """Whether the adapter in `folder`/ipet, loaded in a new process, gives exactly the logits of `model`."""
    inputs = test.tensors[0]
    torch.save(inputs, folder / "inputs.pt")
    command = [sys.executable, __file__, "--reload", folder / "ipet", folder / "inputs.pt", folder / "logits.pt"]
    subprocess.run(command, check=True)
    return torch.equal(predict(model, inputs), torch.load(folder / "logits.pt", weights_only=True))


def checkpoint_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def run(console: Console, folder: Path, epochs: int, clips_per_class: int) -> bool:
    """The whole demonstration; returns whether the reloaded predictions are the same."""
    started = time.perf_counter()
    extractor = AutoFeatureExtractor.from_pretrained(BACKBONE, max_length=MAX_LENGTH)
    task, test = make_task(extractor, clips_per_class, seed=1), make_task(extractor, 25, seed=2)
    console.print(
        f"Task: {len(LABELS)} classes of generated sounds unseen in pretraining, {len(task)} clips to train on, "
        f"{len(test)} to test on, made in {time.perf_counter() - started:.0f} s"
    )
    table = Table(title=f"Adapting {BACKBONE.name}, {epochs} epochs")
    for column, justify in (
        ("Method", "left"),
        ("Accuracy %", "right"),
        ("Trainable parameters", "right"),
        ("Checkpoint KB", "right"),
        ("Training s", "right"),
    ):
        table.add_column(column, justify=justify)
    models = {}
    for name, method in METHODS.items():
        with console.status(f"Training: {method.title}"):
            models[name], result = train(name, task, test, epochs, str(folder / "trainer"))
        models[name].save_pretrained(folder / name)
        table.add_row(
            method.title,
            f"{100 * result['accuracy']:.1f}",
            f"{result['parameters']:,}",
            f"{checkpoint_bytes(folder / name) / 1000:,.0f}",
            f"{result['seconds']:.1f}",
        )
    console.print(table)
    same = check_reload(models["ipet"], test, folder)
    console.print(
        f"IPET adapter saved, loaded in a new process: predictions on {len(test)} clips are "
        f"{'identical' if same else 'NOT identical'} (logits compared bit by bit)"
    )
    console.print(f"Total {time.perf_counter() - started:.0f} s")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=COUNT, default=6, help="passes over the training clips")
    parser.add_argument("--clips_per_class", type=COUNT, default=50, help="training clips of each class")
    parser.add_argument("--reload", nargs=3, metavar=("ADAPTER", "INPUTS", "LOGITS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Models this small gain little from a second thread, and lose much when another process needs that core.
    torch.set_num_threads(1)
    if arguments.reload:
        reload_and_predict(*arguments.reload)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(Console(), Path(folder), arguments.epochs, arguments.clips_per_class) else 1


if __name__ == "__main__":
    sys.exit(main())
