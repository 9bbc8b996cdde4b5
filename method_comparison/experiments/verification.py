"""Speaker verification: embeddings of recordings, the scores of trials, equal error rate and detection cost."""

from pathlib import Path

import numpy as np
from data_sets import Trial

from peft_audio.data import Clip
from peft_audio.metrics import equal_error_rate, min_dcf

from .recipe import Recipe
from .trainer import averaged


def recordings_of(trials: list[Trial]) -> list[Clip]:
    """Every recording of the trials once, in the order in which they come up."""
    paths = dict.fromkeys(path for trial in trials for path in (trial.first, trial.second))
    return [Clip(str(path), Path(path), ()) for path in paths]


def cosine_scores(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosines, `(trials,)`, of the speaker embeddings `(recordings, n)` at the indices `first` and `second`."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (unit[first] * unit[second]).sum(axis=1)


def score_trials(embeddings: np.ndarray, trials: list[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels (1: same speaker) of the trials, from an embedding of each of `recordings_of(trials)`."""
    index = {clip.name: position for position, clip in enumerate(recordings_of(trials))}
    first, second = (
        np.array([index[str(path)] for path in side])
        for side in ([trial.first for trial in trials], [trial.second for trial in trials])
    )
    return cosine_scores(embeddings, first, second), np.array([int(trial.is_same) for trial in trials])


def metrics_of_trials(recipe: Recipe, trials: list[Trial]):
    """The function that gives the metrics of embeddings `(cuts, n)`; those of one recording are averaged first."""

    def compute(prediction) -> dict[str, float]:
        embeddings = averaged(prediction.predictions, recipe.test_segments)
        scores, labels = score_trials(embeddings, trials)
        return {"equal_error_rate": equal_error_rate(scores, labels), "min_dcf": min_dcf(scores, labels)}

    return compute
