"""The card of an adapter: what it says, what it never says, and what of a person's own text stays."""

import re

import librosa
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from tiny import METHODS, make, randomize
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from peft_audio import head_modules, load_classifier, resize_ast, write_card


EXTRACTORS = {
    "ast": lambda: ASTFeatureExtractor(num_mel_bins=36, max_length=46),
    "wav2vec2": lambda: Wav2Vec2FeatureExtractor(),
}
LABELS = dict(enumerate(["dog bark", "rain", "siren", "clock", "sea"]))


def trained(backbone, method, folder, **base_options):
    base = make(backbone)
    base.save_pretrained(folder / "base")
    EXTRACTORS[backbone]().save_pretrained(folder / "base")
    base = type(base).from_pretrained(folder / "base", id2label=LABELS, **base_options)
    return randomize(get_peft_model(base, METHODS[method]())).eval()


def card_of(folder):
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("method", METHODS)
def test_it_says_what_the_adapter_is(method, tmp_path):
    model = trained("ast", method, tmp_path)
    model.save_pretrained(tmp_path / "bird songs")
    card, config = card_of(tmp_path / "bird songs"), model.peft_config["default"]
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "audio-classification"
    assert {"audio", "peft-audio", f"peft-audio:{config.method_name}"} <= set(card.data.tags)
    assert "# bird songs" in card.text and type(config).__name__ in card.text
    assert "16000 Hz, cut or padded to 46 frames" in card.text and "dog bark, rain, siren, clock, sea" in card.text
    trained_parameters, _ = model.get_nb_trainable_parameters()
    assert f"{trained_parameters:,}" in card.text
    assert f"{(tmp_path / 'bird songs' / 'adapter_model.safetensors').stat().st_size / 1e6:.3f} MB" in card.text
    assert "@" in card.text.partition("```bibtex")[2] and "More Information Needed" not in card.text
    for name, value in vars(METHODS[method]()).items():
        if name in ("num_virtual_tokens", "bottleneck_dim", "scaling", "prompt_size", "placement"):
            assert f"- `{name}`: {value}\n" in card.text


@pytest.mark.parametrize("backbone", EXTRACTORS)
@pytest.mark.parametrize("with_extractor", [False, True])
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_its_code_runs_and_gives_the_models_answer(backbone, with_extractor, problem, tmp_path, monkeypatch, capsys):
    model = trained(backbone, "ipet", tmp_path, problem_type=problem)
    if with_extractor:
        EXTRACTORS[backbone]().save_pretrained(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "adapter")
    code = re.search(r"```python\n(.+?)```", card_of(tmp_path / "adapter").text, re.DOTALL)[1]
    waveform = np.random.RandomState(0).randn(8000).astype("float32")
    monkeypatch.setattr(librosa, "load", lambda name, sr: (waveform, sr))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    with torch.no_grad():
        inputs = EXTRACTORS[backbone]()(waveform, sampling_rate=16000, return_tensors="pt")
        logits = model(**inputs).logits[0]
    printed = capsys.readouterr().out
    if problem is None:
        assert printed.strip().splitlines()[-1] == LABELS[logits.argmax().item()]
    else:
        assert [f"{score:.2f} {label}" in printed for score, label in zip(logits.sigmoid(), LABELS.values())] == [
            True
        ] * 5


def test_a_local_path_never_leaks(tmp_path):
    trained("ast", "ipet", tmp_path).save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert str(tmp_path) not in text and "base_model" not in card_of(tmp_path / "adapter").data.to_dict()
    assert "`base`, a local model" in text


def test_a_base_model_of_the_hub_is_named(tmp_path):
    base = make("ast")
    base.name_or_path = base.config._name_or_path = "someone/some-ast"
    get_peft_model(base, METHODS["ipet"]()).save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert card.data.base_model == "someone/some-ast" and "base_model:adapter:someone/some-ast" in card.data.tags


def test_what_a_person_wrote_stays_and_the_rest_is_brought_up_to_date(tmp_path):
    trained("ast", "ipet", tmp_path).save_pretrained(tmp_path / "adapter")
    write_card(tmp_path / "adapter", training="On 40 clips.", results={"accuracy": (0.875, 0.0523), "loss": 0.5})
    card = card_of(tmp_path / "adapter")
    card.data.tags.append("birds")
    card.data.license, card.data.datasets = "mit", ["someone/songs"]
    card.text = "Recorded in my garden.\n\n" + card.text + "\nWrite to me.\n"
    card.save(tmp_path / "adapter" / "README.md")

    trained("ast", "time_freq_conv", tmp_path).save_pretrained(tmp_path / "adapter")
    card = card_of(tmp_path / "adapter")
    assert {"birds", "peft-audio:time_freq_conv_adapter"} <= set(card.data.tags)
    assert "peft-audio:ipet" not in card.data.tags
    assert (card.data.license, card.data.datasets) == ("mit", ["someone/songs"])
    assert card.text.strip().startswith("Recorded in my garden.") and card.text.strip().endswith("Write to me.")
    assert "TimeFreqConvAdapterConfig" in card.text and "IPETConfig" not in card.text
    assert (
        "On 40 clips." in card.text
        and "| accuracy | 0.8750 +- 0.0523 |" in card.text
        and "| loss | 0.5000 |" in card.text
    )
    assert card.text.count("## Use") == card.text.count("## Training") == 1


