"""Other input lengths of Whisper's encoder, wherever it is built in."""

import math

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import METHODS, WHISPER, make, make_ast, randomize, real_whisper
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification, resize_whisper


SECOND = 16000
TOWER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 12}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}


def fresh(**options):
    """A classifier with Whisper's own positions."""
    torch.manual_seed(0)
    return WhisperForAudioClassification(WhisperConfig(**{**WHISPER, **options}, num_labels=5)).eval()


def extractor():
    return WhisperFeatureExtractor(feature_size=12)


def qwen(bare):
    audio = transformers.models.qwen2_audio.Qwen2AudioEncoderConfig(**TOWER)
    if bare:
        return transformers.models.qwen2_audio.Qwen2AudioEncoder(audio)
    text = transformers.Qwen2Config(**TEXT, intermediate_size=16)
    config = transformers.Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=3)
    return transformers.Qwen2AudioForConditionalGeneration(config)


def voxtral(bare):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    audio = transformers.models.voxtral.VoxtralEncoderConfig(**sizes, num_mel_bins=12)
    if bare:
        return transformers.models.voxtral.VoxtralEncoder(audio)
    text = transformers.LlamaConfig(**TEXT, intermediate_size=16)
    config = transformers.VoxtralConfig(audio_config=audio, text_config=text)
    return transformers.VoxtralForConditionalGeneration(config)


WITH_WHISPERS_ENCODER = {
    "classifier": fresh,
    "model": lambda: transformers.WhisperModel(WhisperConfig(**WHISPER)),
    "recognizer": lambda: transformers.WhisperForConditionalGeneration(WhisperConfig(**WHISPER)),
    "encoder": lambda: make("whisper", bare=True),
    "qwen2_audio": lambda: qwen(bare=False),
    "qwen2_audio_encoder": lambda: qwen(bare=True),
    "voxtral": lambda: voxtral(bare=False),
    "voxtral_encoder": lambda: voxtral(bare=True),
}


def encoder_of(model):
    (encoder,) = [module for module in model.modules() if hasattr(module, "conv2")]
    return encoder


@pytest.mark.parametrize("name", WITH_WHISPERS_ENCODER)
@torch.no_grad()
def test_every_model_with_whispers_encoder_takes_a_shorter_input(name):
    model = WITH_WHISPERS_ENCODER[name]().eval()
    encoder = encoder_of(model)
    before = encoder.embed_positions.weight.clone()
    seconds = 8 / 50
    assert resize_whisper(model, seconds) is model
    assert torch.equal(encoder.embed_positions.weight, before[:8])
    assert not encoder.embed_positions.weight.requires_grad
    assert encoder.config.max_source_positions == encoder.max_source_positions == 8
    saved = model.config.to_dict()  # of a language model, the tower's configuration is within
    assert saved.get("audio_config", saved)["max_source_positions"] == 8
    states = encoder(torch.randn(2, 12, 16)).last_hidden_state
    assert states.shape[0] == 2 and states.isfinite().all()
    with pytest.raises(ValueError, match="16"):
        encoder(torch.randn(2, 12, 28))


@torch.no_grad()
def test_the_logits_are_those_of_the_first_positions():
    model = make("whisper", max_source_positions=40)
    features = torch.randn(2, 12, 24)
    encoder = model.encoder
    states = torch.nn.functional.gelu(encoder.conv1(features))
    states = torch.nn.functional.gelu(encoder.conv2(states)).mT + encoder.embed_positions.weight[:12]
    for layer in encoder.layers:
        states = layer(states, None)
    expected = model.classifier(model.projector(encoder.layer_norm(states)).mean(1))
    torch.testing.assert_close(resize_whisper(model, 12 / 50)(features).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_longer_input_gets_the_sinusoids_behind():
    model = fresh(max_source_positions=10)
    resize_whisper(model, 25 / 50)
    width = model.config.d_model // 2
    for place in (0, 9, 10, 24):
        angles = torch.tensor([place * math.exp(-math.log(10000) * index / (width - 1)) for index in range(width)])
        expected = torch.cat([angles.sin(), angles.cos()])
        torch.testing.assert_close(model.encoder.embed_positions.weight[place], expected, atol=1e-5, rtol=0)
    assert model(torch.randn(1, 12, 50)).logits.shape == (1, 5)


def test_positions_of_another_kind_can_be_cut_but_not_continued():
    model = make("whisper")  # random positions
    with pytest.raises(ValueError, match="`max_seconds` must be at most 0.28 on this model, got 0.4"):
        resize_whisper(model, 0.4)
    assert model.encoder.embed_positions.num_embeddings == model.config.max_source_positions == 14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype):
    model = resize_whisper(fresh().to(dtype), 1)
    assert model.encoder.embed_positions.weight.dtype == dtype and model.config.max_source_positions == 50


@pytest.mark.parametrize(
    "seconds, tokens", [(1, 50), (5, 250), (0.1, 5), (0.14, 7), (2.001, 101), (29.98, 1499), (30, 1500)]
)
def test_there_are_fifty_tokens_a_second(seconds, tokens):
    assert resize_whisper(fresh(), seconds).config.max_source_positions == tokens


