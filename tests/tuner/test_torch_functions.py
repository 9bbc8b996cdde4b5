"""Ways of running a model that have rules of their own: torch.func, forward-mode derivatives, tracing, inference mode."""

import pytest
import torch
from peft import get_peft_model
from tiny import METHODS, each_method, each_typical_backbone, make, make_inputs, randomize, trainable


def adapted(backbone, method, **options):
    return randomize(get_peft_model(make(backbone, **options), METHODS[method]())).eval()


def functional(model, name):
    def loss(parameters, values):
        output = torch.func.functional_call(model, parameters, (), {name: values})
        return output.logits.square().sum()

    return loss


@each_typical_backbone
@each_method
def test_gradients_of_torch_func_are_those_of_autograd(backbone, method):
    model, inputs = adapted(backbone, method), make_inputs(backbone)
    ((name, values),) = inputs.items()
    parameters = trainable(model)
    loss = functional(model, name)
    received = torch.func.grad(loss)(dict(parameters), values)
    expected = torch.autograd.grad(model(**inputs).logits.square().sum(), list(parameters.values()))
    torch.testing.assert_close(list(received.values()), list(expected), atol=1e-5, rtol=1e-4)
    each = torch.func.vmap(torch.func.grad(lambda p, one: loss(p, one[None])), in_dims=(None, 0))(parameters, values)
    summed = [gradient.sum(0) for gradient in each.values()]
    torch.testing.assert_close(summed, list(expected), atol=1e-5, rtol=1e-4)


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "embedding_prompt", "joint"])
def test_forward_mode_and_second_derivatives(backbone, method):
    """With plain attention, because torch's fused kernels have neither, with adapters or without."""
    model, inputs = adapted(backbone, method, attn_implementation="eager"), make_inputs(backbone)
    ((name, values),) = inputs.items()
    parameters = trainable(model)
    tangents = {key: torch.ones_like(parameter) for key, parameter in parameters.items()}
    loss = functional(model, name)
    _, slope = torch.func.jvp(lambda p: loss(p, values), (dict(parameters),), (tangents,))
    total = model(**inputs).logits.square().sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), create_graph=True)
    torch.testing.assert_close(slope, sum(gradient.sum() for gradient in gradients), atol=1e-3, rtol=1e-4)
    sum(gradient.square().sum() for gradient in gradients).backward()
    assert all(parameter.grad.isfinite().all() for parameter in parameters.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@each_method
def test_training_after_a_pass_in_inference_mode(backbone, method, dtype):
    model = get_peft_model(make(backbone).to(dtype), METHODS[method]())
    inputs = {name: value.to(dtype) for name, value in make_inputs(backbone).items()}
    with torch.inference_mode():
        model.eval()(**inputs)
    model.train()(**inputs, labels=torch.tensor([0, 3])).loss.backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
