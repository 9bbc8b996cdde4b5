"""The rows of the comparison on Whisper tiny.en, and how each trains.

The rates were chosen with folds 2 and 3 of ESC-10 for training and folds 4 and 5 for judging, by accuracy, and by the loss of
the judged clips where accuracies are within one clip: `real_model_rates.py` prints what was tried.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Row(NamedTuple):
    """What the table calls a row, its `--method` and options in the training script, its rates, and fields of the model."""

    title: str
    method: str
    options: dict[str, Any]
    learning_rate: float
    head_learning_rate: float = 3e-3
    model_fields: Mapping[str, Any] = MappingProxyType({})


NORMALIZED = {"adapter_input": "normalized", "adapter_activation": "gelu", "scaling": 1.0, "adapter_dropout": 0.0}
PAPER = {"adapter_input": "residual", "adapter_activation": "relu", "scaling": 0.1, "adapter_dropout": 0.1}
PROMPTS = {"num_virtual_tokens": 8}

ROWS = {
    "linear_probe": Row("head alone (projector and classifier)", "linear_probe", {}, 3e-3),
    "layer_sum": Row(
        "head alone, on the weighted layer sum",
        "linear_probe",
        {},
        3e-3,
        model_fields={"use_weighted_layer_sum": True},
    ),
    "embedding_prompt": Row("prompts, k = 8", "embedding_prompt", PROMPTS, 1e-3),
    "parallel_mlp": Row("parallel MLP, h = 64", "parallel_mlp", {**NORMALIZED, "bottleneck_dim": 64}, 1e-3),
    "ipet": Row("IPET, k = 8, h = 64", "ipet", {**NORMALIZED, **PROMPTS, "bottleneck_dim": 64}, 1e-3),
    "ipet_paper": Row("IPET with the paper's adapter", "ipet", {**PAPER, **PROMPTS, "bottleneck_dim": 64}, 3e-3),
    "lora": Row("LoRA on queries and values, r = 34", "lora", {"lora_r": 34, "lora_alpha": 68}, 1e-3),
    "aat_ms": Row("AAT^MS, h = 96", "aat_ms", {}, 1e-3),
    "loaa_t": Row(
        "LoAA T, r = 36",
        "time_freq_conv",
        {"attention_kernel": "1x3", "mlp_kernel": "1x3", "bottleneck_dim": 36},
        3e-4,
    ),
    "houlsby": Row(
        "bottleneck, Houlsby, h = 64", "bottleneck", {"sites": ("attention", "mlp"), "bottleneck_dim": 64}, 1e-3
    ),
    "side_mlp": Row("side network, w = d / 8", "side_network", {"block": "mlp"}, 3e-4),
    "side_conv": Row("side network, convolutions", "side_network", {"block": "conv"}, 3e-4),
    "side_attention": Row("side network, attention", "side_network", {"block": "attention"}, 3e-4),
    "full": Row("full fine-tuning", "full", {}, 3e-5, 1e-3),
}

# Epochs by training clips of a class; None: all of the four training folds, 32.
EPOCHS = {1: 30, 2: 20, 4: 15, 8: 10, 16: 8, None: 6}
