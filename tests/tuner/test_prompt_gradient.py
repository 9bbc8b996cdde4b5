"""The first adapted layer's attention, where the prompts alone have a gradient."""

import functools
import gc
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tiny
import torch
from prompted import assert_close, inputs_of, layers_of, prompted, results
from tiny import BACKBONES, NUM_LABELS, NUM_LAYERS, make, make_inputs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from peft_audio.tuner import attention, prompt_gradient
from peft_audio.tuner.prompt_gradient import attend_to_frozen_tokens


def take_torch_s_own(patch):
    patch.setattr(attention, "attend_to_frozen_tokens", lambda *args, **kwargs: None)


CASES = {
    "all layers": ("ast", {}, torch.float32),
    "last layer": ("ast", {"layers_to_transform": [2]}, torch.float32),
    "random weights": ("vit", {"init_weights": False}, torch.float32),
    "padding": ("wav2vec2", {}, torch.float32),
    "padding, norm first": ("hubert-stable", {"layers_to_transform": [1, 2]}, torch.float32),
    "scaled queries": ("whisper", {}, torch.float32),
    "double": ("ast", {}, torch.float64),
    "bfloat16": ("ast", {}, torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["embedding_prompt", "joint"])
def test_gradients_of_the_first_adapted_layer_are_autograd_s(case, method, answers, monkeypatch):
    backbone, options, dtype = CASES[case]
    model, inputs = (
        prompted(backbone, method, make(backbone).to(dtype), **options),
        inputs_of(backbone, "pad" in case, dtype),
    )
    actual = results(model, inputs)
    assert len(answers) == 1 and answers[0] is not None
    take_torch_s_own(monkeypatch)
    assert_close(actual, results(model, inputs), dtype)


PADDED = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])[:, None, None]
MASKS = {
    "none": None,
    "boolean": PADDED,
    "boolean, by query": PADDED & (torch.arange(7) != torch.arange(4)[:, None] + 2),
    "additive": torch.zeros(2, 1, 4, 7).masked_fill(~PADDED, torch.finfo(torch.float32).min),
}


def states_of(mask=None, dtype=torch.float32):
    query, *tokens = (torch.randn(2, 3, length, 8, dtype=dtype) for length in (4, 5, 5))
    prompts = [torch.randn(2, 3, 2, 8, dtype=dtype, requires_grad=True) for _ in range(2)]
    keys, values = (torch.cat(pair, dim=2) for pair in zip(prompts, tokens))
    return query, keys, values, *prompts, mask


def attend(states, **kwargs):
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"), is_causal=False)
    *states, prompt_keys, prompt_values, mask = states
    prompts = (prompt_keys, prompt_values)
    return attend_to_frozen_tokens(sdpa_attention_forward, module, tuple(states), prompts, mask, dropout=0.0, **kwargs)


