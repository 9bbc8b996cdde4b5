"""Which layers an adapter is put on when the caller gives its tensors: those that the tensors are of."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

from ..config import EncoderAdapterConfig
from ..upstream.peft_state_dict import PEFT_MODEL_PREFIX


def take_layers(
    config: EncoderAdapterConfig, names: Iterable[str], num_layers: int, prefix: str, parts: Iterable[str]
) -> None:
    """Let `layers_to_transform` be the encoder layers that a state dict has tensors of, with a warning if they differ.

    Args:
        config: the adapter's configuration.
        names: the names in the state dict, as in a checkpoint (`layers.N.<part>...`) or as in a model.
        num_layers: number of layers of the encoder.
        prefix: prefix of the tuner type in a model's names.
        parts: names of the parts that an adapter puts on the layers that it is asked for.

    Raises:
        ValueError: if it has none of any layer, but the configuration asks for some, or layers that the encoder lacks.
    """
    # A model's own tensors are in its state dict too.
    of_parts = rf"(?:{'|'.join(parts)})\..+"
    pattern = rf"(?:{re.escape(PEFT_MODEL_PREFIX)})?layers\.(\d+)\.{of_parts}|.*\.(\d+)\.{prefix}{of_parts}"
    matches = filter(None, (re.fullmatch(pattern, name) for name in names))
    found = sorted({int(match[1] or match[2]) for match in matches})
    asked = list(config.selected_layers(num_layers))
    if found == asked:
        return
    if not found:
        raise ValueError(
            f"`state_dict` must have tensors of the adapter's layers (layers.N...), but none of its names is of a "
            f"{type(config).__name__}. Give what get_peft_model_state_dict returns, or leave it out."
        )
    warnings.warn(
        f"The state dict has tensors of the layers {found}, but `layers_to_transform` asks for {asked}. The adapter is put "
        "on those of the state dict.",
        RuntimeWarning,
        stacklevel=5,
    )
    config.choose_layers(found)
