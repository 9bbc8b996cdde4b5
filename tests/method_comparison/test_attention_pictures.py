"""Attention maps: what they are of, before and after adaptation, and how they are drawn."""

import math

import numpy as np
import pytest
import soundfile
import torch
from adapters import save_adapter
from drawn import figure_of, image_of
from peft import get_peft_model
from plots.attention import attention_map, before_and_after, patches_at, plot_attention, upscaled
from sounds import save_ast, tone
from tiny import METHODS, make_ast, make_inputs, make_wav2vec2, randomize
from transformers import ASTConfig, ASTFeatureExtractor

from peft_audio import AutoPeftModelForAudioClassification
from peft_audio.data import load_waveform


FRAMES = (20, 30)  # of the tiny AST: its patches over time have their middles at 8, 18, 28 and 38
STEP = 2


def eager_ast(**options):
    return make_ast(attn_implementation="eager", **options)


def spectrogram(seed=1):
    return make_inputs("ast", batch_size=1, seed=seed)["input_values"][0]


def adapted_ast(method, **options):
    return randomize(get_peft_model(eager_ast(**options), METHODS[method]())).eval()


def queries_and_keys(model, inputs, layer):
    """Of every token that takes part in the attention of the layer, `(tokens, heads, d / heads)` each."""
    attention = [module for module in model.modules() if hasattr(module, "q_proj")][layer]
    captured = {"q_proj": [], "k_proj": []}
    hooks = [
        # Prompts come in a call of their own, after the tokens, and stand in front of them.
        getattr(attention, name).register_forward_hook(lambda *call, name=name: captured[name].insert(0, call[2][0]))
        for name in captured
    ]
    with torch.no_grad():
        model(input_values=inputs[None], output_hidden_states=True)  # so that the last layer runs over all tokens
    for hook in hooks:
        hook.remove()
    heads = attention.num_attention_heads
    return (torch.cat(states).unflatten(-1, (heads, -1)) for states in captured.values())


def map_by_hand(model, inputs, layer=-1, step=STEP, heads=range(4), rows=range(3)):
    """Softmax of queries and keys, as sums over single numbers; the tiny AST has 3 x 4 patches, its last tokens."""
    queries, keys = queries_and_keys(model, inputs, layer)
    first = len(keys) - 12
    total = np.zeros((3, 4))
    for head in heads:
        for row in rows:
            query = queries[len(queries) - 12 + 4 * row + step, head]
            weights = torch.softmax(keys[:, head] @ query / math.sqrt(len(query)), dim=0)
            for frequency in range(3):
                for time in range(4):
                    total[frequency, time] += float(weights[first + 4 * frequency + time])
    return total / total.sum()


@pytest.mark.parametrize("method", ["ipet", "embedding_prompt", "time_freq_conv"])
@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, {}),
        ({"layer": 0, "head": 1}, {"layer": 0, "heads": [1]}),
        ({"layer": 1, "frequency_patch": 2}, {"layer": 1, "rows": [2]}),
        ({"frames": (0, 10)}, {"step": 0}),
    ],
)
def test_an_attention_map_is_the_softmax_of_queries_and_keys(method, options, by_hand):
    model, inputs = adapted_ast(method), spectrogram()
    options = {"frames": FRAMES} | options
    attention = attention_map(model, inputs, **options)
    assert attention.shape == (3, 4)
    assert attention.sum() == pytest.approx(1)
    assert attention == pytest.approx(map_by_hand(model, inputs, **by_hand), abs=1e-6)
    with model.disable_adapter():
        assert attention_map(model, inputs, **options) == pytest.approx(
            map_by_hand(model, inputs, **by_hand), abs=1e-6
        )


def test_prompts_take_part_but_are_not_shown():
    model, inputs = adapted_ast("embedding_prompt"), spectrogram()
    _, keys = queries_and_keys(model, inputs, -1)
    assert len(keys) == 3 + 2 + 12  # prompts, special tokens, patches
    with model.disable_adapter():
        _, keys = queries_and_keys(model, inputs, -1)
    assert len(keys) == 2 + 12


