"""What a training run tells: sizes, and curves of the loss and the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import huggingface_hub
import numpy as np
from peft import PeftModel
from torch import nn

from ..checkpoints.model_card import Score, write_card
from .progress import what_was_saved


def logits_of(predictions: Any) -> np.ndarray:
    """Return the logits `(clips, labels)` among what the Trainer predicts; hidden states stand behind them, if any."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return the numbers of `trainable_parameters` and `total_parameters`, as PEFT counts them.

    Args:
        model: a `PeftModel` or a model of transformers.
    """
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
    else:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        trainable, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    return {"trainable_parameters": trainable, "total_parameters": total}


def saved_bytes(folder: Union[str, Path]) -> int:
    """Return the size of the weights saved in a folder: an adapter's or, where there is none, a whole model's."""
    adapters = list(Path(folder).glob("adapter_model*.safetensors"))
    return sum(file.stat().st_size for file in adapters or Path(folder).glob("model*.safetensors"))


def describe_training(results: dict[str, Any], data: str, summary: str, tested: Optional[str] = None) -> str:
    """Return the part of a model card on the training, for `write_card`; it shows curves.png.

    Args:
        results: method, learning_rate, head_learning_rate, epoch, train_seconds, and those of `parameter_counts` and
            `AudioTrainer.test`.
        data: name and split of the data.
        summary: what the method trains.
        tested: what the results are of; None for clips, with their bootstrap standard error.
    """
    tested = tested or f"{results['eval_samples']} test clips, +- their bootstrap standard error"
    share = 100 * results["trainable_parameters"] / results["total_parameters"]
    return f"""Data: {data}.

- method: {results["method"]} ({summary})
- learning rate: {results["learning_rate"]:g}, of the head {results["head_learning_rate"]:g}, {results["epoch"]:g} epochs, {results["train_seconds"]:.0f} s
- trainable parameters: {results["trainable_parameters"]:,} of {results["total_parameters"]:,} ({share:.2f} %)

The results are of {tested}.

![Loss and metrics by epoch](curves.png)"""


def write_reports(
    trainer: Any,
    results: Mapping[str, Any],
    *,
    training: str,
    scores: Mapping[str, Score],
    metadata: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write the model card and all_results.json into the Trainer's output folder, push it to the Hub if asked to, and tell both.

    Args:
        trainer: whose model is saved there, with what makes its inputs.
        results: all that all_results.json is to hold.
        training: see `write_card`, and there for `results` and `metadata`.
        scores: the results for the card.
        metadata: of the card.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    location = (args.push_to_hub and trainer.hub_model_id) or args.output_dir
    write_card(folder, model=trainer.model, location=location, training=training, results=scores, metadata=metadata)
    (folder / "all_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if args.push_to_hub:  # as it is: Trainer.push_to_hub would replace the card by its own
        content = {"folder_path": args.output_dir, "ignore_patterns": ["checkpoint-*", "_*"]}
        content["commit_message"] = "Training finished"
        huggingface_hub.upload_folder(repo_id=trainer.hub_model_id, token=args.hub_token, **content)
    told = {name: score if isinstance(score, tuple) else (score,) for name, score in scores.items()}
    print(*(f"{name} {' +- '.join(f'{number:.3f}' for number in score)}" for name, score in told.items()), sep=", ")
    print(what_was_saved(folder))


def plot_curves(
    log_history: list[dict[str, float]], path: Union[str, Path], metrics: Sequence[str] = ("accuracy",)
) -> None:
    """Draw the loss and metrics over the epochs; needs matplotlib.

    Args:
        log_history: `trainer.state.log_history`.
        path: of the picture; its ending says in which format.
        metrics: names of metrics between 0 and 1, without "eval_".
    """
    from matplotlib.figure import Figure  # with no pyplot there is no display to look for, and no state to clean up

    def curve(name: str) -> tuple[list[float], list[float]]:
        # A later entry of the same epoch (the evaluation after training) replaces the earlier one.
        points = {entry["epoch"]: entry[name] for entry in log_history if name in entry}
        return list(points), list(points.values())

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    loss_axes.plot(*curve("loss"), marker=".", label="training")
    loss_axes.plot(*curve("eval_loss"), marker=".", label="evaluation")
    loss_axes.set(xlabel="epoch", ylabel="loss")
    for name in metrics:
        metric_axes.plot(*curve(f"eval_{name}"), marker=".", label=name)
    metric_axes.set(xlabel="epoch", ylabel="evaluation", ylim=(0, 1))
    for axes in (loss_axes, metric_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
