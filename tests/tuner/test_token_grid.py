"""The grid that convolutions act on is that of the input at hand."""

import pytest
import torch
from peft import get_peft_model
from reference import convolve
from tiny import BACKBONES, make, make_inputs, randomize

from peft_audio import EmbeddingPromptConfig, TimeFreqConvAdapterConfig, resize_ast
from peft_audio.modules import GridConv
from peft_audio.tuner.encoder_layer import EncoderTunerLayer
from peft_audio.tuner.read_tokens import remove_read_tokens


def grids(model):
    """What every convolution of a forward pass was told of its tokens, and what it gave."""
    calls = []
    for module in model.modules():
        if isinstance(module, GridConv):
            module.register_forward_hook(lambda conv, args, output: calls.append((conv, *args[:2], output)))
    return calls


def adapted(model):
    """The model with convolutions in every layer, which run over all tokens, read or not."""
    model = randomize(get_peft_model(model, TimeFreqConvAdapterConfig(bottleneck_dim=4, modules_to_save=[]))).eval()
    remove_read_tokens(model.get_base_model())
    return model


@pytest.mark.parametrize("frames, stride", [(46, 10), (100, 10), (16, 16), (176, 16), (47, 7)])
@torch.no_grad()
def test_an_ast_of_any_length_and_stride(frames, stride):
    base = resize_ast(make("ast"), max_length=frames, time_stride=stride, frequency_stride=stride)
    grid = base.base_model.embeddings.get_shape(base.config)
    model = adapted(base)
    calls = grids(model)
    model(torch.randn(2, frames, 36))
    assert len(calls) == 2 * 2 * 3
    for conv, tokens, layout, output in calls:
        assert layout.grid == grid and tokens.shape[1] == 2 + grid[0] * grid[1]
        torch.testing.assert_close(output, convolve(tokens, conv.weight, grid), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone, special", [("vit", 1), ("deit", 2)])
@torch.no_grad()
def test_an_image_of_another_size(backbone, special):
    model = adapted(BACKBONES[backbone]())
    calls = grids(model)
    for height, width in ((24, 24), (32, 48), (16, 96)):
        calls.clear()
        model(pixel_values=torch.randn(1, 3, height, width), interpolate_pos_encoding=True)
        grid = (height // 8, width // 8)
        assert {call[2].grid for call in calls} == {grid}
        assert {call[1].shape[1] for call in calls} == {special + grid[0] * grid[1]}


@pytest.mark.parametrize("backbone", ["wav2vec2", "wavlm", "sew", "whisper", "wav2vec2-bert"])
@torch.no_grad()
def test_one_row_of_time_where_there_is_no_frequency(backbone):
    model = adapted(BACKBONES[backbone]())
    calls = grids(model)
    model(**make_inputs(backbone))
    assert all(layout.grid == (1, tokens.shape[1]) for _, tokens, layout, _ in calls) and calls


@pytest.mark.parametrize("backbone", ["ast", "vit", "wav2vec2", "wavlm", "sew-d"])
@torch.no_grad()
def test_prompts_are_never_in_the_grid(backbone):
    model = adapted(BACKBONES[backbone]())
    calls = grids(model)
    model(**make_inputs(backbone))
    lengths = [tokens.shape[1] for _, tokens, _, _ in calls]
    layers = [module for module in model.modules() if isinstance(module, EncoderTunerLayer)]
    prompted = get_peft_model(BACKBONES[backbone](), EmbeddingPromptConfig(num_virtual_tokens=3))
    prompts = [module for module in prompted.modules() if isinstance(module, EncoderTunerLayer)]
    for layer, other in zip(layers, prompts):
        layer.part("prompt")["default"] = other.part("prompt")["default"]
    calls.clear()
    model(**make_inputs(backbone))
    assert [tokens.shape[1] for _, tokens, _, _ in calls] == lengths