def test_several_time_steps_give_their_mean():
    model, inputs = eager_ast(), spectrogram()
    queries, keys = queries_and_keys(model, inputs, -1)
    weights = torch.softmax(torch.einsum("qhd,khd->hqk", queries, keys) / math.sqrt(8), dim=-1)[:, 2:, 2:]
    rows = [4 * row + step for row in range(3) for step in (1, 2)]
    expected = weights[:, rows].mean(dim=(0, 1)).reshape(3, 4).double()
    assert attention_map(model, inputs, frames=(18, 29)) == pytest.approx(
        (expected / expected.sum()).numpy(), abs=1e-6
    )


def test_a_map_is_bright_where_the_attended_sound_is():
    model = eager_ast(num_hidden_layers=1, num_mel_bins=48, max_length=64, time_stride=16, frequency_stride=16)
    ast = model.audio_spectrogram_transformer
    with torch.no_grad():
        # Attention asks for the tokens whose first number is high, and that is a patch's energy.
        for parameter in (ast.embeddings.position_embeddings, *ast.embeddings.patch_embeddings.parameters()):
            parameter.zero_()
        ast.embeddings.patch_embeddings.projection.weight[0] = 1.0
        attention = ast.layers[0].attention
        for parameter in (*attention.q_proj.parameters(), *attention.k_proj.parameters()):
            parameter.zero_()
        attention.q_proj.bias.fill_(1.0)
        attention.k_proj.weight[:, 0] = 1.0
    inputs = torch.zeros(64, 48)
    inputs[48:64, 16:32] = 1.0  # the last quarter of the time, the middle third of the frequencies
    for frames in ((0, 16), (48, 64)):
        attention = attention_map(model, inputs, frames=frames)
        assert np.unravel_index(attention.argmax(), attention.shape) == (1, 3)
    _, before, after = plot_attention(inputs, attention, attention, model.config, (48, 64)).axes[:3]
    shown = image_of(before)
    bright = np.argwhere(shown == shown.max())  # (mel bin, frame)
    assert (bright.min(axis=0).tolist(), bright.max(axis=0).tolist()) == ([16, 48], [31, 63])
    assert (image_of(after) == shown).all()


def test_before_is_the_base_model_and_after_differs_through_the_adapter_alone():
    inputs = spectrogram()
    base = attention_map(eager_ast(), inputs, frames=FRAMES)
    fresh = get_peft_model(eager_ast(), METHODS["time_freq_conv"]()).eval()  # starts as the identity
    before, after = before_and_after(fresh, inputs, frames=FRAMES)
    assert (before == base).all() and (after == base).all()
    for method in ("time_freq_conv", "ipet"):
        model = adapted_ast(method)
        logits = model(input_values=inputs[None]).logits
        before, after = before_and_after(model, inputs, frames=FRAMES)
        assert (before == base).all()
        assert np.abs(after - base).max() > 1e-3
        assert after == pytest.approx(map_by_hand(model, inputs), abs=1e-6)
        assert torch.equal(model(input_values=inputs[None]).logits, logits)  # the adapter is on again


@pytest.mark.parametrize(
    ("stride", "frames", "expected"), [(16, (320, 336), [20]), (10, (320, 336), [32]), (16, (0, 33), [0, 1])]
)
def test_a_time_is_that_of_the_patches_with_their_middle_in_it(stride, frames, expected):
    assert patches_at(frames, ASTConfig(time_stride=stride)).tolist() == expected


def test_maps_are_upscaled_patch_by_patch():
    config = ASTConfig(max_length=64, num_mel_bins=48, time_stride=16, frequency_stride=16)
    attention = np.arange(12.0).reshape(3, 4)
    assert (upscaled(attention, config) == np.kron(attention, np.ones((16, 16)))).all()


def test_where_patches_overlap_the_nearest_counts():
    config = ASTConfig(max_length=46, num_mel_bins=36, time_stride=10, frequency_stride=10)
    large = upscaled(np.arange(12.0).reshape(3, 4), config)
    assert large.shape == (36, 46)
    for bin_index, frame in ((0, 0), (12, 13), (13, 12), (35, 45), (22, 23)):
        row = min(range(3), key=lambda patch: abs(10 * patch + 8 - (bin_index + 0.5)))
        column = min(range(4), key=lambda patch: abs(10 * patch + 8 - (frame + 0.5)))
        assert large[bin_index, frame] == 4 * row + column


