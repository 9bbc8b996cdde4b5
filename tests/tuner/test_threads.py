"""One model serves several threads, and autograd runs checkpointed layers again in a thread of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import get_peft_model
from tiny import (
    METHODS,
    WITH_PADDING,
    each_typical_backbone,
    make,
    make_inputs,
    make_padded_inputs,
    randomize,
    trainable,
)

from peft_audio import use_statistics_pooling


def wait_everywhere(model, num_threads):
    """Let the threads go through the model in step, so that each leaves its state before the others take theirs."""
    barrier = threading.Barrier(num_threads, timeout=20)

    def wait(module, args):
        barrier.wait()

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(wait)


@each_typical_backbone
@pytest.mark.parametrize("method", ["ipet", "joint", "time_freq_conv", "conformer", "input_prompt"])
@torch.no_grad()
def test_threads_in_step_get_their_own_logits(backbone, method):
    model = randomize(get_peft_model(make(backbone), METHODS[method]())).eval()
    two_lengths = make_padded_inputs(backbone)[1] if backbone in WITH_PADDING else None
    clips = two_lengths or [make_inputs(backbone, seed=seed) for seed in range(2)]

    def classify(clip):
        with torch.no_grad():
            return model(**clip).logits

    alone = [classify(clip) for clip in clips]
    wait_everywhere(model, len(clips))
    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(classify, clips))
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(*alone, atol=1e-3)


HEADS = {
    "statistics pooling": lambda: use_statistics_pooling(make("wav2vec2")),
    "weighted layer sum": lambda: make("wav2vec2", use_weighted_layer_sum=True),
}


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_heads_with_state_serve_threads_too(head):
    model = randomize(get_peft_model(HEADS[head](), METHODS["parallel_mlp"]()), std=1.0).eval()
    _, clips = make_padded_inputs("wav2vec2")
    classify = torch.no_grad()(lambda clip: model(**clip).logits)
    alone = [classify(clip) for clip in clips]
    weights = dict(model.named_parameters())
    wait_everywhere(model, len(clips))
    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(classify, clips))
    torch.testing.assert_close(together, alone)
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())


@each_typical_backbone
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_run_again_in_another_thread(backbone, use_reentrant):
    """As on a GPU, where autograd has a thread for each device."""
    model = randomize(get_peft_model(make(backbone), METHODS["time_freq_conv"]())).train()
    inputs = make_inputs(backbone)

    def gradients(run):
        model.zero_grad()
        run(model(**inputs).logits.square().sum().backward)
        return [parameter.grad.clone() for parameter in trainable(model).values()]

    expected = gradients(lambda backward: backward())
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with ThreadPoolExecutor(1) as pool:
        received = gradients(lambda backward: pool.submit(backward).result())
    torch.testing.assert_close(received, expected)
