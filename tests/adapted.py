"""Models with one adapter or two, on two backbones, and what is asked of them."""

import dataclasses

import pytest
import torch
from peft import get_peft_model
from peft.utils import ModulesToSaveWrapper
from tiny import BACKBONES, METHODS, make_inputs, randomize, trainable

from peft_audio.tuner.tuner_layer import HookedTunerLayer


# A second configuration of each method, of another size.
OTHER_SIZE = {
    "embedding_prompt": {"num_virtual_tokens": 2},
    "parallel_mlp": {"bottleneck_dim": 4, "scaling": 2.0},
    "ipet": {"num_virtual_tokens": 5, "bottleneck_dim": 4},
    "time_freq_conv": {"bottleneck_dim": 4, "mlp_kernel": None},
    "bottleneck_sequential": {"bottleneck_dim": 4, "sites": ("mlp",), "placement": "parallel"},
    "input_prompt": {"prompt_size": 2},
}
LABELS = torch.tensor([0, 3])
each_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
each_method = pytest.mark.parametrize("method", OTHER_SIZE)
two_methods = pytest.mark.parametrize("method", ["ipet", "input_prompt"])


def other_config(method, **options):
    return dataclasses.replace(METHODS[method](**options), **OTHER_SIZE[method])


def adapted(backbone, config, adapter_name="default"):
    return get_peft_model(BACKBONES[backbone](), config, adapter_name=adapter_name).eval()


def with_two(backbone, method):
    """A model with two adapters of different sizes and random weights, the first active, and the logits of each."""
    model = randomize(adapted(backbone, METHODS[method](), "first"))
    model.add_adapter("second", other_config(method))
    model.set_adapter("second")
    second = logits(randomize(model, seed=5).eval(), backbone)
    model.set_adapter("first")
    return model, {"first": logits(model, backbone), "second": second}


def logits(model, backbone):
    with torch.no_grad():
        return model(**make_inputs(backbone)).logits


def heads(model):
    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def tuner_layers(model):
    return [module for module in model.modules() if isinstance(module, HookedTunerLayer)]


def layer_of(key):
    """Number of the encoder layer that a tensor belongs to."""
    _, found, rest = key.partition("layers.")
    return rest.split(".")[0] if found else None


def train(model, backbone, steps=1):
    """Return the losses of some steps; the model is in evaluation mode afterwards."""
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**make_inputs(backbone), labels=LABELS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses
