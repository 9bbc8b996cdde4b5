"""The trainable building blocks, in plain torch: nothing here knows a model, PEFT or Hugging Face."""

from .adapter_module import AdapterModule, TokenLayout, in_dtype_of
from .bottleneck import Bottleneck
from .conformer import ConformerBlock
from .grid_conv import GridConv
from .mixers import DepthwiseConv, NarrowAttention, TokenMixer
from .prompts import EmbeddingPrompt, InputPrompt, vpt_bound, xavier_uniform_bound
from .side import SideBlock, SideOutput


__all__ = [
    "AdapterModule",
    "Bottleneck",
    "ConformerBlock",
    "DepthwiseConv",
    "EmbeddingPrompt",
    "GridConv",
    "InputPrompt",
    "NarrowAttention",
    "SideBlock",
    "SideOutput",
    "TokenLayout",
    "TokenMixer",
    "in_dtype_of",
    "vpt_bound",
    "xavier_uniform_bound",
]
