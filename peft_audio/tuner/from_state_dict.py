"""Which layers an adapter is put on when the caller gives its tensors: those that the tensors are of."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

from ..backbones.spec import Backbone
from ..config import EncoderAdapterConfig
from ..upstream.peft_state_dict import PEFT_MODEL_PREFIX
from .stacks import adapted_stacks


LAYERS, DECODER_LAYERS = "layers", "decoder.layers"
"""What the names of the layers' tensors in a checkpoint start with, behind PEFT's prefix."""


def is_in_decoder(path: str) -> bool:
    """Whether a module of this path lies in a decoder."""
    return "decoder" in path.split(".")


def take_layers(
    config: EncoderAdapterConfig, names: Iterable[str], backbone: Backbone, prefix: str, parts: Iterable[str]
) -> None:
    """Let `layers_to_transform` and `stack` be the layers that a state dict has tensors of, with a warning if they differ.

    Args:
        config: the adapter's configuration.
        names: the names in the state dict, as in a checkpoint (`layers.N.<part>...`) or as in a model.
        backbone: the model.
        prefix: prefix of the tuner type in a model's names.
        parts: names of the parts that an adapter puts on the layers that it is asked for.

    Raises:
        ValueError: if it has none of any layer, but the configuration asks for some, layers that the model lacks, or other
            layers of the encoder than of the decoder.
    """
    found, asked = _layers_in(names, prefix, parts, backbone), _asked(config, backbone)
    if found == asked:
        return
    if not found:
        raise ValueError(
            f"`state_dict` must have tensors of the adapter's layers (layers.N...), but none of its names is of a "
            f"{type(config).__name__}. Give what get_peft_model_state_dict returns, or leave it out."
        )
    if len(set(map(tuple, found.values()))) > 1:
        raise ValueError(
            f"`state_dict` must have tensors of the same layers of the encoder and the decoder, got {found}: a "
            f"{type(config).__name__} has one `layers_to_transform` for both."
        )
    both = len({*found, *asked}) > 1
    given, wanted = (layers if both else next(iter(layers.values()), []) for layers in (found, asked))
    warnings.warn(
        f"The state dict has tensors of the layers {given}, but `layers_to_transform` asks for {wanted}. The adapter is put "
        "on those of the state dict.",
        RuntimeWarning,
        stacklevel=5,
    )
    config.choose_layers(next(iter(found.values())), "both" if len(found) > 1 else next(iter(found)))


def _layers_in(names: Iterable[str], prefix: str, parts: Iterable[str], backbone: Backbone) -> dict[str, list[int]]:
    """Return the indices of the layers of the "encoder" and of the "decoder" that the names are of."""
    # A model's own tensors are in its state dict too.
    of_parts = rf"(?:{'|'.join(parts)})\..+"
    stored = rf"(?:{re.escape(PEFT_MODEL_PREFIX)})?(?P<stored>decoder\.)?layers\.(\d+)\.{of_parts}"
    pattern = re.compile(rf"{stored}|(?P<path>.*)\.(\d+)\.{prefix}{of_parts}")
    found: dict[str, set[int]] = {}
    for match in filter(None, map(pattern.fullmatch, names)):
        is_named_decoder = bool(match["stored"]) or is_in_decoder(match["path"] or "")
        # The encoder of a registered type may be called a decoder.
        stack = "decoder" if is_named_decoder and backbone.decoder is not None else "encoder"
        index = int(next(group for group in match.groups() if group is not None and group.isdigit()))
        found.setdefault(stack, set()).add(index)
    return {stack: sorted(indices) for stack, indices in found.items()}


def _asked(config: EncoderAdapterConfig, backbone: Backbone) -> dict[str, list[int]]:
    asked = {}
    for stack in adapted_stacks(config, backbone):
        name = "decoder" if stack.is_decoder else "encoder"
        asked[name] = list(config.selected_layers(len(stack.layer_names)))
    return {name: layers for name, layers in asked.items() if layers}
