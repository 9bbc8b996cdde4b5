"""Pipelines of resized models: their feature extractor makes inputs as long as the model takes.

`pipeline("audio-classification", model=adapter_folder)` takes the feature extractor of the base model, which makes them as
long as that was before it was resized.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ..ast.resize import RESIZES
from ..upstream.wrapping import AUDIO_PIPELINE, SPEECH_PIPELINE, replace_method
from ..whisper.resize import POSITIONS, fit_feature_extractor


def wrap_pipelines() -> None:
    """Wrap the pipelines of audio classification and speech recognition. Calling it again changes nothing."""
    for pipeline in (AUDIO_PIPELINE, SPEECH_PIPELINE):
        replace_method(pipeline, _fitting_feature_extractor)


def _fitting_feature_extractor(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.feature_extractor = fitted(self.feature_extractor, self.model.config)

    return __init__


def fitted(feature_extractor: Any, config: Any) -> Any:
    """Return a copy of a feature extractor that makes inputs as long as an AST or a Whisper takes; any other as it is.

    Args:
        feature_extractor: of the model.
        config: the model's configuration.
    """
    is_whisper = hasattr(feature_extractor, "nb_max_frames") and hasattr(config, POSITIONS)
    is_resized_ast = hasattr(feature_extractor, "max_length") and bool(getattr(config, RESIZES, None))
    if not (is_whisper or is_resized_ast):
        return feature_extractor
    other = copy.deepcopy(feature_extractor)  # the caller's own stays as it is
    if is_whisper:
        fit_feature_extractor(other, getattr(config, POSITIONS))
    else:
        other.max_length = config.max_length
    return other
