"""The trainable parameters of the papers' configurations, exact, on models of the real geometry."""

import pytest
import torch
from peft import get_peft_model
from transformers import ASTConfig, ASTForAudioClassification, Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from peft_audio import EmbeddingPromptConfig, IPETConfig, ParallelMLPAdapterConfig, use_statistics_pooling


def ast_base(num_labels):
    return ASTForAudioClassification(ASTConfig(num_labels=num_labels))


def wav2vec2_base(num_labels):
    return use_statistics_pooling(Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=num_labels)))


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
