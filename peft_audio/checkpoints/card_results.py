"""Results as the Hub's widgets and tables of evaluations read them: `model-index` in a model card's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

from huggingface_hub import EvalResult


Score = Union[float, tuple[float, float]]

CLASSIFICATION, RECOGNITION = "audio-classification", "automatic-speech-recognition"
# Of the Hub, by auto class. It has none for labels of frames and for speaker embeddings.
TASKS = dict.fromkeys(("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"), RECOGNITION)
# The Hub's names of metrics, where they are not the package's own.
METRICS = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "map": "mean_average_precision",
    "equal_error_rate": "eer",
    "character_error_rate": "cer",
    "word_error_rate": "wer",
}
UNKNOWN = "unknown"  # a data set that is not on the Hub


def metric_types(names: Iterable[str]) -> list[str]:
    """Return the Hub's names of metrics, each once; a loss is none."""
    return list(dict.fromkeys(METRICS.get(name, name) for name in names if name != "loss"))


def eval_results(results: Mapping[str, Score], task: str, datasets: Any = None) -> Optional[list[EvalResult]]:
    """Return results as the metadata of a model card has them; of a mean with its deviation the mean.

    Args:
        results: scores by name of the metric.
        task: of the Hub.
        datasets: the id on the Hub of the data, or a list with it; None where it is not there.

    Returns:
        None if there are no results.
    """
    names = [datasets] if isinstance(datasets, str) else list(datasets or [])
    dataset = names[0] if len(names) == 1 else UNKNOWN
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=METRICS.get(name, name),
            metric_name=name,
            metric_value=score[0] if isinstance(score, tuple) else score,
        )
        for name, score in results.items()
    ] or None
