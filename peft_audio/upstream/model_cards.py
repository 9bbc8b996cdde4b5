"""What model cards need from inside of PEFT, transformers and huggingface_hub.

Relied upon: a sentence of the template that PEFT fills in for a new model card, transformers' table of feature extractors
by configuration class, and huggingface_hub's rules for names of repositories.
"""

from __future__ import annotations

import inspect
from typing import Any, Optional

import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


PEFT_TEMPLATE_MARK = "<!-- Provide a quick summary of what the model is/does. -->"
"""A sentence of PEFT's template: a model card that has it was not written by a person."""


def default_sampling_rate(model_class_name: str) -> Optional[int]:
    """Return the sampling rate in Hz that the feature extractor of a model class has by default.

    Args:
        model_class_name: name of a class of transformers.

    Returns:
        None where there is no such class, no feature extractor for it, or none with a sampling rate.
    """
    model_class = getattr(transformers, model_class_name, None)
    extractors: Any = transformers.FEATURE_EXTRACTOR_MAPPING
    if model_class is None or model_class.config_class not in extractors:
        return None
    parameters = inspect.signature(extractors[model_class.config_class]).parameters
    return parameters["sampling_rate"].default if "sampling_rate" in parameters else None


def is_hub_id(name: str) -> bool:
    """Whether a repository on the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
