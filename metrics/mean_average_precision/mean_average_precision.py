"""Mean average precision over labels for Hugging Face evaluate: `evaluate.load("metrics/mean_average_precision")`."""

import datasets
import evaluate

from peft_audio.metrics import mean_average_precision


class MeanAveragePrecision(evaluate.Metric):
    """`peft_audio.metrics.mean_average_precision` as a metric of Hugging Face evaluate."""

    def _info(self):
        # Floats for the references too: NaN, an unknown label, has no integer.
        row = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="The mean over the labels of the average precision of the clips in order of score (mAP).",
            citation="",
            inputs_description="""
Args:
    prediction_scores: a row for each clip, with the score of each label.
    references: a row for each clip: 1 where it has the label, 0 where not, NaN where that is unknown.
Returns:
    mean_average_precision: in (0, 1], over the labels that some clip has.
""",
            features=datasets.Features({"prediction_scores": row, "references": row}),
        )

    def _compute(self, prediction_scores, references):
        return {"mean_average_precision": mean_average_precision(prediction_scores, references)}
