"""Loading in one line: adapters with their base models, and pretrained models for new labels."""

from .classes import (
    AutoPeftModelForAudioClassification,
    AutoPeftModelForAudioFrameClassification,
    AutoPeftModelForAudioXVector,
    AutoPeftModelForCTC,
    AutoPeftModelForSpeechSeq2Seq,
)
from .classifier import load_classifier, load_frame_classifier, load_xvector
from .recognizer import load_recognizer


__all__ = [
    "AutoPeftModelForAudioClassification",
    "AutoPeftModelForAudioFrameClassification",
    "AutoPeftModelForAudioXVector",
    "AutoPeftModelForCTC",
    "AutoPeftModelForSpeechSeq2Seq",
    "load_classifier",
    "load_frame_classifier",
    "load_recognizer",
    "load_xvector",
]
