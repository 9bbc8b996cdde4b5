"""Mean-token pooling: the head that SSAST is fine-tuned with, on the mean of an AST's patch tokens."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import ASTPreTrainedModel

from ..upstream.hooks import forward_hooks
from ..upstream.peft_modules import has_adapters
from .remembered import check_installed


# Field of a model's configuration. The configuration is saved with the model, the hook is not.
TOKEN_POOLING = "mean_token_pooling"
NUM_SPECIAL_TOKENS = 2
# The published head's norm has torch's default, the encoder's norms do not. An AST's configuration has one value for all.
HEAD_NORM_EPS = 1e-5


def use_mean_token_pooling(model: nn.Module) -> nn.Module:
    """Give an AST the head that SSAST is fine-tuned with (Gong et al. 2022), in place: `Linear(LN(mean of patches))`.

    `pooler_output`, `(batch, d)`, becomes the mean of the last hidden states over all patch tokens. By default it is the
    mean of the two special tokens. The head's norm gets torch's default epsilon, 1e-5.

    Call this before `get_peft_model`. The model's configuration and an adapter's checkpoint remember the pooling, and
    `AutoPeftModelForAudioClassification` restores it. transformers' `from_pretrained` alone does not: call this function
    on the model again. Until then the adapters of this package refuse the model.

    Args:
        model: an `ASTForAudioClassification` or `ASTModel`. One that already pools this way stays as it is.

    Returns:
        The same model.

    Raises:
        TypeError: if the model is not an AST, or has adapters.

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=1))
        >>> model = peft_audio.use_mean_token_pooling(model)
        >>> model.config.mean_token_pooling
        True
    """
    if not is_ast(model) or has_adapters(model):
        raise TypeError(
            "use_mean_token_pooling takes an ASTForAudioClassification or an ASTModel without adapters, got "
            f"{type(model).__name__}. Call it first, then get_peft_model."
        )
    ast: Any = model
    if not _is_installed(ast):
        ast.base_model.register_forward_hook(pool_mean_tokens)
    if hasattr(ast, "classifier"):
        ast.classifier.layernorm.eps = HEAD_NORM_EPS
    setattr(ast.config, TOKEN_POOLING, True)
    return model


def is_ast(model: Any) -> bool:
    """Whether the model is an Audio Spectrogram Transformer of transformers, with or without head."""
    return isinstance(model, ASTPreTrainedModel)


def remembers_mean_token_pooling(config: Any) -> bool:
    """Whether a model's configuration asks for mean-token pooling."""
    return bool(getattr(config, TOKEN_POOLING, False))


def has_mean_token_pooling(model: Any) -> bool:
    """Whether this AST pools its patch tokens.

    Args:
        model: an `ASTForAudioClassification` or `ASTModel`.

    Raises:
        ValueError: if the configuration asks for it, but the model was loaded without.
    """
    return check_installed(
        model, TOKEN_POOLING, _is_installed(model), "use_mean_token_pooling", "without it and pools its special tokens"
    )


def pool_mean_tokens(model: nn.Module, args: tuple, output: Any) -> Any:
    """Replace the pooled output of an `ASTModel` by the mean of the patch tokens; a forward hook of that module.

    Args:
        model: the `ASTModel`.
        args: its positional arguments.
        output: what it returned: hidden states `(batch, 2 + patches, d)`, pooled output `(batch, d)`, and more.

    Returns:
        The output with the other pooled output.
    """
    pooled = output[0][:, NUM_SPECIAL_TOKENS:].mean(dim=1)
    if isinstance(output, tuple):
        return (output[0], pooled, *output[2:])
    output.pooler_output = pooled
    return output


def _is_installed(model: Any) -> bool:
    return pool_mean_tokens in forward_hooks(model.base_model)
