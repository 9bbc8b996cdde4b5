"""The models that are measured: three backbones of their real size, untrained, with every method on them."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)

from benchmarking.layer_wide import layer_wide
from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    SideNetworkConfig,
    TimeFreqConvAdapterConfig,
    resize_whisper,
    save_activations_in_half,
)
from peft_audio.backbones.table import resolve


NUM_LABELS = 50
SAMPLING_RATE = 16000
WAV2VEC2_DROPOUTS = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout")


@dataclass(frozen=True)
class Input:
    """What a model reads: frames of 10 ms for AST-base (128 mel bins, strides of 10), seconds for the others.

    `is_tiny` gives models of the same kind and 16 dimensions, to try out what measures them.
    """

    backbone: str
    size: int
    is_tiny: bool = False

    @property
    def name(self) -> str:
        unit = "frames" if self.backbone == "AST-base" else "s"
        return f"{'tiny ' * self.is_tiny}{self.backbone}, {self.size} {unit}"

    def make_model(self, dropout: bool = True) -> PreTrainedModel:
        """The bare classifier, in transformers' default configuration. wav2vec2 has dropout there, the others none.

        Layerdrop and SpecAugment are off: with them one step is not like another.
        """
        torch.manual_seed(0)
        return MODELS[self.backbone](self, dropout)

    def make_batch(self, batch_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        name, shape = {
            "AST-base": ("input_values", (self.size, 128)),
            "wav2vec2-base": ("input_values", (self.size * SAMPLING_RATE,)),
            "Whisper-base": ("input_features", (80, self.size * 100)),
        }[self.backbone]
        return {
            name: torch.randn(batch_size, *shape, generator=generator),
            "labels": torch.randint(NUM_LABELS, (batch_size,), generator=generator),
        }


def make_ast(source: Input, dropout: bool) -> PreTrainedModel:
    sizes = TINY if source.is_tiny else {}
    return ASTForAudioClassification(ASTConfig(max_length=source.size, num_labels=NUM_LABELS, **sizes))


def make_wav2vec2(source: Input, dropout: bool) -> PreTrainedModel:
    options = {} if dropout else dict.fromkeys(WAV2VEC2_DROPOUTS, 0.0)
    sizes = {**TINY, **TINY_FRONT_END} if source.is_tiny else {}
    config = Wav2Vec2Config(layerdrop=0.0, apply_spec_augment=False, num_labels=NUM_LABELS, **options, **sizes)
    return Wav2Vec2ForSequenceClassification(config)


def make_whisper(source: Input, dropout: bool) -> PreTrainedModel:
    """The encoder of Whisper base with a classifier, for clips of this length; its decoder is not made."""
    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    if source.is_tiny:
        sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    model = WhisperForAudioClassification(WhisperConfig(**sizes, num_labels=NUM_LABELS))
    return resize_whisper(model, source.size)


TINY = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}
TINY_FRONT_END = {
    "conv_dim": (8, 8),
    "conv_kernel": (40, 40),
    "conv_stride": (20, 16),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
MODELS = {"AST-base": make_ast, "wav2vec2-base": make_wav2vec2, "Whisper-base": make_whisper}

AST_1024, AST_512, AST_128 = (Input("AST-base", frames) for frames in (1024, 512, 128))
WAV2VEC2_1, WAV2VEC2_3, WAV2VEC2_5 = (Input("wav2vec2-base", seconds) for seconds in (1, 3, 5))
WHISPER_5, WHISPER_30 = (Input("Whisper-base", seconds) for seconds in (5, 30))
# With the batch sizes that two CPU cores have time for.
INPUTS = {AST_1024: 1, AST_512: 2, AST_128: 8, WAV2VEC2_1: 8, WAV2VEC2_3: 4, WAV2VEC2_5: 2}
# Measured where they are asked for.
MORE_INPUTS = {WHISPER_5: 4, WHISPER_30: 1}


def with_lora(model: PreTrainedModel) -> nn.Module:
    head = list(resolve(model).head)
    return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=head))


def with_lora_and_frozen_feature_encoder(model: PreTrainedModel) -> nn.Module:
    feature_encoder = resolve(model).feature_encoder
    if feature_encoder is not None:
        feature_encoder._freeze_parameters()
    return with_lora(model)


def with_adapters(make_config: Callable[..., PeftConfig], **fields) -> Callable[[PreTrainedModel], nn.Module]:
    return lambda model: get_peft_model(model, make_config(**fields))


def with_half_precision_activations(model: PreTrainedModel) -> nn.Module:
    return save_activations_in_half(SUBJECTS[IPET](model))


FULL, LORA = "full fine-tuning", "LoRA of PEFT (r = 8 on query and value)"
LORA_FROZEN = "LoRA, with the feature encoder's backward pass turned off"
IPET, IPET_LARGE = "IPET (k = 4, h = 32)", "IPET (k = 64, h = 64)"
IPET_HALF = "IPET (k = 4, h = 32), activations in half precision"
LAYER_WIDE = "the same, prompts in front of whole layers"
LAYER_WIDE_FROZEN = "the same, with the feature encoder frozen"
SIDE = "side network (w = d / 8, mlp)"
LOAA, AAT_MS = "LoAA T + F (r = 36)", "AAT^MS (d / 4)"

SUBJECTS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    FULL: lambda model: model,
    LORA: with_lora,
    LORA_FROZEN: with_lora_and_frozen_feature_encoder,
    IPET: with_adapters(IPETConfig, num_virtual_tokens=4, bottleneck_dim=32),
    IPET_HALF: with_half_precision_activations,
    IPET_LARGE: with_adapters(IPETConfig, num_virtual_tokens=64, bottleneck_dim=64),
    LAYER_WIDE: partial(layer_wide, num_prompts=64, bottleneck_dim=64),
    LAYER_WIDE_FROZEN: partial(layer_wide, num_prompts=64, bottleneck_dim=64, freeze_feature_encoder=True),
    "embedding prompts (k = 4)": with_adapters(EmbeddingPromptConfig, num_virtual_tokens=4),
    "parallel MLP (h = 32)": with_adapters(ParallelMLPAdapterConfig, bottleneck_dim=32),
    LOAA: with_adapters(TimeFreqConvAdapterConfig, bottleneck_dim=36),
    AAT_MS: with_adapters(ParallelMLPAdapterConfig, reduction_factor=4, activation="gelu", spatial_adapter=True),
    "bottleneck (h = 32, Houlsby)": with_adapters(
        BottleneckAdapterConfig, bottleneck_dim=32, sites=("attention", "mlp")
    ),
    "Conformer adapter (r = 12)": with_adapters(BottleneckAdapterConfig, bottleneck_dim=12, block="conformer"),
    SIDE: with_adapters(SideNetworkConfig),
    "side network (w = d / 8, conv)": with_adapters(SideNetworkConfig, block="conv"),
    "side network (w = d / 8, attention)": with_adapters(SideNetworkConfig, block="attention"),
    "input prompt (p = 10)": with_adapters(InputPromptConfig, prompt_size=10),
}


def make_subjects(source: Input, names: list[str], dropout: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """The models with their names, one after the other, in training mode, all with the same backbone weights."""
    base = source.make_model(dropout)
    for name in names:
        yield name, SUBJECTS[name](copy.deepcopy(base)).train()
