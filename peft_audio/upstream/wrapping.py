"""The methods of PEFT and transformers that this package wraps, and how a method is wrapped once.

PEFT and transformers have no hook for a tuner type to say how its adapters are saved and loaded. So functions are put
around the methods below; for other tuner types these call the original and do nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from transformers import AudioClassificationPipeline, AutomaticSpeechRecognitionPipeline, PreTrainedModel


ORIGINAL = "_before_peft_audio"  # attribute of a wrapper: the method that it was put around


class UpstreamMethod(NamedTuple):
    """A method of another library that is wrapped.

    Attributes:
        owner: the class.
        name: name of the method.
        arguments: names of the arguments that the wrapper reads, besides `self`.
    """

    owner: type
    name: str
    arguments: tuple[str, ...]

    @property
    def original(self) -> Callable[..., Any]:
        """The method as its library defines it."""
        method = getattr(self.owner, self.name)
        return getattr(method, ORIGINAL, method)


SAVE_ADAPTER = UpstreamMethod(PeftModel, "save_pretrained", ("save_directory", "is_main_process"))
SAVE_MODEL = UpstreamMethod(PreTrainedModel, "save_pretrained", ("save_directory", "is_main_process", "push_to_hub"))
WRITE_MODEL_CARD = UpstreamMethod(PeftModel, "create_or_update_model_card", ("output_dir",))
PUSH_TO_HUB = UpstreamMethod(PeftModel, "push_to_hub", ("repo_id",))
UPLOAD_FILES = UpstreamMethod(PeftModel, "_upload_modified_files", ("working_dir",))
LOAD_ADAPTER = UpstreamMethod(
    PreTrainedModel,
    "load_adapter",
    (
        "peft_model_id",
        "adapter_name",
        "peft_config",
        "adapter_state_dict",
        "is_trainable",
        "local_files_only",
        "adapter_kwargs",
        "load_config",
    ),
)
LOAD_PEFT_ADAPTER = UpstreamMethod(PeftModel, "load_adapter", ("model_id", "adapter_name"))
DISABLE_ADAPTERS = UpstreamMethod(PreTrainedModel, "disable_adapters", ())
ENABLE_ADAPTERS = UpstreamMethod(PreTrainedModel, "enable_adapters", ())
INJECT_ADAPTER = UpstreamMethod(BaseTuner, "inject_adapter", ("model", "adapter_name"))
AUDIO_PIPELINE = UpstreamMethod(AudioClassificationPipeline, "__init__", ())
SPEECH_PIPELINE = UpstreamMethod(AutomaticSpeechRecognitionPipeline, "__init__", ())
WRAPPED_METHODS = (
    SAVE_ADAPTER,
    SAVE_MODEL,
    WRITE_MODEL_CARD,
    PUSH_TO_HUB,
    UPLOAD_FILES,
    LOAD_ADAPTER,
    LOAD_PEFT_ADAPTER,
    DISABLE_ADAPTERS,
    ENABLE_ADAPTERS,
    INJECT_ADAPTER,
    AUDIO_PIPELINE,
    SPEECH_PIPELINE,
)


def replace_method(method: UpstreamMethod, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a method by `wrapper(method)`.

    Doing it again, as when the package is reloaded, replaces the earlier wrapper instead of adding a second one.
    """
    original = method.original
    wrapped = functools.wraps(original)(wrapper(original))
    setattr(wrapped, ORIGINAL, original)
    setattr(method.owner, method.name, wrapped)


def bind(method: Callable[..., Any], *args: Any, **kwargs: Any) -> inspect.BoundArguments:
    """Return the arguments of a call by name; those that the caller left out are absent.

    Raises:
        TypeError: if `method` does not take these arguments.
    """
    return inspect.signature(method).bind(*args, **kwargs)
