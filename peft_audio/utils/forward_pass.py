"""What hooks leave for each other during one forward pass of a model: one object for each model, with a state a thread."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, Optional

import torch
from torch import nn


ATTRIBUTE = "_peft_audio_forward_pass"  # of the model that the object belongs to


class BlockInput(NamedTuple):
    """What a block reads, before (`residual`) and after its norm, `(batch, tokens, hidden_size)` both."""

    residual: torch.Tensor
    normalized: torch.Tensor


class ForwardPass(threading.local):
    """The state of the forward pass that a thread is running; other threads that run the model have their own.

    Copies of a model (deepcopy, pickle) get an empty one. Who writes a field, and who reads it:

    | field | written by | read by |
    |---|---|---|
    | `samples`, `adapter` | `adapter_names` (mixed_batch.py), `HookedTunerLayer.by_adapter` | every tuner layer |
    | `clip_lengths` | hook on the encoder (input_layer.py) | the input's tuner layer |
    | `head_reads_first`, `only_first_read` | hooks on classifier and encoder (read_tokens.py) | the last encoder layer |
    | `grid` | hook on the patch projection | adapters that mix tokens |
    | `attention_mask` | hook in front of attention | adapters that mix tokens |
    | `attention_residual` | hook on the norm before attention | hook in front of attention |
    | `attention_input` | hook in front of attention | hook after attention |
    | `num_prompts` | hook in front of attention | hook after attention |
    | `extra_tokens_pending` | hook in front of attention | attention function, hook after attention |
    | `in_attention` | attention function (attention.py) | the configuration of attention modules |
    | `mlp_input` | hook on the norm before the feed-forward block | hook after the feed-forward block |
    | `unread` | the last encoder layer | its hook in front of attention |
    | `clip_mask` | hook on the classifier (statistics_pooling.py) | the pooling in its head |
    | `cached_calls` | hooks on the model (caching/replay.py) | the same |

    Attributes:
        samples: indices of the samples by adapter, where the samples of a batch have different adapters; else None.
        adapter: the adapter whose samples are being worked on.
        clip_lengths: length of every clip, `(batch,)`; None without padding.
        head_reads_first: whether the running classifier's head reads the first tokens only.
        only_first_read: whether the running encoder's output is read in the first tokens only.
        grid: rows and columns of the patches; None on a model without patches.
        attention_mask: the mask that attention is given.
        attention_residual: what the norm before attention reads.
        attention_input: what attention reads.
        num_prompts: number of prompts that attention is given.
        extra_tokens_pending: whether attention was given extra tokens that its function has not taken yet.
        in_attention: whether the model's own attention function is running.
        mlp_input: what the feed-forward block reads.
        unread: the tokens whose output is left out, `(batch, tokens, hidden_size)`.
        clip_mask: the model and its attention mask, `(batch, samples)`.
        cached_calls: calls of the model that are running, innermost last; None for one from raw input.
    """

    def __init__(self) -> None:
        """Make the state of a thread that runs no forward pass."""
        self.samples: Optional[dict[str, torch.Tensor]] = None
        self.adapter: Optional[str] = None
        self.clip_lengths: Optional[torch.Tensor] = None
        self.head_reads_first = False
        self.only_first_read = False
        self.grid: Optional[tuple[int, int]] = None
        self.attention_mask: Optional[torch.Tensor] = None
        self.attention_residual: Optional[torch.Tensor] = None
        self.attention_input: Optional[BlockInput] = None
        self.num_prompts = 0
        self.extra_tokens_pending = False
        self.in_attention = False
        self.mlp_input: Optional[BlockInput] = None
        self.unread: Optional[torch.Tensor] = None
        self.clip_mask: Optional[tuple[nn.Module, torch.Tensor]] = None
        self.cached_calls: list[Any] = []

    @staticmethod
    def of(model: nn.Module) -> ForwardPass:
        """Return the object that belongs to `model`, made when it is first asked for."""
        return vars(model).setdefault(ATTRIBUTE, ForwardPass())

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardPass:
        return type(self)()

    def __reduce__(self) -> tuple:
        return type(self), ()
