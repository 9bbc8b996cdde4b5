"""Statistics pooling against torch's own mean and standard deviation, and IPET's equation for the head."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import (
    BACKBONES,
    HIDDEN_SIZE,
    METHODS,
    NUM_LABELS,
    WITH_GRID,
    WITH_PADDING,
    make_ast,
    make_inputs,
    make_padded_inputs,
    make_wav2vec2,
    randomize,
)

from peft_audio import AutoPeftModelForAudioClassification, IPETConfig, use_statistics_pooling
from peft_audio.heads.statistics_pooling import mean_and_std


each_norm_style = pytest.mark.parametrize("make_model", [BACKBONES["wav2vec2"], BACKBONES["wav2vec2-stable"]])
each_frame_backbone = pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in WITH_GRID])


def test_mean_and_std_over_unmasked_frames():
    frames = torch.randn(3, 7, 4)
    lengths = [7, 4, 2]
    mask = torch.tensor([[index < length for index in range(7)] for length in lengths]).float().unsqueeze(-1)
    actual = mean_and_std(frames, mask)
    for row, clip, length in zip(actual, frames, lengths):
        expected = torch.cat([clip[:length].mean(0), clip[:length].std(0, unbiased=True)])
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)


def test_one_frame_and_constant_frames_have_zero_deviation_and_finite_gradients():
    frames = torch.ones(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 1]]).unsqueeze(-1)
    statistics = mean_and_std(frames, mask)
    torch.testing.assert_close(statistics[:, 4:], torch.zeros(2, 4), atol=1e-5, rtol=0)
    statistics.sum().backward()
    assert frames.grad.isfinite().all()


@each_frame_backbone
@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_is_ipets(backbone, weighted):
    model = use_statistics_pooling(BACKBONES[backbone](use_weighted_layer_sum=weighted))
    inputs = make_inputs(backbone)
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        encoder = model.encoder if backbone == "whisper" else model.base_model
        frames = encoder(**inputs).last_hidden_state
        if weighted:
            frames = torch.stack(outputs.hidden_states).mean(0)  # the weights start equal
        statistics = torch.cat([frames.mean(1), frames.std(1)], dim=-1)
        norm, linear = model.classifier
        centered = statistics - statistics.mean(-1, keepdim=True)
        normalized = centered / (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        expected = (normalized * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-4)
    assert linear.weight.shape == (NUM_LABELS, 2 * HIDDEN_SIZE)


@pytest.mark.parametrize("backbone", WITH_PADDING)
def test_the_same_mask_as_the_models_own_mean(backbone):
    model, inputs = use_statistics_pooling(BACKBONES[backbone]()), make_padded_inputs(backbone)[0]
    with torch.no_grad():
        frames = model.base_model(**inputs).last_hidden_state
        mask = model._get_feature_vector_attention_mask(frames.shape[1], inputs["attention_mask"]).bool()
        clips = [clip[real] for clip, real in zip(frames, mask)]
        expected = model.classifier(torch.stack([torch.cat([clip.mean(0), clip.std(0)]) for clip in clips]))
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


@each_norm_style
@pytest.mark.parametrize("positional", [False, True])
def test_padding_takes_no_part(make_model, positional):
    model = use_statistics_pooling(make_model()).eval()
    clips = [torch.randn(800), torch.randn(500)]
    batch = torch.stack([clips[0], torch.nn.functional.pad(clips[1], (0, 300))])
    mask = torch.ones(2, 800, dtype=torch.long)
    mask[1, 500:] = 0
    together = (model(batch, mask) if positional else model(batch, attention_mask=mask)).logits
    alone = model(clips[1][None]).logits
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_head_is_trained_saved_and_brought_back(tmp_path):
    base = make_wav2vec2()
    base.save_pretrained(tmp_path / "base")
    model = use_statistics_pooling(type(base).from_pretrained(tmp_path / "base"))
    model = randomize(get_peft_model(model, METHODS["ipet"]())).eval()
    assert model.peft_config["default"].modules_to_save == ["classifier"]
    model.save_pretrained(tmp_path / "adapter")
    inputs = make_inputs("wav2vec2")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    by_hand = PeftModel.from_pretrained(use_statistics_pooling(make_wav2vec2()), tmp_path / "adapter")
    assert torch.equal(by_hand(**inputs).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match="statistics_pooling=True.*statistics_pooling=False.*use_statistics_pooling"):
        PeftModel.from_pretrained(make_wav2vec2(), tmp_path / "adapter")


def test_a_base_model_saved_with_the_head_needs_it_again(tmp_path):
    base = use_statistics_pooling(make_wav2vec2())
    base.save_pretrained(tmp_path / "base")
    plain = type(base).from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"loaded with a plain head. Call peft_audio.use_statistics_pooling\(model\)"):
        get_peft_model(plain, IPETConfig())
    model = randomize(get_peft_model(use_statistics_pooling(plain), IPETConfig())).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**make_inputs("wav2vec2")).logits, model(**make_inputs("wav2vec2")).logits)


def test_wrong_models_are_refused():
    for model in (make_ast(), make_wav2vec2(bare=True)):
        with pytest.raises(ValueError, match=type(model).__name__):
            use_statistics_pooling(model)
    model = use_statistics_pooling(make_wav2vec2())
    with pytest.raises(ValueError, match="already"):
        use_statistics_pooling(model)
    adapted = get_peft_model(model, IPETConfig())
    assert adapted(**make_inputs("wav2vec2")).logits.shape == (2, NUM_LABELS)