def test_results_are_replaced_by_newer_ones(tmp_path):
    trained("ast", "ipet", tmp_path).save_pretrained(tmp_path / "adapter")
    for accuracy in (0.25, 0.75):
        write_card(tmp_path / "adapter", results={"accuracy": accuracy}, location="me/garden")
    text = card_of(tmp_path / "adapter").text
    assert "0.7500" in text and "0.2500" not in text and "location = 'me/garden'" in text


@pytest.mark.parametrize("content", ["", "no metadata at all", "---\ntags: [broken\n---\nMine."])
def test_a_damaged_card_does_not_stop_saving(content, tmp_path):
    model = trained("ast", "ipet", tmp_path)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text(content)
    model.save_pretrained(tmp_path / "adapter")
    assert "## Use" in (tmp_path / "adapter" / "README.md").read_text()
    assert PeftConfig.from_pretrained(tmp_path / "adapter").method_name == "ipet"


def test_adapters_without_labels_say_how_to_load_them(tmp_path, monkeypatch):
    make("wav2vec2", bare=True).save_pretrained(tmp_path / "base")
    base = type(make("wav2vec2", bare=True)).from_pretrained(tmp_path / "base")
    get_peft_model(base, METHODS["ipet"]()).save_pretrained(tmp_path / "adapter")
    text = card_of(tmp_path / "adapter").text
    assert "pipeline_tag" not in card_of(tmp_path / "adapter").data.to_dict()
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(re.search(r"```python\n(.+?)```", text, re.DOTALL)[1], variables)
    assert isinstance(variables["model"], PeftModel)


def test_a_folder_without_an_adapter_gets_no_card(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_pretrained comes first"):
        write_card(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Whole models, and adapters of PEFT's own types


STOCK = {
    "lora": lambda model: get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=head_modules(model))
    ),
    "full": lambda model: model,
}


@pytest.mark.parametrize("backbone", EXTRACTORS)
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
@pytest.mark.parametrize("kind", STOCK)
def test_other_models_get_a_card_whose_code_gives_their_answer(backbone, problem, kind, tmp_path, monkeypatch, capsys):
    make(backbone).save_pretrained(tmp_path / "base")
    base = load_classifier(str(tmp_path / "base"), list(LABELS.values()), multi_label=problem is not None)
    if backbone == "ast":
        base = resize_ast(base, max_length=30)
    model = STOCK[kind](base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.eval().save_pretrained(tmp_path / "out")
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=30) if backbone == "ast" else EXTRACTORS[backbone]()
    extractor.save_pretrained(tmp_path / "out")
    write_card(tmp_path / "out", model=model, location="out", results={"accuracy": 0.5}, metadata={"tags": [kind]})

    card = card_of(tmp_path / "out")
    assert card.data.library_name == ("transformers" if kind == "full" else "peft") and kind in card.data.tags
    assert "- `r`: 2\n" in card.text or kind == "full"
    assert str(tmp_path) not in card.text.replace(repr(str(tmp_path / "base")), "")
    assert "| accuracy | 0.5000 |" in card.text
    waveform = np.random.RandomState(0).randn(8000).astype("float32")
    monkeypatch.setattr(librosa, "load", lambda name, sr: (waveform, sr))
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(compile(re.search(r"```python\n(.+?)```", card.text, re.DOTALL)[1], "README.md", "exec"), variables)
    with torch.no_grad():
        logits = model(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits
    torch.testing.assert_close(variables["logits"], logits)
    assert variables["model"].config.id2label == LABELS
    assert len(capsys.readouterr().out.strip().splitlines()) == (1 if problem is None else 5)


def test_other_models_without_weights_or_model_get_no_card(tmp_path):
    model = make("ast")
    EXTRACTORS["ast"]().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter of peft_audio"):
        write_card(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights in"):
        write_card(tmp_path, model=model)
    assert not (tmp_path / "README.md").exists()
