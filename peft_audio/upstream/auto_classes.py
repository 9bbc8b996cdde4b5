"""Which auto class of transformers a model class belongs to, and so which task it is for.

Relied upon: the tables of class names by model type in transformers' `modeling_auto`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Optional

from transformers.models.auto import modeling_auto


_TABLES: dict[str, Mapping[str, Any]] = {
    "AutoModelForAudioClassification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForAudioFrameClassification": modeling_auto.MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForAudioXVector": modeling_auto.MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES,
    "AutoModelForCTC": modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
    "AutoModelForSpeechSeq2Seq": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
SPEECH_TASKS = tuple(_TABLES)[:5]
"""Names of those auto classes that this package has counterparts of."""


def auto_class_of(class_name: Any) -> Optional[str]:
    """Return the name of the auto class that makes models of a class, None for bare encoders and other tasks."""
    return next((auto for auto, table in _TABLES.items() if class_name in _names(table)), None)


def auto_classes_of_type(model_type: str) -> list[str]:
    """Return the names of the auto classes that have a class for a model type, such as "wav2vec2"."""
    return [auto for auto, table in _TABLES.items() if model_type in table]


def types_of_auto_class(auto_class: str) -> list[str]:
    """Return the model types that an auto class has a class for, sorted."""
    return sorted(_TABLES[auto_class])


def _names(table: Mapping[str, Any]) -> Iterator[str]:
    for entry in table.values():
        yield from (entry if isinstance(entry, (tuple, list)) else (entry,))