def written_out(query, keys, values, mask, scaling=None):
    scores = torch.einsum("bhqd,bhkd->bhqk", query, keys) * (scaling or 1 / math.sqrt(8))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), values), scores.logsumexp(-1)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("scaling", [None, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_to_frozen_tokens_is_attention_written_out(mask, scaling, dtype, kernels):
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    *states, prompt_keys, prompt_values, mask = states_of(mask, dtype)
    prompts = [prompt_keys, prompt_values]
    actual = attend((*states, *prompts, mask), scaling=scaling)
    expected, _ = written_out(*states, mask, scaling)
    weights = torch.randn_like(expected)
    assert_close(actual, expected, dtype)
    assert_close(*(torch.autograd.grad((output * weights).sum(), prompts) for output in (actual, expected)), dtype)
    assert list(kernels.values()) == [True]


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
def test_a_kernel_is_first_met_under_autocast(backbone, kernels):
    model = prompted(backbone, "embedding_prompt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**make_inputs(backbone)).logits.float().square().mean()
    loss.backward()
    assert list(kernels.values()) == [True]


def test_a_kernel_of_which_nothing_was_seen_is_not_trusted(kernels):
    assert attend(states_of(torch.zeros(2, 1, 4, 7, dtype=torch.bool))) is None
    assert list(kernels.values()) == [False]


@pytest.mark.parametrize("kind, backbone", [("meta", "ast"), ("meta", "wav2vec2"), ("fake", "ast")])
def test_tensors_without_values_take_torch_s_own_backward_pass(kind, backbone, kernels):
    model, inputs = prompted(backbone, "embedding_prompt"), make_inputs(backbone)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if kind == "fake" else nullcontext()
    if kind == "meta":
        model.to("meta")
    with mode:
        inputs = {
            name: mode.from_tensor(value) if kind == "fake" else value.to("meta") for name, value in inputs.items()
        }
        logits = model(**inputs).logits
        logits.sum().backward()
    assert logits.shape == (2, NUM_LABELS) and not kernels


SAVED = {  # from what the softmax is divided by, what a kernel might save, and whether that can be used
    "with a last dimension": (lambda saved: saved[..., None], True),
    "padded": (lambda saved: torch.nn.functional.pad(saved, (0, 28), value=math.nan), True),
    "in another base": (lambda saved: saved / math.log(2), False),
    "queries before heads": (lambda saved: saved.transpose(1, 2), False),
    "joined over the batch": (lambda saved: saved.transpose(0, 1).flatten(1), False),
}


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_another_kernel_is_used_where_it_saves_the_same(case, mask, kernels, monkeypatch):
    change, usable = SAVED[case]
    *states, prompt_keys, prompt_values, mask = states_of(mask)
    expected, log_sum_exp = written_out(*states, mask)
    monkeypatch.setattr(prompt_gradient, "saved_log_sum_exp", lambda node: ("other", change(log_sum_exp.detach())))
    for _ in range(2):
        actual = attend((*states, prompt_keys, prompt_values, mask))
        assert (actual is not None) == usable
    if usable:
        assert_close(*(torch.autograd.grad(output.square().sum(), prompt_keys) for output in (actual, expected)))


def nodes_of(tensor):
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("first", range(NUM_LAYERS))
def test_no_kernel_runs_backward_in_the_first_adapted_layer(first, monkeypatch):
    model, enters = prompted("ast", layers_to_transform=list(range(first, NUM_LAYERS))), []
    layers_of(model)[0].register_forward_pre_hook(lambda module, args: enters.append(args[0].requires_grad))

    def backward_passes():
        nodes = nodes_of(model(**make_inputs("ast")).logits)
        leaves = {id(node.variable) for node in nodes if hasattr(node, "variable")}
        assert leaves == {id(parameter) for parameter in tiny.trainable(model).values()}
        return [sum(part in node.name() for node in nodes) for part in ("ScaledDotProduct", "_PromptGradient")]

    assert backward_passes() == [NUM_LAYERS - first - 1, 1]
    take_torch_s_own(monkeypatch)
    assert backward_passes() == [NUM_LAYERS - first, 0]
    assert enters == [False, False]


@pytest.mark.parametrize("options", [{"attention_probs_dropout_prob": 0.5}, {"attn_implementation": "eager"}])
def test_dropout_and_eager_attention_take_torch_s_own_backward_pass(options, answers, monkeypatch):
    model = prompted("ast", base=make("ast", **options))
    actual = results(model, make_inputs("ast"))
    assert answers == ([None] if "attn_implementation" in options else [])
    take_torch_s_own(monkeypatch)
    assert_close(actual, results(model, make_inputs("ast")))


class Kernels(TorchDispatchMode):
    """Counts the calls of attention's kernels."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("trains", [False, True])
def test_attention_runs_as_often_as_in_the_base_model(backbone, trains):
    calls = []
    for model in (make(backbone), prompted(backbone, "embedding_prompt")):
        with torch.set_grad_enabled(trains), Kernels() as kernels:
            model(**make_inputs(backbone))
        calls.append(kernels.count)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("use_reentrant", [False, True, "whole model"])
def test_checkpointing_gives_the_same_gradients(backbone, use_reentrant, monkeypatch):
    model = prompted(backbone, "joint")
    with monkeypatch.context() as patch:
        take_torch_s_own(patch)
        expected = results(model, make_inputs(backbone))
    if use_reentrant == "whole model":
        monkeypatch.setattr(model, "forward", functools.partial(checkpoint, model.forward, use_reentrant=False))
    else:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_close(results(model, make_inputs(backbone)), expected)


def test_training_keeps_no_tensors_of_earlier_steps():
    model = prompted("ast")

    def tensors_after(steps):
        for _ in range(steps):
            results(model, make_inputs("ast"))
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert tensors_after(2) == tensors_after(18)
