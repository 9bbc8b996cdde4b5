"""Adapters in plain transformers models: `load_adapter`, `from_pretrained` of an adapter's folder, pipelines."""

import json

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import METHODS, make, make_inputs, randomize
from transformers import ASTFeatureExtractor, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor, pipeline

from peft_audio import AutoPeftModelForAudioClassification


# transformers' wav2vec2 class has a load_adapter of its own, for languages.
TYPES = ["ast", "hubert", "wavlm-stable", "whisper", "wav2vec2-bert-relative", "sew-d"]
LABELS = dict(enumerate("abcde"))


@torch.no_grad()
def logits(model, backbone):
    return model(**make_inputs(backbone)).logits


def trained(backbone, method, folder, num_labels=5):
    """An adapter saved in folder/adapter, trained on the base model in folder/base, which has `num_labels`."""
    make(backbone, num_labels=num_labels).save_pretrained(folder / "base")
    base = type(make(backbone)).from_pretrained(
        folder / "base", num_labels=len(LABELS), id2label=LABELS, ignore_mismatched_sizes=True
    )
    model = randomize(get_peft_model(base, METHODS[method]())).eval()
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("backbone", TYPES)
@pytest.mark.parametrize("method", ["ipet", "conformer", "bottleneck_parallel", "input_prompt", "linear_probe"])
def test_load_adapter_gives_the_same_logits(backbone, method, tmp_path):
    expected = logits(trained(backbone, method, tmp_path), backbone)
    base = type(make(backbone)).from_pretrained(tmp_path / "base")
    before = logits(base, backbone)
    base.load_adapter(tmp_path / "adapter", adapter_name="mine")
    torch.testing.assert_close(logits(base, backbone), expected)
    assert base.config.id2label == LABELS and not base.training
    assert not any(parameter.requires_grad for name, parameter in base.named_parameters() if ".mine." in name)
    base.disable_adapters()
    torch.testing.assert_close(logits(base, backbone), before)


@pytest.mark.parametrize("backbone", TYPES)
def test_from_pretrained_of_an_adapter_brings_its_labels(backbone, tmp_path):
    expected = logits(trained(backbone, "ipet", tmp_path, num_labels=2), backbone)
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(model, backbone), expected)
    assert model.config.id2label == LABELS and model.num_labels == len(LABELS)


def test_from_pretrained_of_an_adapter_brings_its_input_length(tmp_path):
    from peft_audio import resize_ast

    make("ast").save_pretrained(tmp_path / "base")
    base = resize_ast(type(make("ast")).from_pretrained(tmp_path / "base"), max_length=26)
    model = randomize(get_peft_model(base, METHODS["time_freq_conv"]())).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    inputs = torch.randn(2, 26, 36)
    with torch.no_grad():
        torch.testing.assert_close(again(inputs).logits, model(inputs).logits)


def test_a_trainable_adapter(tmp_path):
    trained("hubert", "ipet", tmp_path)
    base = type(make("hubert")).from_pretrained(tmp_path / "base")
    base.load_adapter(tmp_path / "adapter", is_trainable=True)
    base(**make_inputs("hubert"), labels=torch.tensor([0, 1])).loss.backward()
    wanting = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    assert wanting and all("ipet_" in name or "modules_to_save" in name for name in wanting)
    assert all(dict(base.named_parameters())[name].grad is not None for name in wanting)


def test_weights_and_configuration_without_a_folder(tmp_path):
    expected = logits(trained("ast", "ipet", tmp_path), "ast")
    base = type(make("ast")).from_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    base.load_adapter(peft_config=METHODS["ipet"](), adapter_state_dict=tensors)
    torch.testing.assert_close(logits(base, "ast"), expected)


def first_prompt(tensors):
    return next(key for key in tensors if ".layers.0.prompt." in key)


DAMAGE = {
    "missing": lambda tensors: tensors.pop(next(key for key in tensors if "layers.1" in key)),
    "not of this adapter": lambda tensors: tensors.update({"base_model.model.layers.9.prompt.weight": torch.ones(1)}),
    "wrong shape": lambda tensors: tensors.update({first_prompt(tensors): torch.ones(3, 5)}),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_with_other_tensors_is_refused_and_taken_off(case, tmp_path):
    trained("ast", "ipet", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    DAMAGE[case](tensors)
    save_file(tensors, file)
    base = type(make("ast")).from_pretrained(tmp_path / "base")
    before = logits(base, "ast")
    with pytest.raises((ValueError, RuntimeError), match=case):
        base.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(base, "ast"), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    trained("ast", "ipet", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[first_prompt(tensors)].flatten()[0] = value
    save_file(tensors, file)
    base = make("ast")
    keys = list(base.state_dict())
    with pytest.raises(ValueError, match=r"not finite: .*layers\.0\..*prompt"):
        base.load_adapter(tmp_path / "adapter")
    assert list(base.state_dict()) == keys


def test_a_base_of_another_width_or_labels_is_refused_before_it_is_touched(tmp_path):
    trained("ast", "ipet", tmp_path)
    base = make("ast", num_labels=2)
    keys = list(base.state_dict())
    with pytest.raises(ValueError, match="num_labels=5"):
        base.load_adapter(tmp_path / "adapter")
    assert list(base.state_dict()) == keys


def test_stock_adapters_load_as_ever(tmp_path):
    from peft import LoraConfig

    make("ast").save_pretrained(tmp_path / "base")
    base = type(make("ast")).from_pretrained(tmp_path / "base")
    model = randomize(get_peft_model(base, LoraConfig(target_modules=["q_proj"]))).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = type(make("ast")).from_pretrained(tmp_path / "base")
    again.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(again, "ast"), logits(model, "ast"))


def test_an_adapter_that_is_not_there_is_refused(tmp_path):
    with pytest.raises((OSError, ValueError), match="nowhere"):
        make("ast").load_adapter(str(tmp_path / "nowhere"))


EXTRACTORS = {
    "ast": lambda: ASTFeatureExtractor(num_mel_bins=36, max_length=46),
    "wav2vec2": lambda: Wav2Vec2FeatureExtractor(),
}
WAVEFORM = np.random.RandomState(0).randn(8000).astype("float32")


def by_hand(model, extractor):
    """Scores by label, highest first, without a pipeline."""
    inputs = extractor(WAVEFORM, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits.softmax(-1)[0]
    order = scores.argsort(descending=True).tolist()
    return [(LABELS[index], pytest.approx(scores[index].item(), abs=1e-5)) for index in order]


@pytest.mark.parametrize("backbone", EXTRACTORS)
def test_a_pipeline_around_a_peft_model(backbone, tmp_path, caplog):
    expected = by_hand(trained(backbone, "ipet", tmp_path, num_labels=2), EXTRACTORS[backbone]())
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    classify = pipeline("audio-classification", model=model, feature_extractor=EXTRACTORS[backbone]())
    assert [(entry["label"], entry["score"]) for entry in classify(WAVEFORM)] == expected
    assert "not supported" not in caplog.text


def test_a_pipeline_from_an_adapters_folder(tmp_path, capfd):
    expected = by_hand(trained("ast", "ipet", tmp_path, num_labels=2), EXTRACTORS["ast"]())
    EXTRACTORS["ast"]().save_pretrained(tmp_path / "adapter")
    EXTRACTORS["ast"]().save_pretrained(tmp_path / "base")
    classify = pipeline("audio-classification", model=str(tmp_path / "adapter"))
    assert [(entry["label"], entry["score"]) for entry in classify(WAVEFORM)] == expected
    assert "not supported" not in capfd.readouterr().err
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert len(config["id2label"]) == 2 if "id2label" in config else True
