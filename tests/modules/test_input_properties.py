"""What holds for inputs of any length, and for masks, convolutions and statistics of any shape."""

import tempfile

import pytest
import torch
from hypotheses import examples, hypothesis, logits, some
from peft import PeftModel, get_peft_model
from reference import convolve
from tiny import make, randomize
from torch import nn

from peft_audio import (
    BottleneckAdapterConfig,
    InputPromptConfig,
    IPETConfig,
    TimeFreqConvAdapterConfig,
    resize_ast,
)
from peft_audio.heads.statistics_pooling import mean_and_std
from peft_audio.modules import GridConv, TokenLayout
from peft_audio.tuner.masks import grow_mask, real_tokens


# ---- inputs ----------------------------------------------------------------------------------------------------------


MIN_SAMPLES = 10 + 7 * 5  # one frame of two convolutions, of kernel size 10 and 8, the first with stride 5
WAVEFORM_METHODS = [
    IPETConfig(num_virtual_tokens=3, bottleneck_dim=8),
    IPETConfig(num_virtual_tokens=1, bottleneck_dim=4, adapter_input="normalized", spatial_adapter=True),
    TimeFreqConvAdapterConfig(bottleneck_dim=6, attention_kernel=(1, 5)),
    BottleneckAdapterConfig(bottleneck_dim=4, block="conformer", sites=("attention", "mlp")),
    InputPromptConfig(prompt_size=100),
]
SPECTROGRAM_METHODS = [
    IPETConfig(num_virtual_tokens=3, bottleneck_dim=8),
    TimeFreqConvAdapterConfig(bottleneck_dim=3),
    InputPromptConfig(prompt_size=5),
]


@pytest.fixture(scope="module")
def waveform_models():
    torch.manual_seed(0)
    return [randomize(get_peft_model(make("wav2vec2"), config)).eval() for config in WAVEFORM_METHODS]


@pytest.mark.parametrize("index", range(len(WAVEFORM_METHODS)))
@examples(25)
@hypothesis.given(
    lengths=some.lists(some.integers(MIN_SAMPLES, 900), min_size=1, max_size=4), padding=some.integers(0, 99)
)
def test_clips_of_any_length_alone_and_padded(waveform_models, index, lengths, padding):
    torch.manual_seed(0)
    model, clips = waveform_models[index], [torch.randn(1, length) for length in lengths]
    alone = torch.cat(
        [logits(model, {"input_values": clip, "attention_mask": torch.ones_like(clip)}) for clip in clips]
    )
    total = max(lengths) + padding
    values = torch.cat([nn.functional.pad(clip, (0, total - clip.shape[1])) for clip in clips])
    mask = torch.tensor([[1] * length + [0] * (total - length) for length in lengths])
    batch = logits(model, {"input_values": values, "attention_mask": mask})
    assert alone.isfinite().all()
    torch.testing.assert_close(batch, alone, atol=1e-4, rtol=1e-4)
    unmasked = logits(model, {"input_values": clips[0]})
    torch.testing.assert_close(unmasked, alone[:1], atol=1e-4, rtol=1e-4)


@examples(25)
@hypothesis.given(
    sizes=some.lists(
        some.fixed_dictionaries(
            {},
            optional={
                "max_length": some.integers(16, 90),
                "time_stride": some.integers(1, 24),
                "frequency_stride": some.integers(1, 24),
            },
        ),
        min_size=1,
        max_size=2,
    ),
    config=some.sampled_from(SPECTROGRAM_METHODS),
)
@torch.no_grad()
def test_an_ast_of_any_length_and_stride(sizes, config):
    torch.manual_seed(0)
    base, wanted = make("ast"), {"max_length": 46, "time_stride": 10, "frequency_stride": 10}
    special = base.base_model.embeddings.position_embeddings[:, :2].clone()
    for size in sizes:
        resize_ast(base, **size)
        wanted |= size
    model = randomize(get_peft_model(base, config)).eval()
    rows = (36 - 16) // wanted["frequency_stride"] + 1
    columns = (wanted["max_length"] - 16) // wanted["time_stride"] + 1
    inputs = {"input_values": torch.randn(2, wanted["max_length"], 36)}
    outputs = model(**inputs, output_hidden_states=True)
    assert {states.shape for states in outputs.hidden_states} == {(2, 2 + rows * columns, base.config.hidden_size)}
    assert outputs.logits.isfinite().all()
    assert torch.equal(base.base_model.embeddings.position_embeddings[:, :2], special)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        other = make("ast")
        for size in sizes:
            resize_ast(other, **size)
        again = PeftModel.from_pretrained(other, folder)
    torch.testing.assert_close(again(**inputs).logits, outputs.logits)


# ---- masks, convolutions, statistics ---------------------------------------------------------------------------------


