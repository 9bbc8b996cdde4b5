"""From the results of a recipe's runs to the line of a table, beside what its paper reports."""

import math
from collections.abc import Mapping

from training.aggregation import Score, best_epoch_by_test, best_epoch_by_validation, last_epoch, over_seeds

from .recipe import Recipe


LOWER_IS_BETTER = ("equal_error_rate", "min_dcf")
# Of a recipe's `rule` the title. The first looks at the test clips, the others do not.
RULES = {"test": "best epoch on the test clips", "validation": "best epoch in validation", "last": "last epoch"}
AVERAGED = "averaged weights"

Results = Mapping[int, Mapping[str, dict]]  # by seed and part, what `runs.run` returns


def summarize(recipe: Recipe, results: Results) -> dict[str, dict[str, dict[str, float | None]]]:
    """By metric and rule (`RULES`, and `AVERAGED` weights), the mean over seeds of the mean over folds, and how both vary.

    Returns:
        `{metric: {rule: {"mean": ..., "std_over_folds": ..., "std_over_seeds": ...}}}`; of one value, the deviation is
        None. Of the metrics, that of the recipe and those that its paper reports.
    """
    first = next(iter(next(iter(results.values())).values()))
    return {
        metric: {rule: spread(scores) for rule, scores in scores_of(metric, results).items()}
        for metric in first["epochs"]["test"]
        if metric in (recipe.metric, *recipe.reported) or recipe.metric in LOWER_IS_BETTER
    }


def scores_of(metric: str, results: Results) -> dict[str, dict[str, Score]]:
    """By rule and seed, the scores over the parts."""
    higher = metric not in LOWER_IS_BETTER
    by_rule: dict[str, dict[str, Score]] = {}
    for seed, parts in results.items():
        test, validation = (
            {part: result["epochs"].get(kind, {}).get(metric) for part, result in parts.items()}
            for kind in ("test", "validation")
        )
        scores = {RULES["test"]: best_epoch_by_test(test, higher)}
        if all(validation.values()):
            scores[RULES["validation"]] = best_epoch_by_validation(validation, test, higher)
        scores[RULES["last"]] = last_epoch(test)
        if all("average" in result for result in parts.values()):
            averages = {part: result["average"][metric] for part, result in parts.items()}
            scores[AVERAGED] = Score(averages, {part: len(test[part]) for part in parts})
        for rule, score in scores.items():
            by_rule.setdefault(rule, {})[str(seed)] = score
    return by_rule


def spread(scores: dict[str, Score]) -> dict[str, float | None]:
    mean, std = over_seeds(scores)
    values = {"mean": mean, "std_over_folds": next(iter(scores.values())).std, "std_over_seeds": std}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
