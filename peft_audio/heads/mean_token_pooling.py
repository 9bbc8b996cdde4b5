"""Mean-token pooling: the head that SSAST is fine-tuned with, on the mean of an AST's patch tokens."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import (
    ASTPreTrainedModel,
)

from ..upstream.peft_layers import has_adapters


# Where a model's configuration remembers the head. The configuration is saved with the model, the hook is not.
TOKEN_POOLING = "mean_token_pooling"
NUM_SPECIAL_TOKENS = 2
# The published head's norm has torch's default, unlike the encoder, and an AST's configuration has one value for both.
HEAD_NORM_EPS = 1e-5


def use_mean_token_pooling(model: nn.Module) -> nn.Module:
    """Give an AST the head that SSAST is fine-tuned with (Gong et al. 2022), in place: `Linear(LN(mean of patches))`.

    `pooler_output`, `(batch, d)`, becomes the mean of the last hidden states over all patch tokens, without the two
    special ones, instead of the mean of those two. The norm in the head gets torch's own epsilon, 1e-5.

    Call it before `get_peft_model`. The configuration remembers it, and so does the checkpoint of an adapter, which
    `AutoPeftModelForAudioClassification` follows. transformers' `from_pretrained` alone knows nothing of it: after it,
    call this function on the model again. Until then the adapters of this package refuse the model.

    Args:
        model: an `ASTForAudioClassification` or `ASTModel`. One that pools this way already stays as it is.

    Returns:
        The same model.

    Raises:
        TypeError: if the model is no AST.
    """
    if not is_ast(model) or has_adapters(model):
        raise TypeError(
            "use_mean_token_pooling takes an ASTForAudioClassification or an ASTModel without adapters, got "
            f"{type(model).__name__}. Call it first, then get_peft_model."
        )
    if not _is_installed(model):
        model.base_model.register_forward_hook(pool_mean_tokens)
    if hasattr(model, "classifier"):
        model.classifier.layernorm.eps = HEAD_NORM_EPS
    setattr(model.config, TOKEN_POOLING, True)
    return model


def is_ast(model: Any) -> bool:
    return isinstance(model, ASTPreTrainedModel)


def remembers_mean_token_pooling(config: Any) -> bool:
    return bool(getattr(config, TOKEN_POOLING, False))


def has_mean_token_pooling(model: nn.Module) -> bool:
    """Whether this AST pools its patch tokens.

    Raises:
        ValueError: if its configuration says so, but it was loaded without.
    """
    installed = _is_installed(model)
    if remembers_mean_token_pooling(model.config) and not installed:
        raise ValueError(
            f"The configuration of this {type(model).__name__} has {TOKEN_POOLING}=True, but the model was loaded "
            "without it and pools its special tokens. Call peft_audio.use_mean_token_pooling(model) first."
        )
    return installed


def pool_mean_tokens(model: nn.Module, args: tuple, output: Any) -> Any:
    """Forward hook of an `ASTModel`: the mean of the patch tokens takes the place of its pooled output."""
    pooled = output[0][:, NUM_SPECIAL_TOKENS:].mean(dim=1)
    if isinstance(output, tuple):
        return (output[0], pooled, *output[2:])
    output.pooler_output = pooled
    return output


def _is_installed(model: nn.Module) -> bool:
    return pool_mean_tokens in model.base_model._forward_hooks.values()
