"""Parameter-efficient tuning of audio transformers, as tuner types of Hugging Face PEFT.

Importing the package registers its tuner types, so `get_peft_model`, `PeftModel.from_pretrained` and transformers'
`load_adapter` know them.
"""

from .ast.from_ssast import ast_from_ssast
from .ast.from_vit import ast_from_vit
from .ast.resize import resize_ast
from .auto import (
    AutoPeftModelForAudioClassification,
    AutoPeftModelForAudioFrameClassification,
    AutoPeftModelForAudioXVector,
    AutoPeftModelForCTC,
    AutoPeftModelForSpeechSeq2Seq,
    load_classifier,
    load_frame_classifier,
    load_recognizer,
    load_xvector,
)
from .backbones.module_names import encoder_layers, head_modules, query_value_projections
from .backbones.relative_positions import PositionRule
from .backbones.spec import EncoderSpec
from .backbones.table import register_backbone, supported_backbones
from .caching import cache_frozen
from .checkpoints.loading import wrap_loading
from .checkpoints.model_card import write_card
from .checkpoints.pipelines import wrap_pipelines
from .checkpoints.saving import wrap_saving
from .checkpoints.trainer_checkpoints import last_complete_checkpoint
from .heads.mean_token_pooling import use_mean_token_pooling
from .heads.statistics_pooling import use_statistics_pooling
from .methods.bottleneck_adapter import BottleneckAdapterConfig, BottleneckAdapterModel
from .methods.embedding_prompt import EmbeddingPromptConfig, EmbeddingPromptModel
from .methods.input_prompt import InputPromptConfig, InputPromptModel
from .methods.ipet import IPETConfig, IPETModel
from .methods.parallel_mlp_adapter import ParallelMLPAdapterConfig, ParallelMLPAdapterModel
from .methods.side_network import SideNetworkConfig, SideNetworkModel
from .methods.time_freq_conv_adapter import TimeFreqConvAdapterConfig, TimeFreqConvAdapterModel
from .tuner.half_precision import save_activations_in_half
from .tuner.other_tuners import wrap_injection
from .tuner.prompt_start import initialize_prompts
from .tuner.switching import wrap_switching
from .upstream.registration import register_pipeline_model
from .whisper.padding import use_padding_mask
from .whisper.resize import resize_whisper


__version__ = "0.1.0"

wrap_saving()
wrap_loading()
wrap_switching()
wrap_injection()
wrap_pipelines()
register_pipeline_model()

__all__ = [
    "AutoPeftModelForAudioClassification",
    "AutoPeftModelForAudioFrameClassification",
    "AutoPeftModelForAudioXVector",
    "AutoPeftModelForCTC",
    "AutoPeftModelForSpeechSeq2Seq",
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
    "PositionRule",
    "SideNetworkConfig",
    "SideNetworkModel",
    "TimeFreqConvAdapterConfig",
    "TimeFreqConvAdapterModel",
    "ast_from_ssast",
    "ast_from_vit",
    "cache_frozen",
    "encoder_layers",
    "head_modules",
    "initialize_prompts",
    "last_complete_checkpoint",
    "load_classifier",
    "load_frame_classifier",
    "load_recognizer",
    "load_xvector",
    "query_value_projections",
    "register_backbone",
    "resize_ast",
    "resize_whisper",
    "save_activations_in_half",
    "supported_backbones",
    "use_mean_token_pooling",
    "use_padding_mask",
    "use_statistics_pooling",
    "write_card",
]
