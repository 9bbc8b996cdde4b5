"""Parameter-efficient tuning of audio transformers, as tuner types of Hugging Face PEFT.

Importing the package registers its tuner types, so `get_peft_model`, `PeftModel.from_pretrained` and transformers'
`load_adapter` know them.
"""

from .ast import resize_ast
from .auto import AutoPeftModelForAudioClassification
from .backbones import EncoderSpec, register_backbone, supported_backbones
from .methods.embedding_prompt import EmbeddingPromptConfig, EmbeddingPromptModel
from .methods.ipet import IPETConfig, IPETModel
from .methods.parallel_mlp_adapter import ParallelMLPAdapterConfig, ParallelMLPAdapterModel
from .pooling import use_statistics_pooling


__version__ = "0.1.0"

__all__ = [
    "AutoPeftModelForAudioClassification",
    "EmbeddingPromptConfig",
    "EmbeddingPromptModel",
    "EncoderSpec",
    "IPETConfig",
    "IPETModel",
    "ParallelMLPAdapterConfig",
    "ParallelMLPAdapterModel",
    "register_backbone",
    "resize_ast",
    "supported_backbones",
    "use_statistics_pooling",
]
