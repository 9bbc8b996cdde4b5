"""Padding that Whisper leaves out: logits that do not depend on how far a clip is padded."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from tiny import METHODS, count_hooks, make, make_wav2vec2, randomize, real_whisper
from transformers import WhisperFeatureExtractor, WhisperForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification, cache_frozen, resize_whisper, use_padding_mask
from peft_audio.whisper.padding import padding_mask


SECOND = 16000


def make_whisper(seconds=1, **options):
    options = {"max_source_positions": 200, "num_mel_bins": 80, **options}
    return use_padding_mask(resize_whisper(make("whisper", **options), seconds))


def features_of(clip, seconds, **options):
    """One clip, `(samples,)`, as a model of this length takes it."""
    extractor = WhisperFeatureExtractor(chunk_length=seconds)
    return dict(extractor(clip.numpy(), sampling_rate=SECOND, return_tensors="pt", **options))


def noise(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def batch_of(model, lengths):
    """Random spectrograms `(batch, mel bins, frames)` of which clips of these lengths are no padding."""
    frames = 2 * model.config.max_source_positions
    features = torch.randn(len(lengths), model.config.num_mel_bins, frames)
    mask = torch.arange(frames) < torch.tensor(lengths).unsqueeze(1)
    return torch.where(mask.unsqueeze(1), features, features.amin()), mask


@torch.no_grad()
def test_logits_are_the_mean_over_the_clips_own_tokens():
    model = make_whisper()
    features, mask = batch_of(model, [100, 61, 2])
    encoder = model.encoder
    for row, length in enumerate([50, 31, 1]):  # tokens: frames by two, rounded up
        states = torch.nn.functional.gelu(encoder.conv1(features[row : row + 1]))
        states = torch.nn.functional.gelu(encoder.conv2(states)).mT + encoder.embed_positions.weight
        states = states[:, :length]
        for layer in encoder.layers:
            attended, _ = layer.self_attn(layer.self_attn_layer_norm(states))
            states = states + attended
            states = states + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.final_layer_norm(states))))
        expected = model.classifier(model.projector(encoder.layer_norm(states)).mean(1))
        for given_mask in ({}, {"attention_mask": mask.long()}):
            logits = model(features, **given_mask).logits[row : row + 1]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_clip_has_the_same_logits_at_any_padded_length(method, attention):
    if method == "input_prompt":
        pytest.skip("its values are on the border of the padded spectrogram, so it depends on the length")
    logits = []
    for seconds in (1, 2, 3):
        base = make_whisper(seconds)
        base.set_attn_implementation(attention)
        model = randomize(get_peft_model(base, METHODS[method]())).eval()
        logits.append(model(**features_of(noise(SECOND * 7 // 10), seconds)).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_it_they_depend_on_the_padded_length():
    clip, models = (
        noise(SECOND // 2),
        [resize_whisper(make("whisper", max_source_positions=200, num_mel_bins=80), n) for n in (1, 3)],
    )
    logits = [model(**features_of(clip, seconds)).logits for seconds, model in zip((1, 3), models)]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = randomize(get_peft_model(make_whisper(), METHODS["joint"]())).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        torch.manual_seed(0)
        features, _ = batch_of(model.get_base_model(), [100, 33, 8])
        other, _ = batch_of(model.get_base_model(), [10, 90, 50])
        (model(features).logits - model(other).logits).square().sum().backward()  # two passes before one backward pass
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_what_the_spectrogram_says_is_padding(lengths):
    features = torch.full((len(lengths), 6, 40), -1.5)
    for row, length in enumerate(lengths):
        features[row, :, :length] += torch.rand(6, length) + 0.1 * torch.arange(6.0).unsqueeze(1)
        features[row, :, : length // 2 : 3] = -1.5  # silence within a clip is no padding
    expected = torch.arange(40) < torch.tensor(lengths).clamp(min=1).unsqueeze(1)
    assert torch.equal(padding_mask(features), expected)


@torch.no_grad()
def test_feature_extractors_mask_and_spectrogram_differ_by_the_end_alone():
    for samples in (SECOND // 3, SECOND // 2, SECOND):
        inputs = features_of(noise(samples), 1, return_attention_mask=True)
        found, said = padding_mask(inputs["input_features"])[0].sum(), inputs["attention_mask"][0].sum()
        assert 0 <= found - said <= 2


@torch.no_grad()
def test_silence_and_empty_masks_give_numbers():
    model = make_whisper()
    assert model(**features_of(torch.zeros(SECOND), 1)).logits.isfinite().all()
    features, mask = batch_of(model, [50, 100])
    mask[0] = False
    logits = model(features, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[1], model(features).logits[1])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_do_it_too(clone):
    model = make_whisper()
    other, (features, _) = clone(model), batch_of(model, [30])
    torch.testing.assert_close(other(features).logits, model(features).logits)
    assert count_hooks(use_padding_mask(other)) == count_hooks(model) > 0


@pytest.mark.parametrize("method", ["ipet", "linear_probe"])
@torch.no_grad()
def test_it_comes_back_with_an_adapter(method, tmp_path):
    make("whisper").save_pretrained(tmp_path / "base")

    def base():
        return WhisperForAudioClassification.from_pretrained(tmp_path / "base")

    model = randomize(get_peft_model(use_padding_mask(base()), METHODS[method]())).eval()
    model.save_pretrained(tmp_path / "adapter")
    features, _ = batch_of(model.get_base_model(), [9, 28])
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(again(features).logits, model(features).logits, atol=1e-6, rtol=0)
    by_hand = PeftModel.from_pretrained(use_padding_mask(base()), tmp_path / "adapter")
    torch.testing.assert_close(by_hand(features).logits, model(features).logits, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="padding_mask=True, but .* has padding_mask=False.*use_padding_mask first"):
        PeftModel.from_pretrained(base(), tmp_path / "adapter")


def test_a_saved_model_needs_the_call_again(tmp_path):
    use_padding_mask(make("whisper")).save_pretrained(tmp_path)
    plain = WhisperForAudioClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Call peft_audio.use_padding_mask\(model\) first"):
        get_peft_model(plain, METHODS["ipet"]())
    get_peft_model(use_padding_mask(plain), METHODS["ipet"]())


@pytest.mark.parametrize(
    "model",
    [make_wav2vec2, lambda: make("whisper", bare=True), lambda: get_peft_model(make("whisper"), METHODS["ipet"]())],
)
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match="use_padding_mask takes a WhisperForAudioClassification without adapters"):
        use_padding_mask(model())


@torch.no_grad()
def test_what_does_not_say_what_is_padding_is_refused():
    model = make_whisper()
    features, mask = batch_of(model, [30])
    outputs = model.encoder(features)
    with pytest.raises(ValueError, match="takes `input_features`, .* not `encoder_outputs`"):
        model(encoder_outputs=outputs)
    with pytest.raises(ValueError, match=r"`attention_mask` must be of shape \(batch, frames\), here \(1, 100\)"):
        model(features, attention_mask=mask[:, :-1])


@torch.no_grad()
def test_cached_states_need_the_mask_beside_them(tmp_path):
    model = get_peft_model(make_whisper(), METHODS["linear_probe"]()).eval()
    features, mask = batch_of(model.get_base_model(), [100, 40])
    clips = [{"input_features": clip, "labels": 0} for clip in features]
    with pytest.raises(ValueError, match="what comes after needs more of the frozen part"):
        cache_frozen(model, clips, tmp_path / "a")
    clips = [{**clip, "attention_mask": row.long()} for clip, row in zip(clips, mask)]
    states = cache_frozen(model, clips, tmp_path / "b")
    for index in range(2):
        kept = {name: value.unsqueeze(0) for name, value in states[index].items() if name != "labels"}
        expected = model(features[index : index + 1], attention_mask=mask[index : index + 1]).logits
        torch.testing.assert_close(model(**kept).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_real_weights_hear_a_clip_alike_at_any_length():
    clip, logits = noise(SECOND) * 0.1, []
    for seconds in (2, 5, 30):
        logits.append(use_padding_mask(resize_whisper(real_whisper(), seconds))(**features_of(clip, seconds)).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-4, rtol=1e-4)