def in_form(form, real, queries):
    """The mask of tokens `(batch, keys)` in one of transformers' forms."""
    if form == "keys":
        return real.long()
    wide = real[:, None, None].expand(-1, 1, queries, -1)
    if form == "additive":
        return torch.zeros(wide.shape).masked_fill(~wide, torch.finfo(torch.float32).min)
    return wide.long() if form == "integer" else wide


@examples(150)
@hypothesis.given(
    form=some.sampled_from(["keys", "boolean", "additive", "integer"]),
    lengths=some.lists(some.integers(1, 7), min_size=1, max_size=4),
    one_query=some.booleans(),
    numbers=some.tuples(some.integers(0, 5), some.integers(0, 5)),
    grow_queries=some.booleans(),
)
def test_a_grown_mask_is_the_old_one_with_new_tokens_in_front(form, lengths, one_query, numbers, grow_queries):
    keys = max(lengths)
    real = torch.arange(keys) < torch.tensor(lengths)[:, None]
    mask = in_form(form, real, 1 if one_query else keys)
    added = sum(numbers)
    grown = grow_mask(mask, added, grow_queries)
    grows = form != "keys" and mask.shape[2] > 1 and grow_queries
    rows = mask.shape[-2:-1] if form == "keys" else (1, mask.shape[2] + added * grows)
    assert grown.shape == (len(lengths), *(() if form == "keys" else rows), keys + added) and grown.dtype == mask.dtype
    old = grown[..., added:] if form == "keys" else grown[:, :, added * grows :, added:]
    assert torch.equal(old, mask)
    last = grown if form == "keys" else grown[:, :, -1:]
    assert torch.equal(real_tokens(last, len(lengths)), nn.functional.pad(real, (added, 0), value=True))
    if grows and added:
        assert real_tokens(grown[:, :, :1], len(lengths)).all()  # what prompts attend to is thrown away
    assert torch.equal(grow_mask(grow_mask(mask, numbers[0], grow_queries), numbers[1], grow_queries), grown)


@examples(150)
@hypothesis.given(
    form=some.sampled_from(["additive", "integer", "boolean"]),
    lengths=some.lists(some.integers(1, 9), min_size=1, max_size=4),
    window=some.tuples(some.integers(0, 4), some.integers(0, 4)),
    chunk=some.integers(1, 4),
    padding_reads=some.booleans(),
)
def test_tokens_are_told_from_padding_under_windows_chunks_and_queries_that_read_nothing(
    form, lengths, window, chunk, padding_reads
):
    keys = max(lengths)
    real = torch.arange(keys) < torch.tensor(lengths)[:, None]
    places = torch.arange(keys)
    distances = places[:, None] - places
    near = (distances <= window[0]) & (-distances <= window[1]) | (places[:, None] // chunk == places // chunk)
    attends = real[:, None, None] & near  # every query reads itself, unless it is padding
    if not padding_reads:
        attends = attends & real[:, None, :, None]
    masks = {
        "boolean": attends,
        "integer": attends.long(),
        "additive": torch.zeros(attends.shape).masked_fill(~attends, float("-inf")),
    }
    assert torch.equal(real_tokens(masks[form], len(lengths)), real)


@examples(80)
@hypothesis.given(
    grid=some.tuples(some.integers(1, 6), some.integers(1, 6)),
    kernel=some.tuples(some.sampled_from([1, 3, 5, 9]), some.sampled_from([1, 3, 5, 9])),
    channels=some.tuples(some.integers(1, 5), some.integers(1, 5)),
    special=some.integers(0, 2),
    bias=some.booleans(),
)
def test_a_grid_convolution_is_a_convolution(grid, kernel, channels, special, bias):
    torch.manual_seed(0)
    conv = GridConv(*channels, kernel, bias=bias)
    tokens = torch.randn(2, special + grid[0] * grid[1], channels[0])
    expected = convolve(tokens, conv.weight, grid)
    if bias:
        nn.init.normal_(conv.bias)
        expected = expected + conv.bias
    torch.testing.assert_close(conv(tokens, TokenLayout(grid)), expected, atol=1e-5, rtol=1e-5)


@examples(60)
@hypothesis.given(lengths=some.lists(some.integers(1, 9), min_size=1, max_size=4), padding=some.integers(0, 3))
def test_statistics_are_those_of_the_frames_that_are_no_padding(lengths, padding):
    torch.manual_seed(0)
    total = max(lengths) + padding
    frames = torch.randn(len(lengths), total, 3)
    mask = (torch.arange(total) < torch.tensor(lengths)[:, None]).unsqueeze(-1).float()
    for row, length, clip in zip(mean_and_std(frames, mask), lengths, frames):
        real = clip[:length]
        std = real.std(0) if length > 1 else torch.zeros(3)
        torch.testing.assert_close(row, torch.cat([real.mean(0), std]), atol=1e-5, rtol=1e-5)
