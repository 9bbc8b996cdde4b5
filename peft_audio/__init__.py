"""Parameter-efficient tuning of audio transformers, as tuner types of Hugging Face PEFT.

Importing the package registers its tuner types, so `get_peft_model`, `PeftModel.from_pretrained` and transformers'
`load_adapter` know them.
"""

from .ast import resize_ast
from .ast_conversion import ast_from_vit
from .auto import AutoPeftModelForAudioClassification
from .backbones import register_backbone, supported_backbones
from .card import write_card
from .encoder_spec import EncoderSpec
from .frozen import cache_frozen
from .half_precision import save_activations_in_half
from .loading import wrap_loading
from .methods.bottleneck_adapter import BottleneckAdapterConfig, BottleneckAdapterModel
from .methods.embedding_prompt import EmbeddingPromptConfig, EmbeddingPromptModel
from .methods.input_prompt import InputPromptConfig, InputPromptModel
from .methods.ipet import IPETConfig, IPETModel
from .methods.parallel_mlp_adapter import ParallelMLPAdapterConfig, ParallelMLPAdapterModel
from .methods.time_freq_conv_adapter import TimeFreqConvAdapterConfig, TimeFreqConvAdapterModel
from .pooling import use_statistics_pooling
from .registry import register_pipeline_model
from .resuming import last_complete_checkpoint
from .saving import wrap_saving
from .ssast import ast_from_ssast
from .token_pooling import use_mean_token_pooling


__version__ = "0.1.0"

wrap_saving()
wrap_loading()
register_pipeline_model()

__all__ = [
    "AutoPeftModelForAudioClassification",
    "BottleneckAdapterConfig",
    "BottleneckAdapterModel",
    "EmbeddingPromptConfig",
    "EmbeddingPromptModel",
    "EncoderSpec",
    "IPETConfig",
    "IPETModel",
    "InputPromptConfig",
    "InputPromptModel",
    "ParallelMLPAdapterConfig",
    "ParallelMLPAdapterModel",
    "TimeFreqConvAdapterConfig",
    "TimeFreqConvAdapterModel",
    "ast_from_ssast",
    "ast_from_vit",
    "cache_frozen",
    "last_complete_checkpoint",
    "register_backbone",
    "resize_ast",
    "save_activations_in_half",
    "supported_backbones",
    "use_mean_token_pooling",
    "use_statistics_pooling",
    "write_card",
]
