"""Prompts: learnable tokens of an encoder layer, and learnable values on the border of a model's input."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import nn

from .initial import RANDOM_INIT_STD


def xavier_uniform_bound(num_tokens: int, hidden_size: int) -> float:
    """Bound of Xavier's uniform distribution for a `(1, num_tokens, hidden_size)` tensor (IPET's initialization)."""
    return math.sqrt(6.0 / (hidden_size * num_tokens + hidden_size))


def vpt_bound(patch_size: int, hidden_size: int) -> float:
    """Bound of the uniform distribution that visual prompt tuning draws prompts from (three input channels)."""
    return math.sqrt(6.0 / (3 * patch_size**2 + hidden_size))


class EmbeddingPrompt(nn.Module):
    """Learnable tokens of one encoder layer (IPET, eq. 1).

    Args:
        num_tokens: number of prompt tokens k.
        hidden_size: width d of the encoder's tokens.
        bound: the tokens start uniformly distributed in [-bound, bound].
        dropout: probability of dropping an element of the prompt, per sample, in training.
    """

    def __init__(self, num_tokens: int, hidden_size: int, bound: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.bound = bound
        self.embeddings = nn.Parameter(torch.empty(num_tokens, hidden_size))
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh tokens, uniformly distributed in [-bound, bound]."""
        nn.init.uniform_(self.embeddings, -self.bound, self.bound)
        self._drawn = self.embeddings.detach().clone()

    @property
    def is_untrained(self) -> bool:
        """Whether the tokens are as they were drawn, so neither trained nor loaded nor set since."""
        embeddings = self.embeddings.detach()
        if embeddings.is_meta or self._drawn.is_meta or embeddings.shape != self._drawn.shape:
            return False
        return torch.equal(embeddings.cpu(), self._drawn.to(embeddings.dtype).cpu())

    def forward(self, batch_size: int) -> torch.Tensor:
        """Return the prompt, `(1, num_tokens, hidden_size)`, or `(batch_size, ...)` in training with dropout.

        Without dropout, all samples share one prompt. It is returned once, so that its keys and values are computed
        once for the whole batch.
        """
        if self.training and self.dropout.p > 0:
            return self.dropout(self.embeddings.expand(batch_size, -1, -1))
        return self.embeddings.unsqueeze(0)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"num_tokens={self.num_tokens}, hidden_size={self.embeddings.shape[1]}"


class InputPrompt(nn.Module):
    """Learnable values added to the border of a model's input (the input prompt of IPET's comparison).

    A spectrogram or image of fixed size gets a frame of width p: `2 p columns + 2 p (rows - 2 p)` values. An input of
    variable length gets its first and last p positions, the last ones counted from the end of each clip.

    Args:
        shape: size of one input without the batch: `(length,)`, `(rows, columns)` or `(channels, rows, columns)`; None
            for a length that varies.
        size: the width p.
        init_weights: start at zero, which leaves the input as it is; False draws the values at random.
    """

    def __init__(self, shape: tuple[Optional[int], ...], size: int, init_weights: bool = True) -> None:
        super().__init__()
        self.size = size
        known = [length for length in shape if length is not None]
        if len(known) == len(shape) > 1:
            *channels, rows, columns = known
            self.ends = nn.Parameter(torch.empty(2, *channels, size, columns))
            self.sides: Optional[nn.Parameter] = nn.Parameter(torch.empty(2, *channels, rows - 2 * size, size))
        else:
            features = [length for length in shape[1:] if length is not None]
            self.ends = nn.Parameter(torch.empty(2, size, *features))
            self.sides = None
        self.reset_parameters(init_weights)

    def reset_parameters(self, init_weights: bool = True) -> None:
        """Set the values to zero; `init_weights=False` draws them at random."""
        for values in self.parameters():
            nn.init.zeros_(values) if init_weights else nn.init.normal_(values, std=RANDOM_INIT_STD)

    def forward(self, inputs: torch.Tensor, lengths: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Return `inputs`, `(batch, *shape)`, with the prompt added.

        Args:
            inputs: the model's input.
            lengths: `(batch,)`, how many positions of each clip are no padding; None for all. Used where the length
                varies.

        Raises:
            ValueError: if the prompt was made for inputs of another size.
        """
        if self.sides is None:
            return self._add_ends(inputs, lengths)
        frame = self._frame(self.sides)
        if inputs.shape[1:] != frame.shape:
            raise ValueError(
                f"The input prompt was made for inputs of shape (batch, {', '.join(map(str, frame.shape))}), got "
                f"{tuple(inputs.shape)}."
            )
        return inputs + frame.to(inputs.dtype)

    def _frame(self, sides: torch.Tensor) -> torch.Tensor:
        """Return the prompt as an input of its own, `shape`, with zeros inside the border."""
        left, right = sides
        inner = left.new_zeros(*left.shape[:-1], self.ends.shape[-1] - 2 * self.size)
        return torch.cat([self.ends[0], torch.cat([left, inner, right], dim=-1), self.ends[1]], dim=-2)

    def _add_ends(self, inputs: torch.Tensor, lengths: Optional[torch.Tensor]) -> torch.Tensor:
        batch_size, length = inputs.shape[:2] if inputs.dim() > 1 else (0, 0)
        if length == 0:
            raise ValueError(
                f"The input prompt was made for inputs of shape (batch, length, ...), got {tuple(inputs.shape)}."
            )
        if lengths is None:
            lengths = torch.full((batch_size,), length, device=inputs.device)
        steps = torch.arange(self.size, device=inputs.device).expand(batch_size, -1)
        starts = torch.zeros_like(lengths), lengths - self.size
        for values, start in zip(self.ends, starts):
            position = steps + start.unsqueeze(1)
            inside = (position >= 0) & (position < lengths.unsqueeze(1))  # a clip may be shorter than the prompt
            features = [1] * (inputs.dim() - 2)
            inside, position = (index.reshape(batch_size, self.size, *features) for index in (inside, position))
            added = torch.where(inside, values.to(inputs.dtype), 0)
            inputs = inputs.scatter_add(1, position.clamp(0, length - 1).expand_as(added), added)
        return inputs

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"size={self.size}, ends={tuple(self.ends.shape)}"


def side_by_side(rows: list[torch.Tensor]) -> torch.Tensor:
    """Put the prompts of several adapters side by side, `(batch or 1, prompts, d)`; 1 if they are the same for all."""
    if len(rows) == 1:
        return rows[0]
    batch_size = max(len(row) for row in rows)
    return torch.cat([row.expand(batch_size, -1, -1) for row in rows], dim=1)
