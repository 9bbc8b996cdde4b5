"""The split point of a model whose adapters are beside the encoder: what the layers give is kept, and no layer runs again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from torch import nn

from ..backbones.spec import Backbone
from ..modules.adapter_module import special_tokens_stand_alone
from ..tuner.adapter_parts import BESIDE
from ..tuner.encoder_layer import EncoderTunerLayer
from .calls import ModuleCall
from .split_point import SplitPoint, check_frozen, check_layer_weights, without_listeners


def find_side_split(model: nn.Module, backbone: Backbone, calls: list[ModuleCall]) -> Optional[SplitPoint]:
    """Return the split point of a model with one active adapter, beside the encoder; None where that is not all.

    Raises:
        ValueError: something trains that belongs to no module that runs after the last encoder layer.
    """
    check_layer_weights(model, backbone)
    layers = tuner_layers(model, backbone)
    names = {name for layer in layers.values() for part in BESIDE for name, _ in layer.active(part)}
    if len(names) != 1 or backbone.layer_names[-1] not in layers or not all(x.is_beside for x in layers.values()):
        return None
    starts = {path: next(index for index, call in enumerate(calls) if call.path == path) for path in layers}
    inner = {path: _base_call(calls, number) for path, number in starts.items()}
    last = calls[inner[backbone.layer_names[-1]]]
    ended = {index for index, call in enumerate(calls) if call.end <= last.end}
    around = {index for index, call in enumerate(calls) if call.start < last.start and call.end > last.end}
    outermost = [index for index in sorted(ended) if calls[index].parent in around]
    taken = tuple(inner[path] for path in backbone.layer_names if path in layers)
    # Of a layer that is read, what the adapter has there runs on, and the layer tells it nothing more than its output.
    left_out = [*without_listeners(model, calls, [i for i in outermost if calls[i].path not in layers]), *taken]
    beside = set(modules_beside(layers))
    before = {calls[index].path for index in ended | around} - beside
    after = frozenset({call.path for call in calls if call.start > last.end} - before | beside)
    place = backbone.layer_names[-1]
    check_frozen(model, place, after)
    replaced = {index: calls[index].path for index in left_out}
    stand_alone = all(special_tokens_stand_alone(model.get_submodule(path)) for path in beside)
    num_tokens = layers[place].num_read_tokens if stand_alone else None
    return SplitPoint(place, starts[place], replaced, after, taken, frozenset(beside), num_tokens)


def tuner_layers(model: nn.Module, backbone: Backbone) -> dict[str, EncoderTunerLayer]:
    """Return the encoder layers that an active adapter has parts on, by path."""
    modules = {name: model.get_submodule(name) for name in backbone.layer_names}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, EncoderTunerLayer) and any(module.active(part) for part in module.parts)
    }


def modules_beside(layers: dict[str, EncoderTunerLayer]) -> Iterator[str]:
    """Yield the paths of what active adapters have beside these layers."""
    for path, layer in layers.items():
        for part in BESIDE:
            yield from (f"{path}.{layer.prefix}{part}.{name}" for name, _ in layer.active(part))


def _base_call(calls: list[ModuleCall], number: int) -> int:
    """Return the number of the call of the base layer within a tuner layer's call."""
    path = f"{calls[number].path}.base_layer"
    return next(index for index, call in enumerate(calls) if call.parent == number and call.path == path)
