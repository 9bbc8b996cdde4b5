"""The Trainer of transformers, for audio classifiers."""

from __future__ import annotations

import functools
import logging
from typing import Any, Optional

import numpy as np
from torch import nn
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import PredictionOutput

from ..losses import classification_loss
from .adapter_training import AdapterTraining
from .checks import problems_beside_probe
from .linear_probe import fit_and_score, head_features
from .reports import logits_of


logger = logging.getLogger(__name__)


class AudioTrainer(AdapterTraining):
    """The Trainer of transformers, for classifiers with one or several labels a clip, or with labels of frames.

    Its loss is `classification_loss` unless another one is given: many audio classifiers of transformers compute none,
    or a wrong one, from several labels a clip or a frame. See `AdapterTraining` for what else it does.

    Args:
        model: as for the Trainer.
        args: as for the Trainer.
        compute_loss_func: as for the Trainer; None for `classification_loss`.
        kwargs: further arguments of `AdapterTraining` and the Trainer.
    """

    def __init__(
        self,
        model: Optional[nn.Module] = None,
        args: Optional[TrainingArguments] = None,
        *,
        compute_loss_func: Any = None,
        **kwargs: Any,
    ) -> None:
        if compute_loss_func is None:
            label_smoothing = 0.0 if args is None else args.label_smoothing_factor
            compute_loss_func = functools.partial(classification_loss, label_smoothing=label_smoothing)
        super().__init__(model, args, compute_loss_func=compute_loss_func, **kwargs)

    def linear_probe(self, train_dataset: Any, eval_dataset: Any) -> dict[str, float]:
        """Return the metrics of `compute_metrics` for a linear probe: what an adapter has to beat.

        That is scikit-learn's logistic regression on what the head of the base model reads of each clip, without
        adapters, averaged over the tokens, or of each frame if these have labels. It takes one forward pass over both data
        sets.

        Args:
            train_dataset: to fit it to.
            eval_dataset: for the metrics.

        Raises:
            ValueError: the Trainer has no `compute_metrics`, the model's type is not supported, or the base model trains.
        """
        if self.compute_metrics is None:
            raise ValueError("linear_probe needs the Trainer's `compute_metrics`, which is None.")
        model: Any = self.model
        sets = [self.get_test_dataloader(dataset) for dataset in (train_dataset, eval_dataset)]
        (features, labels), (others, targets) = (head_features(model, batches) for batches in sets)
        return self.compute_metrics(EvalPrediction(fit_and_score(features, labels, others), targets))

    def test(self, test_dataset: Any, train_dataset: Any = None) -> dict[str, float]:
        """Return the metrics for clips that were not trained on, with their bootstrap standard errors.

        Args:
            test_dataset: the clips.
            train_dataset: if given, the metrics of `linear_probe` are there too, as `probe_...`, and a warning says so if
                the model did worse.

        Returns:
            What `evaluate` returns, `eval_samples`, and `eval_<metric>_standard_error` for each metric of
            `compute_metrics`.

        Raises:
            ValueError: the Trainer has no `compute_metrics`.
        """
        output = self.predict(test_dataset, metric_key_prefix="eval")  # its logits too, in one pass
        metrics: dict[str, float] = dict(output.metrics or {})
        self.log(metrics.copy())
        metrics["eval_samples"] = len(np.asarray(output.label_ids))
        errors = self.standard_errors(output)
        metrics |= {f"eval_{name}_standard_error": error for name, error in errors.items()}
        if train_dataset is not None:
            probe = self.linear_probe(train_dataset, test_dataset)
            for problem in problems_beside_probe(metrics, probe):
                logger.warning(problem)
            metrics |= {f"probe_{name}": value for name, value in probe.items()}
        return metrics

    def standard_errors(self, output: PredictionOutput, num_resamples: int = 100, seed: int = 0) -> dict[str, float]:
        """Return the bootstrap standard error, over the clips of a data set, of every metric of `compute_metrics`.

        Draws for which a metric is no number, such as those of clips without any label, are left out.

        Args:
            output: of `predict` for the data set.
            num_resamples: how often as many clips are drawn, with replacement.
            seed: of the draws.

        Raises:
            ValueError: the Trainer has no `compute_metrics`.
        """
        logits, targets, compute = logits_of(output.predictions), np.asarray(output.label_ids), self.compute_metrics
        if compute is None:
            raise ValueError("standard_errors needs the Trainer's `compute_metrics`, which is None.")
        draws = np.random.default_rng(seed).integers(len(targets), size=(num_resamples, len(targets)))
        values = [compute(EvalPrediction(logits[clips], targets[clips])) for clips in draws]
        numbers = {name: [row[name] for row in values if np.isfinite(row[name])] for name in values[0]}
        return {name: float(np.std(n, ddof=1)) if len(n) > 1 else float("nan") for name, n in numbers.items()}
