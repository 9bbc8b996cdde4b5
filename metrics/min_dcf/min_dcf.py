"""The minimum detection cost for Hugging Face evaluate: `evaluate.load("metrics/min_dcf")`."""

import datasets
import evaluate

from peft_audio.metrics import min_dcf


class MinDCF(evaluate.Metric):
    """`peft_audio.metrics.min_dcf` as a metric of Hugging Face evaluate."""

    def _info(self):
        # A column of integers would turn a label of 0.7 into 0 before it is checked.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="The lowest normalized detection cost over all thresholds (minDCF).",
            citation="",
            inputs_description="""
Args:
    prediction_scores: the score of each trial; higher means more similar.
    references: 1 for target trials (the same speaker), 0 for nontarget trials.
    p_target: the probability of a target trial in the application, 0.01 by default.
    c_miss: the cost of missing a target trial, 1 by default.
    c_fa: the cost of accepting a nontarget trial, 1 by default.
Returns:
    min_dcf: in [0, 1].
""",
            features=datasets.Features({"prediction_scores": number, "references": number}),
        )

    def _compute(self, prediction_scores, references, p_target=0.01, c_miss=1, c_fa=1):
        return {"min_dcf": min_dcf(prediction_scores, references, p_target=p_target, c_miss=c_miss, c_fa=c_fa)}
