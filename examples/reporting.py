"""What a finished training run leaves behind: numbers as JSON, the curves as a picture, and the model card."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from peft_audio import write_card
from peft_audio.checkpoints.model_card import classify_a_file, training_text


AUDIO_CLASSIFICATION = "audio-classification"
STOCK_METHODS = ("bitfit", "lora")  # PEFT's own; their adapters store neither the labels nor the input length


def write_json(path: Path, content: Any) -> None:
    """Writes `content` so that `path` always holds a complete file: the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a line of column names and one for each of `rows`, one at least, as `write_json` writes."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def write_picture(path: Path, figure) -> None:
    """Writes a matplotlib figure as `write_json` writes; the name's ending says in which format.

    Raises:
        ValueError: matplotlib has no such format.
    """
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=120, format=path.suffix[1:])
    partial.replace(path)


def plot_curves(log_history: list[dict], path: Path, metrics: tuple[str, ...] = ("accuracy",)) -> None:
    """Draws loss and metrics over epochs, from the log history of a Trainer, into the picture at `path`."""
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
    write_picture(path, figure)


@dataclass
class CardFacts:
    """What a run knows and its files do not say.

    Args:
        location: the folder or the Hub name the model is loaded from.
        base_model: what it was trained from: a Hub name or a folder.
        method: a name of the methods table, `summary` what it is, and `settings` its options in force.
        labels: in the order of the model's outputs.
        sampling_rate: of the input, in Hz.
        max_length: frames of the input, if the model takes a fixed number of them.
        resized: whether `max_length` differs from the base model's.
        results: the content of all_results.json.
        data: a sentence on the training and test data; `dataset_name` its name on the Hub, if it is there.
    """

    location: str
    base_model: str
    method: str
    summary: str
    settings: Mapping[str, Any]
    labels: list[str]
    multi_label: bool
    sampling_rate: int
    max_length: int | None
    resized: bool
    results: Mapping[str, Any]
    data: str
    dataset_name: str | None = None

    @property
    def metrics(self) -> list[str]:
        return ["map", "micro_f1"] if self.multi_label else ["accuracy", "macro_f1"]

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "datasets": [self.dataset_name] if self.dataset_name else None,
            "metrics": ["average_precision", "f1"] if self.multi_label else ["accuracy", "f1"],
            "tags": ["audio", "peft-audio", self.method],
        }


def write_model_card(folder: Path, facts: CardFacts) -> None:
    """Writes README.md: this package's card of an adapter, or one like it for what the package does not save."""
    training, scores = describe_training(facts), scores_of(facts)
    if facts.method == "full" or facts.method in STOCK_METHODS:
        (folder / "README.md").write_text(stock_card(facts, training_text(training, scores)), encoding="utf-8")
    else:
        write_card(folder, location=facts.location, training=training, results=scores, metadata=facts.metadata)


def describe_training(facts: CardFacts) -> str:
    results = facts.results
    share = 100 * results["trainable_parameters"] / results["total_parameters"]
    return f"""{facts.data}

- method: {facts.method} ({facts.summary})
- learning rate: {results["learning_rate"]:g}, {results["epoch"]:g} epochs, {results["train_seconds"]:.0f} s
- trainable parameters: {results["trainable_parameters"]:,} of {results["total_parameters"]:,} ({share:.2f} %)

The results are of {results["eval_samples"]} test clips, +- their bootstrap standard error.

![Loss and metrics by epoch](curves.png)"""


def scores_of(facts: CardFacts) -> dict[str, float | tuple[float, float]]:
    results = facts.results
    scores = {name: (results[f"eval_{name}"], results[f"eval_{name}_standard_error"]) for name in facts.metrics}
    return scores | {"loss": results["eval_loss"]}


def stock_card(facts: CardFacts, training: str) -> str:
    """The text of the card of a whole model or of an adapter of PEFT's own, metadata included."""
    on_hub = not Path(facts.base_model).exists()  # metadata that names a folder makes a push to the Hub fail
    metadata = ModelCardData(
        library_name="transformers" if facts.method == "full" else "peft",
        pipeline_tag=AUDIO_CLASSIFICATION,
        base_model=facts.base_model if on_hub else None,
        **facts.metadata,
    )
    settings = "".join(f"- {name}: {value}\n" for name, value in facts.settings.items())
    length = f", cut or padded to {facts.max_length} frames of 10 ms" if facts.max_length else ""
    return f"""---
{metadata.to_yaml()}
---

# {Path(facts.location).name}

An audio classifier: `{facts.base_model if on_hub else Path(facts.base_model).name}`, fine-tuned.

## Use

```python
{snippet(facts)}
```

- Input: mono audio at {facts.sampling_rate} Hz{length}.
- Labels ({len(facts.labels)}{", several at a time" if facts.multi_label else ""}): {", ".join(facts.labels)}.
{settings}- file: {facts.results["adapter_bytes"] / 1e6:.3f} MB

{training}
"""


def snippet(facts: CardFacts) -> str:
    """Python code that loads the model and classifies a file."""
    if facts.method == "full":
        imports = ["from transformers import AutoFeatureExtractor, AutoModelForAudioClassification"]
        load = ["model = AutoModelForAudioClassification.from_pretrained(location)"]
    else:
        imports = ["from peft import PeftModel", "from transformers import AutoFeatureExtractor"]
        imports[1] += ", AutoModelForAudioClassification"
        imports += ["from peft_audio import resize_ast"] if facts.resized else []
        load = [
            f"labels = {facts.labels!r}",
            "base = AutoModelForAudioClassification.from_pretrained(",
            f"    {facts.base_model!r}, id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True",
            ")",
            *([f"resize_ast(base, max_length={facts.max_length})"] if facts.resized else []),
            "model = PeftModel.from_pretrained(base, location)",
        ]
    lines = ["import librosa", "import torch", *imports, "", f"location = {facts.location!r}", *load, "model.eval()"]
    return "\n".join([*lines, *classify_a_file("location", facts.multi_label)])
