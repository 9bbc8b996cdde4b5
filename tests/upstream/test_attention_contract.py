"""What the tuner relies on inside transformers' attention and torch's autograd, and which feature breaks without."""

import inspect

import pytest
import tiny
import torch
import transformers
from peft import get_peft_model
from tiny import METHODS, make, make_inputs
from torch import nn
from torch.utils.checkpoint import checkpoint

from peft_audio.backbones.table import resolve
from peft_audio.upstream import attention_interface, autograd, hooks


PROMPTS = "prompts can no longer be keys and values only"
OTHERS = ("sew-d", "wav2vec2-bert", "wav2vec2-conformer", "wavlm")
WITH_KEYS = [name for name in tiny.BACKBONES if not name.startswith(OTHERS)]


@pytest.mark.parametrize("backbone", WITH_KEYS)
def test_attention_looks_its_function_up_and_hands_arguments_on(backbone):
    attention = resolve(make(backbone)).first_layer.attention
    forward = inspect.unwrap(type(attention).forward)
    assert attention_interface.TABLE in forward.__globals__, f"{PROMPTS} on {backbone}: the table has another name"
    assert attention_interface.OWN_FUNCTION in forward.__globals__, f"{PROMPTS} on {backbone} in eager attention"
    kinds = [parameter.kind for parameter in inspect.signature(forward).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD in kinds, f"{PROMPTS} on {backbone}: attention takes no `extra_tokens`"
    assert "_attn_implementation" in forward.__code__.co_names, f"{PROMPTS} on {backbone}: no lookup by configuration"


@pytest.mark.parametrize("backbone", WITH_KEYS)
def test_the_function_that_is_looked_up_is_transformers_own(backbone):
    attention = resolve(make(backbone)).first_layer.attention
    functions = [attention_interface.attention_function(attention, name) for name in ("eager", "sdpa")]
    own = inspect.unwrap(type(attention).forward).__globals__[attention_interface.OWN_FUNCTION]
    assert functions == [own, transformers.AttentionInterface()["sdpa"]], PROMPTS


def test_a_module_without_a_table_is_named():
    with pytest.raises(TypeError, match="Linear calls no function of transformers' AttentionInterface"):
        attention_interface.attention_function(nn.Linear(2, 2), "sdpa")


@torch.no_grad()
def test_hooks_that_collect_hidden_states_are_known():
    """Else, once hidden states were asked for, the last layer computes tokens that nobody reads: slower, not wrong."""
    model = make("ast").eval()
    model(**make_inputs("ast"), output_hidden_states=True)
    found = [hook for module in model.modules() for hook in hooks.forward_hooks(module)]
    assert found and all(map(hooks.is_output_capturing, found))
    handle = model.register_forward_hook(lambda *_: None)
    assert not hooks.is_output_capturing(hooks.forward_hooks(model)[0])
    handle.remove()


def test_a_recomputed_forward_pass_is_told_from_the_first():
    """Else batch norms of Conformer adapters count a checkpointed batch twice."""
    seen = []

    def function(x):
        seen.append(autograd.is_recomputation())
        return x.sin()

    checkpoint(function, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == [False, True]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_pass_that_may_run_again_is_recognized(use_reentrant):
    """Else a layer that is checkpointed from outside leaves out tokens the first time and computes them the second."""
    seen = []

    def function(x):
        seen.append(autograd.may_run_again())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    function(x)
    checkpoint(function, x, use_reentrant=use_reentrant)
    assert seen == [False, True]


@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_kernel_saves_its_log_sum_exp(masked):
    """Else the first layer's prompts take torch's own backward pass through all keys: slower, not wrong."""
    query, key, value = (torch.randn(1, 2, 8, 4, requires_grad=i == 0) for i in range(3))
    mask = torch.zeros(1, 1, 8, 8) if masked else None
    output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    name, saved = autograd.saved_log_sum_exp(output.transpose(1, 2).contiguous().grad_fn)
    assert "Attention" in name and saved is not None
    expected = (query @ key.transpose(-1, -2) / 2).logsumexp(-1)
    torch.testing.assert_close(saved.flatten(2)[..., :8], expected)
    assert autograd.saved_log_sum_exp((query * 2).grad_fn) == ("", None)


def test_parameters_and_their_views_are_recognized():
    """Else half-precision activations keep a second copy of every weight."""
    weight = nn.Parameter(torch.randn(3, 2))
    assert all(map(autograd.is_parameter, (weight, weight.t(), weight[1:])))
    assert not autograd.is_parameter(torch.randn(3, 2)) and not autograd.is_parameter(weight * 1)


@pytest.mark.parametrize("backbone", ["wav2vec2", "sew-d", "data2vec-audio"])
def test_a_feature_encoder_can_be_frozen_so_that_it_runs_no_backward_pass(backbone):
    """Else a frozen feature encoder runs its backward pass in every step."""
    feature_encoder = resolve(make(backbone)).feature_encoder
    assert callable(getattr(feature_encoder, "_freeze_parameters", None))
    model = get_peft_model(make(backbone), METHODS["parallel_mlp"]()).train()
    outputs = []
    resolve(model.get_base_model()).feature_encoder.register_forward_hook(lambda *a: outputs.append(a[2]))
    model(**make_inputs(backbone))
    assert not outputs[0].requires_grad


def test_transforms_of_torch_are_recognized():
    """Else prompts in the first layer raise under torch.func and in forward-mode differentiation."""
    seen = []

    def square(value):
        seen.append(autograd.is_transformed())
        return value.square().sum()

    value = torch.ones(2)
    torch.func.grad(square)(value)
    torch.func.vmap(square)(value[None])
    with torch.autograd.forward_ad.dual_level():
        square(torch.autograd.forward_ad.make_dual(value, value))
    assert seen == [True] * 3, "torch.func or forward-mode differentiation is no longer recognized"
    square(value.requires_grad_()).backward()
    assert not seen[-1] and not autograd.is_transformed(), "plain autograd is taken for torch.func"
