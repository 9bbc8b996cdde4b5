"""The trainable building blocks, in plain torch: nothing here knows a model, PEFT or Hugging Face."""

from .bottleneck import Bottleneck
from .conformer import ConformerBlock
from .grid_conv import GridConv, TokenLayout
from .prompts import EmbeddingPrompt, InputPrompt, vpt_bound, xavier_uniform_bound


__all__ = [
    "Bottleneck",
    "ConformerBlock",
    "EmbeddingPrompt",
    "GridConv",
    "InputPrompt",
    "TokenLayout",
    "vpt_bound",
    "xavier_uniform_bound",
]
