"""The Trainer of transformers, for recognizers: it predicts tokens, generated or by CTC."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Optional, cast
from unittest import mock

import torch
from peft import PeftModel
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from ..data import TranscribedDataset
from ..losses import IGNORED
from ..upstream.transformers_models import frame_count, frame_mask, has_frame_mask
from .adapter_training import AdapterTraining


CLIPS = "clips"
"""Name of the indices of a batch's clips. They come back as the labels, so that a metric finds what was said in each."""


class SpeechTrainer(AdapterTraining, Seq2SeqTrainer):
    """The Trainer of transformers, for models that recognize speech. See `AdapterTraining` for what it does besides.

    Its predictions are tokens: what the model generates with `predict_with_generate`, else the most likely token of every
    frame, -100 where a frame is padding. `compute_metrics` gets them with the labels or, where the batches have `clips`,
    with these: the indices of the clips.

    Args:
        model: a recognizer, with or without adapters.
        args: `SpeechTrainingArguments` or `Seq2SeqTrainingArguments`.
        kwargs: further arguments of `AdapterTraining` and the Trainer.
    """

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """See `Trainer.save_model`."""
        if not isinstance(self.model, PeftModel):
            return super().save_model(output_dir, _internal_call)
        # Of a new vocabulary PEFT would look for the embeddings of its tokens, which encoders do not have.
        save = functools.partial(self.model.save_pretrained, save_embedding_layers=False)
        with mock.patch.object(self.model, "save_pretrained", save):
            return super().save_model(output_dir, _internal_call)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Optional[list[str]] = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """See `Seq2SeqTrainer.prediction_step`.

        Args:
            model: as there.
            inputs: as there; may have `clips`, which are no input of the model.
            prediction_loss_only: as there.
            ignore_keys: as there.
            gen_kwargs: as there.
        """
        inputs = dict(inputs)
        clips, args = inputs.pop(CLIPS, None), cast(Seq2SeqTrainingArguments, self.args)
        loss, predicted, labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs
        )
        if predicted is not None and not args.predict_with_generate:
            logits = predicted[0] if isinstance(predicted, tuple) else predicted
            predicted = best_tokens(self.model, logits, inputs.get("attention_mask"))
        is_known = clips is not None and not prediction_loss_only
        return loss, predicted, clips.to(args.device) if is_known else labels


def best_tokens(model: Any, logits: torch.Tensor, attention_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Return the most likely token of every frame, and -100 where a frame is padding.

    Args:
        model: a model with a CTC head, with or without adapters.
        logits: `(batch, frames, tokens)`.
        attention_mask: `(batch, samples)` of the input; None where the model takes none.

    Returns:
        `(batch, frames)`
    """
    tokens = logits.argmax(-1)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if attention_mask is None or not has_frame_mask(base):
        return tokens
    is_real = frame_mask(base, tokens.shape[1], attention_mask).to(tokens.device)
    return tokens.masked_fill(~is_real.bool(), IGNORED)


def too_short_for_ctc(model: Any, dataset: TranscribedDataset) -> list[str]:
    """Return the names of the clips that have fewer frames than CTC needs for their tokens.

    Args:
        model: a model with a CTC head, with or without adapters.
        dataset: the clips.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return [
        name
        for name in dataset.names
        if needed_frames(dataset.tokens[name]) > frame_count(base, len(dataset.features[name][base.main_input_name]))
    ]


def needed_frames(tokens: Sequence[int]) -> int:
    """Return how many frames CTC needs at least: one a token, and a blank between two that are the same.

    Args:
        tokens: of a clip's text.
    """
    return len(tokens) + sum(one == other for one, other in pairwise(tokens))
