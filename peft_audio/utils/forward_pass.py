"""The state of running forward passes: one object for each model, with the pass that each thread is running.

A pass has a state of its own, also where a hook inside a pass runs the same model on another batch, and so have the calls
of the encoder and of each layer within it. They are entered and left by `try` and `finally`, so that an interrupted call
leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import nn


ATTRIBUTE = "_peft_audio_forward_pass"  # of the model that the object belongs to
Samples = dict[str, torch.Tensor]  # the indices of the samples in a batch by the name of their adapter


class BlockInput(NamedTuple):
    """What a block reads, before (`residual`) and after its norm, `(batch, tokens, hidden_size)` both."""

    residual: torch.Tensor
    normalized: torch.Tensor


class PassState:
    """What hooks leave for each other during one call of a model, its encoder or one of its layers.

    Who writes a field, and who reads it:

    | field | written by | read by |
    |---|---|---|
    | `samples`, `adapter` | the call of the model (model_calls.py), `HookedTunerLayer.by_adapter` | every tuner layer |
    | `clip_lengths` | around the encoder (input_layer.py) | the input's tuner layer |
    | `head_reads_first`, `only_first_read` | around classifier and encoder (read_tokens.py) | the last encoder layer |
    | `grid` | hook on the patch projection | adapters that mix tokens |
    | `attention_mask` | hook in front of attention | adapters that mix tokens |
    | `attention_residual` | hook on the norm before attention | hook in front of attention |
    | `attention_input` | hook in front of attention | hook after attention |
    | `num_prompts` | hook in front of attention | hook after attention |
    | `extra_tokens_pending` | hook in front of attention | attention function, hook after attention |
    | `in_attention` | attention function (attention.py) | the configuration of attention modules |
    | `mlp_input` | hook on the norm before the feed-forward block | hook after the feed-forward block |
    | `unread` | the last encoder layer | its hook in front of attention |
    | `side_states` | encoder layers, when they have run (side_path.py) | the layers after them |

    Args:
        outer: the state of the call around this one, whose samples and grid it has.
        samples: see below.
        grid: see below.

    Attributes:
        outer: the state of the call around this one; None for a call of the model.
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
        side_states: the states of side networks by adapter, `(its samples, tokens, width)`; None outside of all calls, where
            no layer follows another.
    """

    def __init__(
        self,
        outer: Optional[PassState] = None,
        samples: Optional[Samples] = None,
        grid: Optional[tuple[int, int]] = None,
    ) -> None:
        self.outer = outer
        self.samples = samples
        self.grid = grid
        self.adapter: Optional[str] = None
        self.clip_lengths: Optional[torch.Tensor] = None
        self.head_reads_first = False
        self.only_first_read = False
        self.attention_mask: Optional[torch.Tensor] = None
        self.attention_residual: Optional[torch.Tensor] = None
        self.attention_input: Optional[BlockInput] = None
        self.num_prompts = 0
        self.extra_tokens_pending = False
        self.in_attention = False
        self.mlp_input: Optional[BlockInput] = None
        self.unread: Optional[torch.Tensor] = None
        self.side_states: Optional[dict[str, torch.Tensor]] = {}

    @property
    def is_needed_again(self) -> bool:
        """Whether a call that checkpointing runs again needs this state, and not just any."""
        return self.grid is not None or self.unread is not None or self.samples is not None

    def again(self) -> PassState:
        """Return the state in which checkpointing runs the same call again."""
        state = PassState(self.outer, self.samples, self.grid)
        state.unread = self.unread
        return state


class ForwardPass(threading.local):
    """The state of the call that a thread is running; other threads that run the model have their own.

    Copies of a model (deepcopy, pickle) get an empty one.

    Attributes:
        current: the state of the innermost call; outside of all calls, that of modules that are called on their own.
        request: what calls of the model do with their batch (mixed_batch.py); None for the usual.
        claims: requests of calls of the model whose hooks are running, innermost last.
        layer_weights: the weights of the hidden states in the running call (weighted_layer_sum.py); None for the model's.
        cached_call: what stands for the frozen part in the running call (caching/replay.py); None for raw input.
    """

    def __init__(self) -> None:
        """Make the state of a thread that runs no forward pass."""
        self.current = PassState()
        self.current.side_states = None
        self.request: Any = None
        self.claims: list[Any] = []
        self.layer_weights: Optional[torch.Tensor] = None
        self.cached_call: Any = None

    def run(self, state: PassState, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return `forward(*args, **kwargs)`, which has `state`."""
        outer, self.current = self.current, state
        request, self.request = self.request, None  # it is for this call, and not for calls within
        try:
            return forward(*args, **kwargs)
        finally:
            self.current, self.request = outer, request

    @staticmethod
    def of(model: nn.Module) -> ForwardPass:
        """Return the object that belongs to `model`, made when it is first asked for."""
        return vars(model).setdefault(ATTRIBUTE, ForwardPass())

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardPass:
        return type(self)()

    def __reduce__(self) -> tuple:
        return type(self), ()
