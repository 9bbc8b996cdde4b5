"""The auto classes: an adapter together with its base model, in one line, one class for each task."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Optional, Union

from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
)

from ..checkpoints.local_copy import local_copy
from ..checkpoints.tensors import read_config
from .loading import hub_arguments, load_with_base


class AutoPeftModel:
    """What the auto classes share; use one of them."""

    auto_class: ClassVar[Any]  # transformers' class that loads the base model

    def __init__(self) -> None:
        """Refuse to make an object of this class.

        Raises:
            OSError: always.
        """
        raise OSError(f"Use {type(self).__name__}.from_pretrained(folder_or_hub_id).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Union[str, os.PathLike],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: Optional[PeftConfig] = None,
        revision: Optional[str] = None,
        subfolder: Optional[str] = None,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> PeftModel:
        """Load the base model that the adapter names, set it up as in training, and load the adapter.

        Labels or vocabulary size, input length and strides, kind of head, and the base model's dtype are those of the
        training.

        Args:
            pretrained_model_name_or_path: folder or Hub id of the adapter.
            adapter_name: the name that the adapter gets in the model.
            is_trainable: False freezes the adapter and puts the model in evaluation mode.
            config: the adapter's configuration; None reads it from the folder.
            revision: branch, tag or commit of the adapter's repository.
            subfolder: folder of the adapter inside its repository.
            low_cpu_mem_usage: allocate the adapter's tensors only when they are read.
            **kwargs: for the base model's `from_pretrained` (`dtype`, `device_map`, `token`, ...), fields of its
                configuration, and for `PeftModel.from_pretrained` (`autocast_adapter_dtype`, ...).

        Raises:
            ValueError: if there is no adapter, its files cannot be read, they do not fit the base model, or it was trained
                for another task.
        """
        source = os.fspath(pretrained_model_name_or_path)
        location = {"revision": revision, "subfolder": subfolder, **hub_arguments(kwargs)}
        source, location = local_copy(source, location)
        options = {"adapter_name": adapter_name, "is_trainable": is_trainable, "low_cpu_mem_usage": low_cpu_mem_usage}
        config = config or read_config(source, location)
        return load_with_base(cls.auto_class, source, location, config, options, kwargs)


class AutoPeftModelForAudioClassification(AutoPeftModel):
    """Loads an adapter of an audio classifier together with its base model; use `from_pretrained`.

    Examples:
        >>> config = ASTConfig(hidden_size=12, num_hidden_layers=1)
        >>> config.id2label = {0: "dog", 1: "rain"}
        >>> ASTForAudioClassification(config).save_pretrained("base")
        >>> base_model = ASTForAudioClassification.from_pretrained("base")
        >>> get_peft_model(base_model, peft_audio.EmbeddingPromptConfig()).save_pretrained("adapter")
        >>> model = peft_audio.AutoPeftModelForAudioClassification.from_pretrained("adapter")
        >>> model.config.id2label
        {0: 'dog', 1: 'rain'}
    """

    auto_class = AutoModelForAudioClassification


class AutoPeftModelForAudioFrameClassification(AutoPeftModel):
    """Loads an adapter of a model that gives every frame labels (`AutoModelForAudioFrameClassification`)."""

    auto_class = AutoModelForAudioFrameClassification


class AutoPeftModelForAudioXVector(AutoPeftModel):
    """Loads an adapter of a model that gives speaker embeddings (`AutoModelForAudioXVector`)."""

    auto_class = AutoModelForAudioXVector


class AutoPeftModelForCTC(AutoPeftModel):
    """Loads an adapter of a model that recognizes speech by connectionist temporal classification (`AutoModelForCTC`).

    Its tokenizer is not part of the adapter: save the processor beside it, `processor.save_pretrained(folder)`.
    """

    auto_class = AutoModelForCTC


class AutoPeftModelForSpeechSeq2Seq(AutoPeftModel):
    """Loads an adapter of a model that writes what it hears, such as Whisper (`AutoModelForSpeechSeq2Seq`)."""

    auto_class = AutoModelForSpeechSeq2Seq