@pytest.mark.filterwarnings("error")
@torch.no_grad()
def test_the_feature_extractor_follows_and_can_be_saved(tmp_path):
    feature_extractor = extractor()
    model = resize_whisper(fresh(), 5, feature_extractor)
    sizes = {"chunk_length": 5, "n_samples": 5 * SECOND, "nb_max_frames": 500}
    assert {name: getattr(feature_extractor, name) for name in sizes} == sizes
    feature_extractor.save_pretrained(tmp_path)
    again = WhisperFeatureExtractor.from_pretrained(tmp_path)
    for clip in (torch.randn(SECOND // 10), torch.randn(7 * SECOND)):
        features = [one(clip.numpy(), sampling_rate=SECOND, return_tensors="pt") for one in (feature_extractor, again)]
        assert torch.equal(features[0].input_features, features[1].input_features)
        assert model(**features[0]).logits.shape == (1, 5)


def test_a_length_that_its_files_cannot_hold_is_said():
    feature_extractor = extractor()
    with pytest.warns(UserWarning, match="no whole number of seconds. If you save it, use max_seconds=3"):
        model = resize_whisper(fresh(), 2.5, feature_extractor)
    features = feature_extractor(torch.randn(SECOND).numpy(), sampling_rate=SECOND, return_tensors="pt")
    assert model(**features).logits.shape == (1, 5)


def test_a_processor_is_taken_for_its_feature_extractor():
    class Processor:
        feature_extractor = extractor()

    resize_whisper(fresh(), 2, Processor())
    assert Processor.feature_extractor.n_samples == 2 * SECOND


@pytest.mark.parametrize("seconds", [0, -1, 0.0, float("nan"), float("inf"), "5", None, True])
def test_unusable_lengths_are_refused_before_anything_changes(seconds):
    model, feature_extractor = fresh(), extractor()
    with pytest.raises(ValueError, match="`max_seconds` must be"):
        resize_whisper(model, seconds, feature_extractor)
    assert model.config.max_source_positions == 14 and feature_extractor.chunk_length == 30


@pytest.mark.parametrize(
    "name, message", [("voxtral", "multiple of 4 tokens .* max_seconds=5.04"), ("qwen2_audio", "of 2")]
)
def test_lengths_whose_tokens_cannot_be_joined_are_refused(name, message):
    model = WITH_WHISPERS_ENCODER[name]()
    with pytest.raises(ValueError, match=message):
        resize_whisper(model, 5.02)
    assert encoder_of(model).embed_positions.num_embeddings == 1500


@pytest.mark.parametrize(
    "model",
    [
        make_ast,
        lambda: get_peft_model(fresh(), METHODS["ipet"]()),
        lambda: get_peft_model(fresh(), LoraConfig(target_modules=["q_proj"])),
        lambda: None,
    ],
)
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match="resize_whisper takes a model with one encoder of Whisper's kind"):
        resize_whisper(model(), 5)


def test_other_feature_extractors_are_refused():
    model = fresh()
    with pytest.raises(ValueError, match="`feature_extractor` must be a WhisperFeatureExtractor.*ASTFeatureExtractor"):
        resize_whisper(model, 5, transformers.ASTFeatureExtractor())
    assert model.config.max_source_positions == 14


@pytest.mark.parametrize("method", ["ipet", "time_freq_conv", "input_prompt", "linear_probe"])
@torch.no_grad()
def test_the_length_comes_back_with_an_adapter(method, tmp_path):
    fresh().save_pretrained(tmp_path / "base")

    def base():
        return WhisperForAudioClassification.from_pretrained(tmp_path / "base")

    model = get_peft_model(resize_whisper(base(), 12 / 50), METHODS[method]())
    randomize(model).eval().save_pretrained(tmp_path / "adapter")
    features = torch.randn(2, 12, 24)
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(again(features).logits, model(features).logits, atol=1e-6, rtol=0)
    by_hand = PeftModel.from_pretrained(resize_whisper(base(), 12 / 50), tmp_path / "adapter")
    torch.testing.assert_close(by_hand(features).logits, model(features).logits, atol=1e-6, rtol=0)
    message = (
        "max_source_positions=12, but this WhisperForAudioClassification has max_source_positions=14.*resize_whisper"
    )
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base(), tmp_path / "adapter")


@torch.no_grad()
def test_real_weights_at_five_seconds():
    model, feature_extractor = real_whisper(), WhisperFeatureExtractor()
    resize_whisper(model, 5, feature_extractor)
    clip = torch.randn(3 * SECOND, generator=torch.Generator().manual_seed(0)).numpy()
    features = feature_extractor(clip, sampling_rate=SECOND, return_tensors="pt").input_features
    encoder = model.encoder
    original = real_whisper().encoder
    states = torch.nn.functional.gelu(original.conv2(torch.nn.functional.gelu(original.conv1(features)))).mT
    states = states + original.embed_positions.weight[:250]
    for layer in original.layers:
        states = layer(states, None)
    expected = model.classifier(model.projector(encoder.layer_norm(states)).mean(1))
    torch.testing.assert_close(model(features).logits, expected, atol=1e-5, rtol=1e-5)
    # Up to 30 seconds the checkpoint's own positions are the sinusoids that a longer input would be given.
    longer = resize_whisper(model, 31).encoder.embed_positions.weight
    torch.testing.assert_close(longer[:1500], original.embed_positions.weight, atol=1e-3, rtol=0)
