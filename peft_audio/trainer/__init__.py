"""A Trainer for audio classifiers, what it checks, and what it reports.

`import peft_audio` does not import it, because the Trainer of transformers takes long to import.
"""

from ..losses import classification_loss
from .argument_checks import check_metric, check_model_folder, check_writable, checkpoint_to_resume
from .arguments import AudioTrainingArguments
from .audio_trainer import AudioTrainer
from .checks import GradientCheck, ProgressCheck, problem_at_the_end
from .frozen_states import cache_training_data
from .linear_probe import has_frozen_base
from .metrics import multi_label_metrics, single_label_metrics
from .reports import logits_of, parameter_counts, plot_curves, saved_bytes


__all__ = [
    "AudioTrainer",
    "AudioTrainingArguments",
    "GradientCheck",
    "ProgressCheck",
    "cache_training_data",
    "check_metric",
    "check_model_folder",
    "check_writable",
    "checkpoint_to_resume",
    "classification_loss",
    "has_frozen_base",
    "logits_of",
    "multi_label_metrics",
    "parameter_counts",
    "plot_curves",
    "problem_at_the_end",
    "saved_bytes",
    "single_label_metrics",
]
