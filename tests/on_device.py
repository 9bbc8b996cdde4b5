"""Tiny models and batches on the device that the tests in this folder are run on."""

import torch
from peft import get_peft_model
from tiny import METHODS, make, make_inputs, randomize, trainable


LABELS = torch.tensor([0, 3])
BACKBONES = ("ast", "wav2vec2", "whisper")


def adapted(backbone, method, device, **options):
    """A model in training mode whose adapter and head are away from their start, as in the middle of training."""
    return randomize(get_peft_model(make(backbone, **options), METHODS[method]())).to(device).train()


def batch_for(backbone, device, **options):
    inputs = make_inputs(backbone, **options)
    labels = LABELS.repeat(len(next(iter(inputs.values()))) // 2)
    return {name: value.to(device) for name, value in {**inputs, "labels": labels}.items()}


def loss_and_gradients(model, batch, called=None):
    model.zero_grad()
    loss = (model if called is None else called)(**batch).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in trainable(model).items()}


def relative_errors(actual, expected):
    assert actual.keys() == expected.keys()
    return {
        name: float((actual[name] - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)) for name in actual
    }
