"""Tiny audio models that take the place of PEFT's toy models and of the text models that it loads from the Hub."""

import functools
import os
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from subjects import BACKBONES, NUM_LAYERS, TOY_LAYERS
from tiny import make, make_inputs
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification

import peft_audio


FOLDER = "PEFT_SUITE_MODELS"
# Layers of PEFT's toy models that its tests train and save whole: they follow the audio model's head.
WHOLE_LAYERS = ("lin1", "linear2", "lm_head")


def folder_of(backbone):
    return str(Path(os.environ[FOLDER], backbone))


def name_of(backbone):
    """The name that the models have in PEFT's tests, where no folder has that name."""
    return f"peft-audio/tiny-{backbone}"


def audio_from(numbers, backbone):
    """Clips of the size that the model takes, one for each row of a text model's or toy model's input."""
    (clip,) = make_inputs(backbone, batch_size=numbers.shape[-1], seed=7).values()
    weights = numbers.float().sin()  # each row for itself, as batches may be taken apart
    return torch.einsum("bn,n...->b...", weights, clip)


class Block(nn.Module):
    """A block of PEFT's deep toy model: one layer to be saved whole, one that stands for an encoder layer."""

    def __init__(self, owner, number, width):
        super().__init__()
        self.lin1 = nn.Linear(width, width)
        self.place = [owner, number]  # in a list, so that the owner is no part of its own block

    @property
    def lin0(self):
        owner, number = self.place
        return owner.adapted_layer(number)


class StandIn:
    """Mixed into a transformers class: takes the inputs of text and toy models, and has the names of their parts."""

    backbone = None
    only_logits = False

    def forward(self, X=None, input_ids=None, x=None, **kwargs):
        numbers = next((value for value in (X, input_ids, x) if value is not None), None)
        if numbers is not None:
            kwargs.pop("attention_mask", None)
            weight = next(self.parameters())
            kwargs["input_values"] = audio_from(numbers, self.backbone).to(weight.device, weight.dtype)
        return super().forward(**kwargs)

    def adapted_layer(self, number):
        """What the adapter put in the place of the toy model's layer."""
        layer = self.get_submodule(peft_audio.encoder_layers(self)[number])
        return next((module for module in layer.modules() if isinstance(module, BaseTunerLayer)), layer)


class ClassifierStandIn(StandIn):
    """The same with layers behind the head, for `modules_to_save`."""

    def __init__(self, config):
        super().__init__(config)
        for name in WHOLE_LAYERS:
            setattr(self, name, nn.Linear(config.num_labels, config.num_labels))
        self.layers = nn.ModuleList(Block(self, number, config.num_labels) for number in range(NUM_LAYERS))

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        for layer in (*(getattr(self, name) for name in WHOLE_LAYERS), *(block.lin1 for block in self.layers)):
            output.logits = output.logits + layer(output.logits)
        return output.logits if self.only_logits else output


@functools.cache
def stand_in_class(backbone, bare=False, only_logits=False):
    """A transformers class with the names and inputs of a toy model."""
    config = make(backbone).config
    base = (AutoModel if bare else AutoModelForAudioClassification)._model_mapping[type(config)]
    aliases = {
        name: property(functools.partial(StandIn.adapted_layer, number=number)) for name, number in TOY_LAYERS.items()
    }
    members = {"backbone": backbone, "only_logits": only_logits, "__module__": base.__module__}
    parts = {name: part for name, part in aliases.items() if name not in WHOLE_LAYERS}
    return type(base.__name__, (StandIn if bare else ClassifierStandIn, base), parts | members)


def save_models():
    """Write the tiny models to files, as PEFT's tests load theirs by name."""
    for backbone in BACKBONES:
        tiny = make(backbone, num_hidden_layers=NUM_LAYERS)
        model = stand_in_class(backbone)(tiny.config)
        model.load_state_dict(tiny.state_dict(), strict=False)
        model.save_pretrained(folder_of(backbone))


class Loader:
    """Stands for an Auto class: whatever the name, it loads the tiny audio model."""

    def __init__(self, backbone, **options):
        self.backbone = backbone
        self.options = options

    def from_pretrained(self, model_id=None, dtype=None, **kwargs):
        cls = stand_in_class(self.backbone, **self.options)
        torch.manual_seed(0)  # as PEFT's loader of toy models does
        model = cls.from_pretrained(folder_of(self.backbone), dtype=dtype or torch.float32)
        model.name_or_path = model.config.name_or_path = name_of(self.backbone)
        return model

    def __call__(self, *args, **kwargs):
        """The model in the place of a toy model's class; what the toy is made with is left aside."""
        return self.from_pretrained()
