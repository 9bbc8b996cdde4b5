"""Speaker verification in training: equal error rate and detection cost of the trials after every epoch."""

from speaker_verification import averaged, metrics_of_scores, score_trials

from peft_audio.data import Trial

from .recipe import Recipe
from .trainer import finite


def metrics_of_trials(recipe: Recipe, trials: list[Trial]):
    """The function that gives the metrics of embeddings `(cuts, n)`; those of one recording are averaged first."""

    def compute(prediction) -> dict[str, float]:
        embeddings = averaged(finite(prediction.predictions, recipe), recipe.test_segments)
        return metrics_of_scores(*score_trials(embeddings, trials))

    return compute
