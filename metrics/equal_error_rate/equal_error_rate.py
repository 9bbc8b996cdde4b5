"""The equal error rate for Hugging Face evaluate: `evaluate.load("metrics/equal_error_rate")`."""

import datasets
import evaluate

from peft_audio.metrics import equal_error_rate


class EqualErrorRate(evaluate.Metric):
    """`peft_audio.metrics.equal_error_rate` as a metric of Hugging Face evaluate."""

    def _info(self):
        # A column of integers would turn a label of 0.7 into 0 before it is checked.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="The error rate at the threshold where the miss rate and the false accept rate are equal.",
            citation="",
            inputs_description="""
Args:
    prediction_scores: the score of each trial; higher means more similar.
    references: 1 for target trials (the same speaker), 0 for nontarget trials.
Returns:
    equal_error_rate: in [0, 1].
""",
            features=datasets.Features({"prediction_scores": number, "references": number}),
        )

    def _compute(self, prediction_scores, references):
        return {"equal_error_rate": equal_error_rate(prediction_scores, references)}
