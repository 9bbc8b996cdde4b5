"""From the metrics of each epoch of each fold to the number that a table reports.

The rules differ in which epoch counts. Where there are folds, the papers' own is `best_epoch_by_test`: it chooses by the
test clips, so its results are too good. Those of `last_epoch` and `best_epoch_by_validation` are not; the latter is the
papers' rule where a data set has a validation split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


EpochMetrics = Mapping[str, Sequence[float]]  # by fold, a value for each epoch


@dataclass(frozen=True)
class Score:
    """One metric over the folds.

    Args:
        values: by fold.
        epochs: by fold, the epoch (from 1) its value is from.
    """

    values: Mapping[str, float]
    epochs: Mapping[str, int]

    @property
    def mean(self) -> float:
        return mean_and_std(self.values.values())[0]

    @property
    def std(self) -> float:
        """Over the folds, see `mean_and_std`."""
        return mean_and_std(self.values.values())[1]


def mean_and_std(values) -> tuple[float, float]:
    """Mean and standard deviation (of a sample, n - 1) of numbers; NaN is the deviation of a single one.

    Raises:
        ValueError: there are none.
    """
    values = np.array(list(values), dtype=np.float64)
    if not values.size:
        raise ValueError("There are no values to average.")
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else float("nan")


def over_seeds(scores: Mapping[str, Score]) -> tuple[float, float]:
    """Mean and standard deviation over seeds of the means over folds.

    Raises:
        ValueError: there are none, or their folds differ.
    """
    folds = {seed: set(score.values) for seed, score in scores.items()}
    for seed, names in folds.items():
        if names != (expected := next(iter(folds.values()))):
            raise ValueError(
                f"Seed {seed} has the folds {_listed(names)}, the first seed has {_listed(expected)}: run what is "
                "missing, or leave it out everywhere."
            )
    return mean_and_std(score.mean for score in scores.values())


def best_epoch_by_test(test: EpochMetrics, higher_is_better: bool = True) -> Score:
    """The rule of AST, AAT and IPET: the epoch whose mean over the folds is best, the same epoch in all folds.

    Of equally good epochs the first counts.

    Raises:
        ValueError: no folds, no epochs, unequal numbers of them, or a value that is not finite.
    """
    table = _table("test", test)
    return _score_at(test, dict.fromkeys(test, _best(table.mean(axis=0), higher_is_better)))


def last_epoch(test: EpochMetrics) -> Score:
    """The metrics after the last epoch. Raises as `best_epoch_by_test`."""
    return _score_at(test, dict.fromkeys(test, _table("test", test).shape[1]))


def best_epoch_by_validation(validation: EpochMetrics, test: EpochMetrics, higher_is_better: bool = True) -> Score:
    """The test metrics of the epoch that is best in validation, for each fold its own; the first of equals.

    Raises:
        ValueError: as `best_epoch_by_test`, or the two have different folds or numbers of epochs.
    """
    rows, test_rows = _table("validation", validation), _table("test", test)
    if set(validation) != set(test):
        raise ValueError(f"validation has the folds {_listed(validation)}, test has {_listed(test)}.")
    if rows.shape != test_rows.shape:
        raise ValueError(
            f"validation has {rows.shape[1]} epochs, test has {test_rows.shape[1]}: they must be the same."
        )
    return _score_at(test, {fold: _best(row, higher_is_better) for fold, row in zip(validation, rows)})


def epoch_metrics(log_history: Sequence[Mapping], name: str) -> list[float]:
    """The values of a metric, e.g. "eval_accuracy", after each epoch, from a Trainer's `state.log_history`.

    Of several in one epoch the first counts: the next is an evaluation after training.

    Raises:
        ValueError: the metric is not there, is not from the end of an epoch, or an epoch has none.
    """
    values = {}
    for entry in log_history:
        if name in entry:
            values.setdefault(entry["epoch"], entry[name])
    if not values:
        known = sorted({key for entry in log_history for key in entry if key.startswith("eval_")})
        raise ValueError(f"The log has no {name!r}; it has {', '.join(known) or 'no evaluations'}.")
    if sorted(values) != list(range(1, len(values) + 1)):
        raise ValueError(
            f"{name} was not computed after each epoch, but at {', '.join(f'{epoch:g}' for epoch in sorted(values))}: "
            "train with eval_strategy='epoch'."
        )
    return [values[epoch] for epoch in sorted(values)]


def _table(what: str, metrics: EpochMetrics) -> np.ndarray:
    """Shape (folds, epochs), checked."""
    if not metrics:
        raise ValueError(f"{what} has no folds.")
    lengths = {fold: len(values) for fold, values in metrics.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"fold {fold} has {length}" for fold, length in lengths.items())
        raise ValueError(f"{what}: all folds must have equally many epochs, but {listed}. Finish the shorter ones.")
    table = np.array(list(metrics.values()), dtype=np.float64)
    if not table.size:
        raise ValueError(f"{what}: no fold has an epoch.")
    for fold, row in zip(metrics, table):
        if not np.isfinite(row).all():
            epoch = int(np.argmin(np.isfinite(row)))
            raise ValueError(f"{what}: fold {fold}, epoch {epoch + 1} is {row[epoch]}, it must be a finite number.")
    return table


def _best(values: np.ndarray, higher_is_better: bool) -> int:
    return int(np.argmax(values if higher_is_better else -values)) + 1


def _score_at(test: EpochMetrics, epochs: Mapping[str, int]) -> Score:
    return Score({fold: float(values[epochs[fold] - 1]) for fold, values in test.items()}, dict(epochs))


def _listed(names) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
