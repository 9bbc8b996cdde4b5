"""The convolution module of the Conformer, as an adapter."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn
from torch.nn import functional

from ..upstream.autograd import is_recomputation
from .adapter_module import AdapterModule, TokenLayout, in_dtype_of
from .initial import RANDOM_INIT_STD
from .scaled import ScaledLinear


class ConformerBlock(AdapterModule):
    """LN, pointwise d -> 2r, GLU, depthwise convolution over the tokens, BatchNorm, SiLU, pointwise r -> d.

    Source: Cappellazzo et al., "Parameter-efficient transfer learning of audio spectrogram transformers", 2023; Gulati
    et al., "Conformer", 2020, section 2.2. The last projection starts at zero, so the block returns zero at first. The
    depthwise convolution has no bias: the batch norm after it would cancel it.

    Args:
        hidden_size: width d of the tokens.
        bottleneck_dim: width r of the bottleneck.
        kernel: kernel size of the depthwise convolution; an even size is padded with one more zero on the right.
        scaling: factor on the output.
        dropout: probability of dropping an element before the last projection, in training.
        init_weights: False draws the last projection at random, so that the block changes its input from the start.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck_dim: int,
        kernel: int = 8,
        scaling: float = 1.0,
        dropout: float = 0.0,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.padding = ((kernel - 1) // 2, kernel // 2)
        self.norm = nn.LayerNorm(hidden_size)
        self.down = nn.Linear(hidden_size, 2 * bottleneck_dim)
        self.depthwise = nn.Conv1d(bottleneck_dim, bottleneck_dim, kernel, groups=bottleneck_dim, bias=False)
        self.batch_norm = TokenBatchNorm(bottleneck_dim)
        self.dropout = nn.Dropout(dropout)
        self.up = ScaledLinear(bottleneck_dim, hidden_size)
        self.reset_parameters(init_weights)

    def reset_parameters(self, init_weights: bool = True) -> None:
        """Draw fresh weights; `init_weights=False` draws the last projection at random instead of zero."""
        for module in (self.norm, self.down, self.depthwise, self.batch_norm):
            module.reset_parameters()
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter) if init_weights else nn.init.normal_(parameter, std=RANDOM_INIT_STD)

    def forward(self, hidden_states: torch.Tensor, layout: Optional[TokenLayout] = None) -> torch.Tensor:
        """Map `(batch, tokens, hidden_size)` to the same shape, in the input's dtype or autocast's."""
        layout = layout or TokenLayout(grid=(1, hidden_states.shape[1]))
        hidden = self.norm(self.cast_input(hidden_states, self.down.weight))
        hidden = layout.hide_padding(functional.glu(self.down(hidden), dim=-1))
        hidden = self.depthwise(functional.pad(hidden.transpose(1, 2), self.padding)).transpose(1, 2)
        hidden = functional.silu(self.batch_norm(hidden, layout.mask))
        return in_dtype_of(hidden_states, self.up(self.dropout(hidden), self.scaling))


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm of tokens `(batch, tokens, channels)` whose statistics leave padding out.

    A forward pass that is repeated by gradient checkpointing does not count a second time.
    """

    def forward(self, tokens: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Normalize `(batch, tokens, channels)`; `mask`, `(batch, tokens)`, is False for padding, which becomes zero."""
        if mask is None or not self.training:
            return self._normalize(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        if torch.compiler.is_compiling():
            return self._normalize_masked(tokens, mask)
        outputs = torch.zeros_like(tokens)
        outputs[mask] = self._normalize(tokens[mask]).to(tokens.dtype)
        return outputs

    def _normalize_masked(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Do the same in tensors whose shapes depend on no values, which compiled graphs need."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        is_real = mask.unsqueeze(-1).float()
        count, values = is_real.sum(), tokens.float()
        mean = (values * is_real).sum((0, 1)) / count
        variance = ((values - mean).square() * is_real).sum((0, 1)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalized = (values - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
        return (normalized * is_real).to(tokens.dtype)

    def _normalize(self, tokens: torch.Tensor) -> torch.Tensor:
        # What `nn.BatchNorm1d` has unless it is told to keep no running statistics.
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if self.running_mean.dtype != self.weight.dtype:
            # PEFT keeps the parameters of adapters on a half-precision model in float32, but not their buffers.
            with torch.inference_mode(False):  # they are kept, and training may come next
                self.running_mean = self.running_mean.to(self.weight.dtype)
                self.running_var = self.running_var.to(self.weight.dtype)
        if self.training and is_recomputation():
            # The same operation, on copies: checkpointing counts what it saves for the backward pass.
            statistics = self.running_mean.clone(), self.running_var.clone()
            return functional.batch_norm(tokens, *statistics, self.weight, self.bias, True, self.momentum, self.eps)
        return super().forward(tokens)
