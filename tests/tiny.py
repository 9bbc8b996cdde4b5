"""Tiny seeded models, inputs and configurations that the tests are parametrised over."""

import os
from pathlib import Path

import pytest
import torch
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    ASTModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

from peft_audio import EmbeddingPromptConfig, IPETConfig, ParallelMLPAdapterConfig


SHARED = Path(os.environ.get("PEFT_AUDIO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
NUM_LABELS = 5
HIDDEN_SIZE = 32
NUM_LAYERS = 3


def shared_path(name):
    """Path of a file among the reference data beside the repository; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"reference data {name} not found in {SHARED} (set PEFT_AUDIO_SHARED)")
    return path


def make_ast(cls=ASTForAudioClassification, seed=0, **overrides):
    options = {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_length": 46,
        "num_mel_bins": 36,
        "num_labels": NUM_LABELS,
        "initializer_range": 0.2,
        "layer_norm_eps": 1e-5,
    }
    torch.manual_seed(seed)
    model = cls(ASTConfig(**{**options, **overrides})).eval()
    with torch.no_grad():
        model.base_model.embeddings.position_embeddings.normal_()
    return model


def make_wav2vec2(cls=Wav2Vec2ForSequenceClassification, seed=0, **overrides):
    options = {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16, 16),
        "conv_stride": (5, 4),
        "conv_kernel": (10, 8),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer",
        "num_labels": NUM_LABELS,
        "classifier_proj_size": 16,
        "vocab_size": 8,
        "initializer_range": 0.2,
        "mask_time_prob": 0.0,
        "layerdrop": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
    }
    torch.manual_seed(seed)
    return cls(Wav2Vec2Config(**{**options, **overrides})).eval()


def make_wav2vec2_stable(cls=Wav2Vec2ForSequenceClassification, seed=0, **overrides):
    return make_wav2vec2(cls, seed, **{"do_stable_layer_norm": True, **overrides})


BACKBONES = {"ast": make_ast, "wav2vec2": make_wav2vec2, "wav2vec2-stable-layer-norm": make_wav2vec2_stable}
BARE_CLASSES = {"ast": ASTModel, "wav2vec2": Wav2Vec2Model, "wav2vec2-stable-layer-norm": Wav2Vec2Model}

METHODS = {
    "embedding_prompt": lambda **k: EmbeddingPromptConfig(num_virtual_tokens=3, **k),
    "parallel_mlp": lambda **k: ParallelMLPAdapterConfig(bottleneck_dim=8, **k),
    "parallel_mlp_residual": lambda **k: ParallelMLPAdapterConfig(
        bottleneck_dim=8, adapter_input="residual", scaling=0.1, learn_scaling=True, **k
    ),
    "aat_ms": lambda **k: ParallelMLPAdapterConfig(bottleneck_dim=8, activation="gelu", spatial_adapter=True, **k),
    "ipet": lambda **k: IPETConfig(num_virtual_tokens=3, bottleneck_dim=8, dropout=0.0, **k),
    "joint": lambda **k: IPETConfig(
        num_virtual_tokens=3,
        bottleneck_dim=8,
        dropout=0.0,
        adapter_input="normalized",
        activation="gelu",
        scaling=1.0,
        spatial_adapter=True,
        spatial_bottleneck_dim=4,
        **k,
    ),
}
# Adapters that are the identity until the first step; prompts take part in attention at once.
IDENTITY_AT_START = ("parallel_mlp", "parallel_mlp_residual", "aat_ms")

each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
each_method = pytest.mark.parametrize("method", METHODS)


def make_inputs(backbone, batch_size=2, seed=1):
    """Model inputs by keyword, of the size that the tiny model of `backbone` takes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, 46, 36) if backbone == "ast" else (batch_size, 800)
    return {"input_values": torch.randn(shape, generator=generator)}


def randomize(model, seed=2, std=0.1):
    """Move every trainable parameter away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
