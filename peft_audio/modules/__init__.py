"""The trainable building blocks, in plain torch: nothing here knows a model, PEFT or Hugging Face."""

from .adapter_module import AdapterModule, TokenLayout, in_dtype_of
from .bottleneck import Bottleneck
from .conformer import ConformerBlock
from .grid_conv import GridConv
from .prompts import EmbeddingPrompt, InputPrompt, vpt_bound, xavier_uniform_bound


__all__ = [
    "AdapterModule",
    "Bottleneck",
    "ConformerBlock",
    "EmbeddingPrompt",
    "GridConv",
    "InputPrompt",
    "TokenLayout",
    "in_dtype_of",
    "vpt_bound",
    "xavier_uniform_bound",
]
