"""The configurations that PEFT's tests are run with: each method of the package, and LoRA on the same models."""

import dataclasses
import functools
import re

from peft import LoraConfig
from tiny import METHODS


NUM_LAYERS = 4
BACKBONES = ("ast", "wav2vec2")
CONTROL = "lora"
METHOD_NAMES = (
    "embedding_prompt",
    "parallel_mlp",
    "ipet",
    "time_freq_conv",
    "bottleneck_sequential",
    "conformer",
    "side_network",
    "input_prompt",
)
# Encoder layers that take the place of the layers of PEFT's toy models, in the order that the toys have them.
TOY_LAYERS = {"lin0": 0, "emb0": 1, "lin1": 2, "conv1": 3}
# Arguments of LoraConfig that other methods do not have, with the values that ask for nothing.
LORA_ONLY = ("r", "lora_alpha", "lora_dropout", "target_modules")


class Made:
    """Counts the configurations that were made, to tell which tests are about a method at all."""

    count = 0


def layers_of(target_modules):
    """Numbers of the encoder layers that stand for the targeted modules of a toy model; None for all."""
    names = [target_modules] if isinstance(target_modules, str) else target_modules or []
    numbered = [re.search(r"layers\.(\d)\.", name) for name in names]
    layers = [int(found[1]) if found else TOY_LAYERS.get(name) for found, name in zip(numbered, names)]
    return None if not layers or None in layers else sorted(set(layers))


def as_ours(defaults, settings, in_layers=True):
    """A method's own fields from what a test passes to LoraConfig; an input prompt (not `in_layers`) has no layers."""
    settings = dict(settings)
    if in_layers and "target_modules" in settings:
        settings["layers_to_transform"] = layers_of(settings["target_modules"])
    if "init_lora_weights" in settings:
        settings["init_weights"] = settings.pop("init_lora_weights")
    if settings.get("bias") == "none":
        del settings["bias"]
    settings["modules_to_save"] = settings.get("modules_to_save") or []  # None would be the head
    settings.pop("task_type", None)
    return {**defaults, **{name: value for name, value in settings.items() if name not in LORA_ONLY}}


def as_lora(defaults, settings):
    """LoRA on the query projections of the layers that the other methods adapt."""
    settings = dict(settings)
    layers = settings.pop("layers_to_transform", layers_of(settings.get("target_modules")))
    if "init_weights" in settings:
        settings["init_lora_weights"] = settings.pop("init_weights")
    numbers = "|".join(map(str, range(NUM_LAYERS) if layers is None else layers))
    settings["target_modules"] = rf".*\.?layers\.({numbers})\..*q_proj"
    settings.pop("task_type", None)
    return {**defaults, **settings}


def translated(config_cls, translate, defaults):
    """What stands for LoraConfig: it takes the arguments of PEFT's tests and makes a configuration of `config_cls`."""

    class Translated(type):
        def __call__(cls, **settings):
            Made.count += 1
            return config_cls(**translate(defaults, settings))

        def __instancecheck__(cls, config):
            return isinstance(config, config_cls)

    return Translated(config_cls.__name__, (config_cls,), {})


@functools.cache
def config_class(method):
    """The class that stands for LoraConfig in PEFT's tests."""
    if method == CONTROL:
        return translated(LoraConfig, as_lora, {})
    config = METHODS[method]()
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    changed = {name: value for name, value in own.items() if value != getattr(type(config)(), name)}
    return translated(type(config), functools.partial(as_ours, in_layers=method != "input_prompt"), changed)
