"""A pretrained model as a recognizer of speech, for its own vocabulary or a new one."""

from __future__ import annotations

import os
from typing import Any, Optional, Union

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, PreTrainedModel

from ..upstream.auto_classes import auto_classes_of_type
from ..upstream.transformers_models import initializer_std
from ..whisper.resize import resize_whisper


CTC, SEQ2SEQ = "AutoModelForCTC", "AutoModelForSpeechSeq2Seq"


def recognizer_kind(config: Any, name: Union[str, os.PathLike]) -> str:
    """Return the name of the auto class that makes a recognizer of a pretrained model.

    Args:
        config: its configuration.
        name: its folder or Hub id, for the error message.

    Raises:
        ValueError: no recognizer can be made of this type.
    """
    kinds = [kind for kind in auto_classes_of_type(config.model_type) if kind in (CTC, SEQ2SEQ)]
    if not kinds:
        raise ValueError(
            f"{os.fspath(name)} is of type {config.model_type!r}, of which transformers has no recognizer. Use a Whisper, or a "
            "wav2vec2 or one of its kin."
        )
    return kinds[0]


def load_recognizer(
    name: Union[str, os.PathLike],
    *,
    tokenizer: Optional[Any] = None,
    max_seconds: Optional[float] = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained model as a recognizer: with a CTC head, or (Whisper) with its decoder.

    Args:
        name: folder or Hub id of the model.
        tokenizer: of a new vocabulary, for a new CTC head of its size; None for the model's own.
        max_seconds: seconds that a Whisper is to take, see `resize_whisper`; None for the model's own.
        **kwargs: for `from_pretrained`; but `dtype` is float32 and `ctc_loss_reduction` "mean" unless they are given.

    Raises:
        OSError: if there is no such model.
        ValueError: if the type has no recognizer, `max_seconds` is given and the model is not a Whisper, or a tokenizer is
            and the model has no CTC head.
    """
    kind = recognizer_kind(AutoConfig.from_pretrained(name), name)
    options: dict[str, Any] = {"dtype": torch.float32, **kwargs}
    if kind == SEQ2SEQ and tokenizer is not None:
        raise ValueError(
            f"`tokenizer` is for a new CTC head; the decoder of {os.fspath(name)} keeps its vocabulary. Leave it out."
        )
    if kind == SEQ2SEQ:
        model = AutoModelForSpeechSeq2Seq.from_pretrained(name, **options)
    else:
        model = _load_ctc(name, tokenizer, options)
    if max_seconds is not None:
        resize_whisper(model, max_seconds)
    return model


def _load_ctc(name: Union[str, os.PathLike], tokenizer: Optional[Any], options: dict[str, Any]) -> PreTrainedModel:
    options = {"ctc_loss_reduction": "mean", **options}  # a sum would grow with the batch and the clips' texts
    if tokenizer is None:
        return AutoModelForCTC.from_pretrained(name, **options)
    fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = AutoModelForCTC.from_pretrained(name, **{"ignore_mismatched_sizes": True, **fields, **options})
    nn.init.normal_(model.lm_head.weight, std=initializer_std(model.config))  # the old one may have as many tokens
    nn.init.zeros_(model.lm_head.bias)
    return model
