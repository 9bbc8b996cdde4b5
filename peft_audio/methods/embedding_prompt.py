"""Embedding prompts: learnable tokens in every encoder layer (IPET, eq. 1; deep visual prompt tuning)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from ..backbones.spec import Backbone, LayerModules
from ..config import EncoderAdapterConfig
from ..modules import EmbeddingPrompt, vpt_bound, xavier_uniform_bound
from ..tuner.adapter_parts import AdapterParts
from ..tuner.model import EncoderTuner
from ..upstream.registration import register_method
from ..utils.validation import require, require_choice, require_probability, require_size
from .citations import IPET


PROMPT_INITS = ("xavier_uniform", "vpt")


@dataclass
class EmbeddingPromptConfig(EncoderAdapterConfig):
    """Configuration of embedding prompts.

    Every adapted layer has its own `num_virtual_tokens` vectors. They are put in front of the layer's tokens, take
    part in its attention, and are dropped after it, so no hidden state contains them. Source: Kim et al., "Integrated
    parameter-efficient tuning for general-purpose audio models", 2023, eq. 1; Jia et al., "Visual prompt tuning", 2022.

    Args:
        num_virtual_tokens (`int`): prompt tokens of each layer (k).
        prompt_dropout (`float`): probability of dropping an element of a prompt in training.
        prompt_init (`str`): "xavier_uniform", uniform within sqrt(6 / (d k + d)), or "vpt", uniform within
            sqrt(6 / (3 p^2 + d)), with d the hidden size and p the patch size of the model.

    Raises:
        ValueError: when made with a value that breaks a rule; on a model without patches, for "vpt".

    Examples:
        >>> model = ASTForAudioClassification(ASTConfig(hidden_size=12, num_hidden_layers=2))
        >>> config = peft_audio.EmbeddingPromptConfig(num_virtual_tokens=4, modules_to_save=[])
        >>> model = get_peft_model(model, config)
        >>> trainable, total = model.get_nb_trainable_parameters()
        >>> trainable  # 2 layers of 4 tokens of width 12
        96
    """

    num_virtual_tokens: int = field(default=8, metadata={"help": "Prompt tokens of each encoder layer."})
    prompt_dropout: float = field(default=0.0, metadata={"help": "Dropout on the prompt tokens."})
    prompt_init: str = field(
        default="xavier_uniform", metadata={"help": "Initial values: 'xavier_uniform' or 'vpt' (by patch size)."}
    )

    method_name: ClassVar[str] = "embedding_prompt"
    summary: ClassVar[str] = "prompts in every encoder layer's attention"
    citations: ClassVar[tuple[str, ...]] = (IPET,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size("num_virtual_tokens", self.num_virtual_tokens)
        require_probability("prompt_dropout", self.prompt_dropout)
        require_choice("prompt_init", self.prompt_init, PROMPT_INITS)


PromptConfigT = TypeVar("PromptConfigT", bound=EmbeddingPromptConfig)


class EmbeddingPromptModel(EncoderTuner[PromptConfigT]):
    """Puts embedding prompts on a backbone; see `EmbeddingPromptConfig`."""

    prefix = "embedding_prompt_"

    def build_parts(self, config: PromptConfigT, backbone: Backbone, modules: LayerModules) -> AdapterParts:
        """Return a prompt for one layer; see `EncoderTuner.build_parts`."""
        prompt = EmbeddingPrompt(
            config.num_virtual_tokens, backbone.hidden_size, _bound(config, backbone), config.prompt_dropout
        )
        return super().build_parts(config, backbone, modules)._replace(prompt=prompt)


def _bound(config: EmbeddingPromptConfig, backbone: Backbone) -> float:
    if config.prompt_init == "xavier_uniform":
        return xavier_uniform_bound(config.num_virtual_tokens, backbone.hidden_size)
    has_patches = isinstance(backbone.patch_size, int)
    rule = f"'xavier_uniform' on {backbone.model_type}, which has no patch size"
    require(has_patches, "prompt_init", rule, config.prompt_init)
    assert backbone.patch_size is not None
    return vpt_bound(backbone.patch_size, backbone.hidden_size)


register_method(EmbeddingPromptConfig, EmbeddingPromptModel)
