"""Prompts' gradients from what a fused attention kernel saves, against those of autograd through the same kernel."""

import pytest
import torch
from on_device import relative_errors
from prompted import inputs_of, prompted
from tiny import trainable
from torch.nn.attention import SDPBackend, sdpa_kernel

from peft_audio.tuner import attention


pytestmark = pytest.mark.usefixtures("kernels")  # each test meets its kernel for the first time
CASES = {"tokens": ("ast", False), "padding": ("wav2vec2", True), "scaled queries": ("whisper", False)}
# How far gradients may be off, relative to each whole one: they are rounded in other places.
PRECISIONS = {"float32": (None, 1e-4), "bfloat16": (torch.bfloat16, 0.05), "float16": (torch.float16, 0.02)}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def gradients(model, inputs, dtype):
    device = next(model.parameters()).device
    model.zero_grad()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(**inputs).logits
    logits.float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}


def compare(model, inputs, dtype, tolerance, monkeypatch):
    actual = gradients(model, inputs, dtype)
    monkeypatch.setattr(attention, "attend_to_frozen_tokens", lambda *args, **kwargs: None)
    errors = relative_errors(actual, gradients(model, inputs, dtype))
    assert all(float(gradient.abs().max()) > 0 for name, gradient in actual.items() if "prompt" in name)
    assert max(errors.values()) < tolerance, max(errors.items(), key=lambda item: item[1])


def on(device, backbone, padded):
    model = prompted(backbone, "embedding_prompt").to(device)
    return model, {name: value.to(device) for name, value in inputs_of(backbone, padded).items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kernel_that_torch_chooses_gives_autograd_s_gradients(
    case, precision, device, answers, kernels, monkeypatch
):
    model, inputs = on(device, *CASES[case])
    compare(model, inputs, *PRECISIONS[precision], monkeypatch)
    # The short way was taken, and nothing was seen that would forbid it.
    assert len(answers) == 1 and answers[0] is not None
    assert list(kernels.values()) == [True]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["tokens", "padding"])
def test_every_kernel_gives_autograd_s_gradients(kernel, precision, case, device, answers, monkeypatch):
    model, inputs = on(device, *CASES[case])
    with sdpa_kernel(KERNELS[kernel]):
        try:
            gradients(model, inputs, PRECISIONS[precision][0])
        except RuntimeError as error:
            pytest.skip(f"torch has no such kernel for this: {str(error).splitlines()[0]}")
        compare(model, inputs, *PRECISIONS[precision], monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_give_autograd_s_gradients(dtype, device, answers, monkeypatch):
    model = prompted("ast", "joint").to(device, dtype)
    inputs = {name: value.to(device) for name, value in inputs_of("ast", dtype=dtype).items()}
    compare(model, inputs, None, 0.05, monkeypatch)
    assert len(answers) == 1 and answers[0] is not None
