"""Models with trained adapters, and what tests of their checkpoints look at."""

import pytest
import torch
from peft import get_peft_model
from tiny import BACKBONES, METHODS, make_inputs, randomize


PREFIX = "base_model.model."
each_backbone = pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
some_methods = pytest.mark.parametrize(
    "method", ["embedding_prompt", "parallel_mlp", "ipet", "time_freq_conv", "bottleneck_parallel", "input_prompt"]
)
three_methods = pytest.mark.parametrize("method", ["ipet", "bottleneck_parallel", "input_prompt"])
two_methods = pytest.mark.parametrize("method", ["ipet", "input_prompt"])


def trained(backbone, method, *names, **options):
    """A model with adapters of these names, each with weights of its own, and the logits of each; the first active."""
    names = names or ("default",)
    model = get_peft_model(BACKBONES[backbone](), METHODS[method](**options), adapter_name=names[0])
    outputs = {}
    for seed, name in enumerate(names):
        if name not in model.peft_config:
            model.add_adapter(name, METHODS[method](**options))
        model.set_adapter(name)
        outputs[name] = logits(randomize(model, seed=seed + 2).eval(), backbone)
    model.set_adapter(names[0])
    return model, outputs


def logits(model, backbone):
    with torch.no_grad():
        return model(**make_inputs(backbone)).logits


def close(first, second):
    return torch.allclose(first, second, atol=1e-5, rtol=1e-5)


def own_parameters(model, name):
    return {key: parameter for key, parameter in model.named_parameters() if name in key.split(".")}


def without_prefix(state_dict):
    return {key.removeprefix(PREFIX): value for key, value in state_dict.items()}


def in_layers(model, name):
    """Names of the adapter's parameters that are not in a head."""
    return {key for key in own_parameters(model, name) if ".modules_to_save." not in key}
