"""Models with prompts, and what a training step gives on them."""

import tiny
import torch
from peft import get_peft_model
from tiny import make, make_inputs, randomize

from peft_audio.backbones.table import locate, resolve
from peft_audio.tuner.encoder_layer import EncoderTunerLayer


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


def prompted(backbone, method="embedding_prompt", base=None, **options):
    return randomize(get_peft_model(base or make(backbone), tiny.METHODS[method](**options))).train()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]


def attentions_of(model):
    spec = resolve(model.get_base_model()).spec
    return [locate(layer, spec).attention for layer in layers_of(model)]


def inputs_of(backbone, padded=False, dtype=torch.float32):
    inputs = tiny.make_padded_inputs(backbone)[0] if padded else make_inputs(backbone)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def results(model, inputs):
    torch.manual_seed(3)
    model.zero_grad()
    logits = model(**inputs).logits
    logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in tiny.trainable(model).items()}
    assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if "prompt" in name)
    return {"logits": logits.detach(), **gradients}


def assert_close(actual, expected, dtype=torch.float32):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
