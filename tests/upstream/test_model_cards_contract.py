"""What model cards rely on inside PEFT, transformers and huggingface_hub."""

import pytest
from peft import LoraConfig, get_peft_model
from tiny import make

from peft_audio.upstream import model_cards


def test_a_card_of_peft_has_the_sentence_of_its_template(tmp_path):
    """Else an adapter's model card keeps PEFT's unfilled template."""
    get_peft_model(make("ast"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert model_cards.PEFT_TEMPLATE_MARK in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "name, rate",
    [
        ("ASTForAudioClassification", 16000),
        ("Wav2Vec2ForSequenceClassification", 16000),
        ("WhisperForAudioClassification", 16000),
        ("ClapModel", 48000),
        ("ViTForImageClassification", None),
        ("BertModel", None),
        ("NoSuchModel", None),
    ],
)
def test_the_sampling_rate_is_the_feature_extractors(name, rate):
    """Else a model card without feature extractor beside it does not say the sampling rate."""
    assert model_cards.default_sampling_rate(name) == rate


@pytest.mark.parametrize("name, is_id", [("me/model", True), ("gpt2", True), ("a/b/c", False), ("/folder", False)])
def test_names_on_the_hub_are_told_from_paths(name, is_id):
    """Else the metadata of a model card names a local path, and a push to the Hub fails."""
    assert model_cards.is_hub_id(name) is is_id
