"""The trainable parameters of the papers' configurations, exact, on models of the real geometry."""

import pytest
import torch
from peft import get_peft_model
from transformers import ASTConfig, ASTForAudioClassification, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    TimeFreqConvAdapterConfig,
    use_statistics_pooling,
)


def ast_base(num_labels):
    return ASTForAudioClassification(ASTConfig(num_labels=num_labels))


def wav2vec2_base(num_labels):
    return use_statistics_pooling(Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=num_labels)))


def loaa(attention_kernel=None, mlp_kernel=None, **options):
    return TimeFreqConvAdapterConfig(attention_kernel=attention_kernel, mlp_kernel=mlp_kernel, **options)


CASES = {
    "AAT^M": (ast_base, 20, ParallelMLPAdapterConfig(reduction_factor=4, activation="gelu"), 3_567_380),
    "AAT^MS": (
        ast_base,
        20,
        ParallelMLPAdapterConfig(reduction_factor=4, activation="gelu", spatial_adapter=True),
        7_117_844,
    ),
    "prompts": (ast_base, 20, EmbeddingPromptConfig(num_virtual_tokens=12), 127_508),
    "IPET on AST": (ast_base, 50, IPETConfig(num_virtual_tokens=4, bottleneck_dim=32), 676_274),
    "IPET on wav2vec2": (wav2vec2_base, 50, IPETConfig(num_virtual_tokens=128, bottleneck_dim=128), 3_629_618),
    "LoAA beside attention": (ast_base, 44, loaa(attention_kernel=(1, 3)), 2_026_028),
    "LoAA beside the feed-forward": (ast_base, 44, loaa(mlp_kernel=(3, 1)), 2_026_028),
    "LoAA beside both": (ast_base, 44, TimeFreqConvAdapterConfig(), 4_016_684),
    "LoAA wide": (ast_base, 44, loaa(bottleneck_dim=72, attention_kernel=(1, 3)), 4_016_684),
    "LoAA of kernel 1 x 1": (ast_base, 44, loaa(bottleneck_dim=108, mlp_kernel=(1, 1)), 2_026_028),
    "LoAA of kernel 3 x 3": (ast_base, 44, loaa(bottleneck_dim=12, mlp_kernel=(3, 3)), 2_026_028),
    # A frame of width 10 around 1024 x 128.
    "input prompt": (ast_base, 50, InputPromptConfig(), 2 * 10 * 128 + 2 * 10 * 1004 + 768 * 2 + 769 * 50),
    "input prompt on a waveform": (wav2vec2_base, 50, InputPromptConfig(), 2 * 10 + 2 * 1536 + 1537 * 50),
    "bottlenecks at both sites with norms": (
        ast_base,
        50,
        BottleneckAdapterConfig(bottleneck_dim=12, sites=("attention", "mlp"), train_layer_norms=True),
        12 * 2 * (2 * 768 * 12 + 12 + 768 + 2 * 768) + 768 * 2 + 769 * 50,
    ),
    # Norm, 768 -> 2 * 12, a kernel of 8 on 12 channels, batch norm, 12 -> 768.
    "conformer": (
        ast_base,
        50,
        BottleneckAdapterConfig(reduction_factor=64, block="conformer"),
        12 * (2 * 768 + 769 * 24 + 12 * 8 + 2 * 12 + 13 * 768) + 768 * 2 + 769 * 50,
    ),
    "linear probe": (ast_base, 50, ParallelMLPAdapterConfig(layers_to_transform=[]), 768 * 2 + 769 * 50),
    # Twelve factors and no biases: 12 (2 * 768 * 64 + 1) beside the head.
    "learned scaling": (
        ast_base,
        50,
        ParallelMLPAdapterConfig(learn_scaling=True, use_bias=False),
        12 * (2 * 768 * 64 + 1) + 768 * 2 + 769 * 50,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_trainable_parameters(case):
    make_model, num_labels, config, expected = CASES[case]
    with torch.device("meta"):
        model = make_model(num_labels)
        total = sum(parameter.numel() for parameter in model.parameters())
        model = get_peft_model(model, config)
    trainable, everything = model.get_nb_trainable_parameters()
    assert trainable == expected
    # PEFT counts the head twice: the frozen one of the base model and the adapter's own.
    assert everything == total + expected
