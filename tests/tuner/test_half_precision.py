"""`save_activations_in_half`: gradients, what is kept, and where it steps aside."""

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import METHODS, each_typical_backbone, make, make_ast, make_inputs, randomize

from peft_audio import IPETConfig, save_activations_in_half


each_kind = pytest.mark.parametrize("method", ["ipet", "aat_ms", "time_freq_conv", "conformer", "joint"])


def adapted(backbone, method, **options):
    return randomize(get_peft_model(make(backbone, **options), METHODS[method]())).train()


def run(model, backbone):
    """Loss and gradients of a step, by name."""
    model.zero_grad()
    loss = model(**make_inputs(backbone), labels=torch.tensor([0, 3])).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tensors_alive():
    gc.collect()
    return [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]


@each_kind
@each_typical_backbone
def test_gradients_are_those_to_a_third_of_a_percent(backbone, method):
    model = adapted(backbone, method)
    loss, expected = run(model, backbone)
    half_loss, gradients = run(save_activations_in_half(model), backbone)
    assert torch.equal(half_loss, loss)
    assert set(gradients) == set(expected)
    errors = {name: (gradients[name] - expected[name]).norm() / expected[name].norm() for name in expected}
    assert all(error < 0.003 for error in errors.values()), max(errors.items(), key=lambda item: item[1])
    assert any(error > 0 for error in errors.values())


class SavesDenominators(torch.autograd.Function):
    """The identity, which saves a number for each head and token, padded to 32 tokens by infinity, as kernels on GPUs do."""

    @staticmethod
    def forward(ctx, output):
        ctx.save_for_backward(torch.full((len(output), 4, 32), torch.inf).index_fill_(2, torch.tensor([0]), 1.0))
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        (denominators,) = ctx.saved_tensors
        return gradient * denominators[:, :1, :1]


@pytest.mark.parametrize("method", ["ipet", "time_freq_conv"])
def test_what_kernels_pad_is_kept_as_it_is(method):
    model = adapted("ast", method)  # its last layer runs on two tokens
    _, expected = run(model, "ast")
    for module in model.modules():
        if type(module).__name__ == "ASTAttention":
            module.register_forward_hook(
                lambda module, args, output: (SavesDenominators.apply(output[0]), *output[1:])
            )
    _, gradients = run(save_activations_in_half(model), "ast")
    errors = [float((gradients[name] - expected[name]).norm() / expected[name].norm()) for name in expected]
    assert max(errors) < 0.003 and all(error == error for error in errors)


@each_typical_backbone
def test_large_activations_are_kept_in_float16_and_weights_as_they_are(backbone):
    model = save_activations_in_half(adapted(backbone, "ipet"))
    inputs, before = make_inputs(backbone), {id(tensor) for tensor in tensors_alive()}
    loss = model(**inputs, labels=torch.tensor([0, 3])).loss
    kept = [tensor for tensor in tensors_alive() if id(tensor) not in before]
    halves = [tensor for tensor in kept if tensor.dtype == torch.float16]
    weights = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    layers = model.config.num_hidden_layers
    assert len(halves) >= 5 * (layers - 1)
    assert not weights & {tuple(tensor.shape) for tensor in halves}
    loss.backward()


def test_a_tensor_that_two_operations_save_is_kept_once():
    # The residual stream: read by the layer norm and, in another shape, by the adapter.
    model = save_activations_in_half(adapted("wav2vec2", "parallel_mlp_residual"))
    before = {id(tensor) for tensor in tensors_alive()}
    loss = model(**make_inputs("wav2vec2"), labels=torch.tensor([0, 3])).loss
    kept = [tensor for tensor in tensors_alive() if id(tensor) not in before and tensor.dtype == torch.float16]
    contents = {(tensor.numel(), tensor.float().sum().item()) for tensor in kept}
    assert len({tensor.data_ptr() for tensor in kept}) == len(contents)
    loss.backward()


def test_nothing_stays_behind():
    model = save_activations_in_half(adapted("ast", "ipet"))
    for _ in range(2):
        run(model, "ast")
    before = len(tensors_alive())
    for _ in range(10):
        run(model, "ast")
    assert len(tensors_alive()) == before


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_left_alone(reentrant):
    model = adapted("wav2vec2", "ipet")
    _, expected = run(model, "wav2vec2")
    save_activations_in_half(model).gradient_checkpointing_enable({"use_reentrant": reentrant})
    _, gradients = run(model, "wav2vec2")
    torch.testing.assert_close(gradients, expected)


def test_it_can_be_taken_back():
    model = adapted("ast", "ipet")
    _, expected = run(model, "ast")
    _, gradients = run(save_activations_in_half(save_activations_in_half(model), enabled=False), "ast")
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


def test_bfloat16_models_keep_what_they_have():
    model = get_peft_model(make("ast").bfloat16(), IPETConfig(num_virtual_tokens=2, bottleneck_dim=4, dropout=0.0))
    inputs = {name: value.bfloat16() for name, value in make_inputs("ast").items()}
    model(**inputs, labels=torch.tensor([0, 3])).loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    save_activations_in_half(model)(**inputs, labels=torch.tensor([0, 3])).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, expected, rtol=0.05, atol=1e-3)


def test_compiling_goes_without():
    model = save_activations_in_half(adapted("ast", "ipet"))
    _, expected = run(adapted("ast", "ipet"), "ast")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    model.zero_grad()
    compiled(**make_inputs("ast"), labels=torch.tensor([0, 3])).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        make_ast(),
        get_peft_model(make_ast(), LoraConfig(target_modules=["q_proj"])),
        get_peft_model(make_ast(), IPETConfig(layers_to_transform=[])),
    ],
    ids=["plain", "LoRA", "linear probe"],
)
def test_models_without_adapted_layers_are_refused(model):
    with pytest.raises(ValueError, match="without any. Call get_peft_model first"):
        save_activations_in_half(model)
