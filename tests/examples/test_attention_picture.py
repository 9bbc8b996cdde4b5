"""What a model attends to, against attention in plain torch, and its picture."""

import numpy as np
import pytest
import torch
from attention_picture import AttentionMap, attention_map, covered, draw
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from sounds import tone
from tiny import BACKBONES, METHODS, each_backbone, make, make_inputs, randomize
from torch.nn.functional import conv2d


RATE = 16000


def one_clip(backbone):
    return {name: value[:1] for name, value in make_inputs(backbone).items()}


@torch.no_grad()
def test_it_is_the_softmax_of_queries_and_keys():
    base = make("ast", attn_implementation="eager")
    model = randomize(get_peft_model(base, METHODS["embedding_prompt"]())).eval()
    inputs = one_clip("ast")
    layer = base.audio_spectrogram_transformer.layers[-1]
    parts = {name.split(".")[-1]: module for name, module in layer.named_modules()}
    norm, query, key = parts["layernorm_before"], parts["q_proj"], parts["k_proj"]
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-2][0]
    prompts = next(value for name, value in layer.named_parameters() if "prompt" in name)
    tokens = norm(torch.cat([prompts, hidden]))
    num_heads = base.config.num_attention_heads
    queries, keys = (project(tokens).view(len(tokens), num_heads, -1).transpose(0, 1) for project in (query, key))
    weights = (queries @ keys.mT / keys.shape[-1] ** 0.5).softmax(-1)
    # Two special tokens behind the prompts: the head reads them.
    read = weights[:, len(prompts) : len(prompts) + 2, len(prompts) + 2 :].mean(dim=(0, 1))
    found = attention_map(model, inputs, seconds=0.46)
    assert found.weights.shape == (3, 4)  # low frequencies first, a column for each step in time
    torch.testing.assert_close(torch.from_numpy(found.weights).flatten(), read / read.sum())


@each_backbone
@pytest.mark.parametrize("method", ["ipet", "input_prompt", "side_network"])
def test_every_model_gives_the_part_of_each_token(backbone, method):
    base = BACKBONES[backbone](attn_implementation="eager")
    model = randomize(get_peft_model(base, METHODS[method]())).eval()
    found = attention_map(model, one_clip(backbone), seconds=2.0, adapter_names=["default"])
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert (found.weights >= 0).all()
    assert 0 <= found.seconds[0] < found.seconds[1] <= 2
    assert found.weights.shape[1] > 1


def test_a_model_that_does_not_give_it():
    assert attention_map(make("ast", attn_implementation="sdpa"), one_clip("ast"), seconds=0.46) is None


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9))
def test_patches_reach_half_a_stride_from_their_middles(kernel_size, stride, count):
    length = kernel_size + (count - 1) * stride
    begin, end = (share * length for share in covered(length, count, kernel_size, stride))
    # The mean of the positions that a patch sees.
    positions = torch.arange(length, dtype=torch.float64)[None, None, None] + 0.5
    kernel = torch.full((1, 1, 1, kernel_size), 1 / kernel_size, dtype=torch.float64)
    middles = conv2d(positions, kernel, stride=(1, stride))[0, 0, 0].numpy()
    width = (end - begin) / count
    np.testing.assert_allclose(begin + width * (np.arange(count) + 0.5), middles)


def test_the_picture_has_the_sound_and_the_attention_where_they_are():
    attention = AttentionMap(np.array([[0.1, 0.2], [0.3, 0.4]]), (0.1, 2.1), (0.2, 0.9))
    axes = draw(tone("high", 1.5), RATE, attention).axes[0]
    spectrogram, overlay = axes.images
    assert axes.get_xlim() == pytest.approx((0, 1.5))  # padding is not shown
    assert spectrogram.get_extent() == pytest.approx((0, 1.5, 0, 1))
    assert overlay.get_extent() == pytest.approx((0.1, 2.1, 0.2, 0.9))
    np.testing.assert_allclose(overlay.get_array(), [[0.4, 0.8], [1.2, 1.6]])  # 1 is an even share


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_frequencies_are_those_of_the_sound(rate):
    hz = 2000
    axes = draw(np.sin(2 * np.pi * hz * np.arange(rate) / rate), rate, None).axes[0]
    (spectrogram,) = axes.images
    loudest = np.asarray(spectrogram.get_array()).mean(axis=1).argmax() / spectrogram.get_array().shape[0]
    ticks = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks()))
    assert loudest == pytest.approx(ticks["2"], abs=0.02)
    assert max(ticks.values()) <= 1