def test_the_picture_shows_the_spectrogram_and_both_maps():
    model, inputs = adapted_ast("ipet"), spectrogram()
    before, after = before_and_after(model, inputs, frames=FRAMES)
    figure = plot_attention(inputs, before, after, model.config, FRAMES)
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == [
        "spectrogram",
        "attention before adaptation",
        "attention after adaptation",
    ]
    images = [axes.images[0] for axes in panels]
    assert (image_of(panels[0]) == inputs.numpy().T).all()
    assert (image_of(panels[1]) == upscaled(before, model.config)).all()
    assert (image_of(panels[2]) == upscaled(after, model.config)).all()
    assert images[1].get_clim() == images[2].get_clim() == (0, max(before.max(), after.max()))
    for axes, image in zip(panels, images):
        assert image.origin == "lower" and image.get_extent() == [0, 46, 0, 36]
        assert [line.get_xdata()[0] for line in axes.get_lines()] == list(FRAMES)


def test_the_command_shows_the_attention_of_a_saved_adapter_to_a_clip(tmp_path):
    save_adapter(tmp_path / "adapter", save_ast(tmp_path / "ast"), "abc")
    soundfile.write(tmp_path / "clip.wav", tone("low"), 16000)
    chosen = {"layer": 1, "frames": FRAMES, "head": 3}
    options = ["--layer", "1", "--frames", *FRAMES, "--head", "3"]
    figure = figure_of("attention", tmp_path / "adapter", tmp_path / "clip.wav", *options)

    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter", attn_implementation="eager")
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=46)
    waveform = load_waveform(tmp_path / "clip.wav", 16000)
    inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values[0]
    maps = before_and_after(model, inputs, **chosen)
    shown = [image_of(axes) for axes in figure.axes[:3]]
    assert shown[0] == pytest.approx(inputs.numpy().T, abs=1e-5)
    for image, attention in zip(shown[1:], maps):
        assert image == pytest.approx(upscaled(attention, model.config))
    with pytest.raises(ValueError, match="clip must be a file, got .*missing.wav"):
        figure_of("attention", tmp_path / "adapter", tmp_path / "missing.wav")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"input_values": torch.zeros(2, 46, 36)}, r"must have the shape \(46, 36\).*, got \(2, 46, 36\)"),
        ({"input_values": torch.full((46, 36), torch.nan)}, "`input_values` must be finite"),
        ({"layer": 3}, "`layer` must lie between -3 and 2 .*, got 3"),
        ({"layer": -4}, "`layer` must lie between -3 and 2"),
        ({"head": 4}, "`head` must lie between 0 and 3"),
        ({"frequency_patch": 3}, "`frequency_patch` must lie between 0 and 2"),
        ({"frames": (320, 336)}, r"`frames` must be .* within the 46 of the model, got \(320, 336\)"),
        ({"frames": (30, 20)}, "`frames` must be a first frame and the one after the last"),
        ({"frames": (19, 28)}, r"has the middle of no patch in it: they lie at 8, 8 \+ 10, ... up to 38. Take 10"),
    ],
)
def test_unusable_requests_for_attention_are_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        attention_map(eager_ast(), **{"input_values": spectrogram(), "frames": FRAMES} | changes)


def test_models_that_do_not_give_their_attention_are_refused():
    inputs = spectrogram()
    with pytest.raises(ValueError, match=r"with 'sdpa', .* call model.set_attn_implementation\('eager'\)"):
        attention_map(make_ast(), inputs)
    with pytest.raises(ValueError, match="training mode"):
        attention_map(eager_ast().train(), inputs)
    with pytest.raises(ValueError, match="`model` must be an AST, got Wav2Vec2ForSequenceClassification"):
        attention_map(make_wav2vec2(attn_implementation="eager"), inputs)
    with pytest.raises(ValueError, match="`model` must be a PeftModel"):
        before_and_after(eager_ast(), inputs)
    model = get_peft_model(make_ast(), METHODS["ipet"]()).eval()
    model.set_attn_implementation("eager")  # the way out that the message names
    assert attention_map(model, inputs, frames=FRAMES).shape == (3, 4)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [(np.zeros((4, 3)), r"has shape \(3, 4\) .*, got \(4, 3\)"), (np.full((3, 4), np.inf), "must be finite")],
)
def test_unusable_maps_are_refused(attention, expected):
    config = eager_ast().config
    with pytest.raises(ValueError, match=expected):
        plot_attention(spectrogram(), attention, attention, config, FRAMES)
