"""IPET: embedding prompts and parallel adapters in one configuration and one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..upstream.registration import register_method
from .citations import IPET
from .embedding_prompt import EmbeddingPromptConfig, EmbeddingPromptModel
from .parallel_mlp_adapter import ParallelMLPAdapterConfig, ParallelMLPAdapterModel


@dataclass
class IPETConfig(ParallelMLPAdapterConfig, EmbeddingPromptConfig):
    """Configuration of integrated parameter-efficient tuning (IPET).

    Takes the fields of `EmbeddingPromptConfig` and `ParallelMLPAdapterConfig`; the defaults are the paper's. With
    `adapter_input="normalized"`, `activation="gelu"`, `scaling=1.0` and `spatial_adapter=True` it is AAT's "Joint".
    Source: Kim et al., "Integrated parameter-efficient tuning for general-purpose audio models", 2023, section 3.2;
    dropout from the authors' code.

    Raises:
        ValueError: when made with a value that breaks a rule.
    """

    scaling: float = 0.1
    dropout: float = 0.1
    adapter_input: str = "residual"

    method_name: ClassVar[str] = "ipet"
    summary: ClassVar[str] = "prompts and adapters in every encoder layer"
    citations: ClassVar[tuple[str, ...]] = (IPET,)


class IPETModel(ParallelMLPAdapterModel, EmbeddingPromptModel):
    """Puts prompts and parallel adapters on a backbone; see `IPETConfig`."""

    prefix = "ipet_"


register_method(IPETConfig, IPETModel)
