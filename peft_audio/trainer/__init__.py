"""Trainers for audio classifiers and for recognizers, the methods of the training scripts, what they check and report.

`import peft_audio` does not import it, because the Trainer of transformers takes long to import.
"""

from ..losses import classification_loss
from ..utils.arguments import UsageError, check_writable
from .argument_checks import check_metric, check_model_folder, checkpoint_to_resume
from .arguments import AudioTrainingArguments, SpeechTrainingArguments
from .audio_trainer import AudioTrainer
from .checks import GradientCheck, ProgressCheck, problem_at_the_end
from .frames import frame_grid, frame_metrics
from .frozen_states import cache_training_data
from .linear_probe import has_frozen_base
from .method_arguments import MethodArguments
from .method_table import METHODS, Method, apply_method, make_config
from .metrics import multi_label_metrics, single_label_metrics
from .progress import ProgressLine, what_was_saved
from .reports import logits_of, parameter_counts, plot_curves, saved_bytes
from .speech_trainer import SpeechTrainer
from .verification_plot import plot_verification
from .xvector_trainer import XVectorTrainer


__all__ = [
    "METHODS",
    "AudioTrainer",
    "AudioTrainingArguments",
    "GradientCheck",
    "Method",
    "MethodArguments",
    "ProgressCheck",
    "ProgressLine",
    "SpeechTrainer",
    "SpeechTrainingArguments",
    "UsageError",
    "XVectorTrainer",
    "apply_method",
    "cache_training_data",
    "check_metric",
    "check_model_folder",
    "check_writable",
    "checkpoint_to_resume",
    "classification_loss",
    "frame_grid",
    "frame_metrics",
    "has_frozen_base",
    "logits_of",
    "make_config",
    "multi_label_metrics",
    "parameter_counts",
    "plot_curves",
    "plot_verification",
    "problem_at_the_end",
    "saved_bytes",
    "single_label_metrics",
    "what_was_saved",
]
