"""Other input lengths and strides of an AST."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import make_ast, make_wav2vec2
from transformers import ASTModel

from peft_audio import IPETConfig, resize_ast


PATCH = 16


def grid(model):
    """Position embeddings of the patches as `(d, frequency, time)`, and those of the special tokens."""
    embeddings = model.base_model.embeddings
    positions = embeddings.position_embeddings.detach()[0]
    return positions[2:].T.unflatten(1, embeddings.get_shape(model.config)), positions[:2]


def test_a_shorter_input_keeps_the_positions_in_the_middle():
    model = make_ast(max_length=166)  # 16 time positions at stride 10
    before, special = grid(model)
    resize_ast(model, max_length=66)  # 6 of them
    after, kept = grid(model)
    assert torch.equal(after, before[:, :, 5:11]) and torch.equal(kept, special)
    assert model(torch.randn(2, 66, 36)).logits.shape == (2, 5)


def test_a_longer_input_interpolates_linearly():
    model = make_ast(max_length=36)  # 3 time positions
    before, _ = grid(model)
    resize_ast(model, max_length=66)  # 6
    after, _ = grid(model)
    # Positions of the new grid's centers in units of the old one: -0.25, 0.25, 0.75, ..., clamped at the ends.
    for index in range(6):
        place = min(max((index + 0.5) / 2 - 0.5, 0), 2)
        low = int(place)
        high = min(low + 1, 2)
        expected = before[:, :, low] * (1 - (place - low)) + before[:, :, high] * (place - low)
        torch.testing.assert_close(after[:, :, index], expected, atol=1e-6, rtol=1e-5)


def test_a_new_stride_keeps_the_span():
    model = make_ast(max_length=176, num_mel_bins=64)
    ramp = torch.arange(17.0)  # 17 positions, 10 frames apart
    frequency, time = model.base_model.embeddings.get_shape(model.config)
    assert (frequency, time) == (5, 17)
    with torch.no_grad():
        values = ramp.expand(frequency, time).reshape(1, -1, 1)
        model.base_model.embeddings.position_embeddings[:, 2:] = values
    resize_ast(model, time_stride=16, frequency_stride=16)
    after, _ = grid(model)
    assert after.shape[1:] == (4, 11)
    assert (after[:, :, 1:] > after[:, :, :-1]).all()
    assert after.min() < 1 and after.max() > 15  # from the first patch to the last, not a cut
    assert model(torch.randn(1, 176, 64)).logits.shape == (1, 5)


@pytest.mark.parametrize("max_length", [16, 17, 46, 100, 300])
@pytest.mark.parametrize("stride", [1, 7, 10, 16, 50])
def test_any_length_and_stride(max_length, stride):
    model = resize_ast(make_ast(num_mel_bins=32, num_hidden_layers=1), max_length, stride, frequency_stride=stride)
    after, special = grid(model)
    assert after.shape[1:] == ((32 - PATCH) // stride + 1, (max_length - PATCH) // stride + 1)
    assert after.isfinite().all() and special.shape[0] == 2
    assert model(torch.randn(1, max_length, 32)).logits.shape == (1, 5)


def test_an_adapter_names_both_lengths(tmp_path):
    get_peft_model(resize_ast(make_ast(), max_length=96), IPETConfig()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="max_length=96, but .*max_length=66"):
        PeftModel.from_pretrained(resize_ast(make_ast(), max_length=66), tmp_path)


@pytest.mark.parametrize("cls", [None, ASTModel])
def test_down_to_one_patch(cls):
    model = make_ast(num_mel_bins=16, bare=cls is not None)
    resize_ast(model, max_length=PATCH)
    assert model.base_model.embeddings.position_embeddings.shape[1] == 3
    assert model(torch.randn(1, PATCH, 16))[0].shape[0] == 1
    with pytest.raises(ValueError, match=r"`max_length` must be at least one patch \(16 frames\), got 15"):
        resize_ast(model, max_length=15)


def test_the_same_size_changes_nothing():
    model = make_ast()
    before = model.base_model.embeddings.position_embeddings
    assert resize_ast(model, max_length=46) is model
    assert model.base_model.embeddings.position_embeddings is before
    assert not hasattr(model.config, "ast_resizes")


def test_a_resized_model_saves_and_loads_like_any_other(tmp_path):
    model = resize_ast(make_ast(), max_length=76)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    inputs = torch.randn(1, 76, 36)
    torch.testing.assert_close(again(inputs).logits, model(inputs).logits)


@pytest.mark.parametrize("field", ["max_length", "time_stride", "frequency_stride"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "512"])
def test_wrong_values_are_refused_before_anything_changes(field, value):
    model = make_ast()
    before = model.base_model.embeddings.position_embeddings
    with pytest.raises(ValueError, match=f"`{field}`"):
        resize_ast(model, **{field: value})
    assert model.base_model.embeddings.position_embeddings is before


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Wav2Vec2ForSequenceClassification"):
        resize_ast(make_wav2vec2(), max_length=100)
