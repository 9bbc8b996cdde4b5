"""Several adapters on one clip at once, against each of them by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from adapters import save_adapter
from compare_adapters import load_adapters
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sounds import save_ast, save_wav2vec2, tone
from transformers import ASTFeatureExtractor, AutoFeatureExtractor

from peft_audio import AutoPeftModelForAudioClassification, load_classifier


RATE = 16000
CLIP = tone("low")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Bases `ast` and `wav2vec2`; adapters of every kind of the former, and two of the latter."""
    folder = tmp_path_factory.mktemp("adapters")
    bases = {"ast": save_ast(folder / "ast"), "wav2vec2": save_wav2vec2(folder / "wav2vec2")}
    for name, (base, labels, options) in ADAPTERS.items():
        save_adapter(folder / name, bases[base], labels, seed=len(name), **options)
    ASTFeatureExtractor(num_mel_bins=36, max_length=46, mean=-2.0, std=3.0).save_pretrained(folder / "preprocessing")
    return folder


ADAPTERS = {
    "pets": ("ast", ["cat", "dog", "rat"], {}),
    "engines": ("ast", ["car", "ship", "plane"], {}),
    "tagging": ("ast", ["bell", "bird", "rain"], {"multi_label": True}),
    "instruments": ("ast", ["drum", "harp", "horn", "lute", "lyre"], {}),
    "convolutions": ("ast", ["cat", "dog", "rat"], {"method": "time_freq_conv"}),
    "longer": ("ast", ["cat", "dog", "rat"], {"max_length": 66}),
    "preprocessing": ("ast", ["cat", "dog", "rat"], {}),
    "speech": ("wav2vec2", ["no", "yes"], {}),
    "speakers": ("wav2vec2", ["Ann", "Bob"], {}),
}
OF_AST = [name for name, (base, *_) in ADAPTERS.items() if base == "ast"]


def load(workspace, names):
    return load_adapters([workspace / name for name in names])


def alone(workspace, name, waveform):
    """The probability of each label, by this package's loading and the equations."""
    config = json.loads((workspace / name / "adapter_config.json").read_text())
    settings = config["base_settings"]
    has_extractor = (workspace / name / "preprocessor_config.json").exists()
    source = workspace / name if has_extractor else config["base_model_name_or_path"]
    length = {"max_length": settings["max_length"]} if "max_length" in settings else {}
    extractor = AutoFeatureExtractor.from_pretrained(source, **length)
    inputs = extractor(waveform, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = AutoPeftModelForAudioClassification.from_pretrained(workspace / name)(**inputs).logits[0].numpy()
    if settings["problem_type"] == "multi_label_classification":
        probabilities = 1 / (1 + np.exp(-logits))
    else:
        probabilities = np.exp(logits) / np.exp(logits).sum()
    return {settings["id2label"][str(index)]: value for index, value in enumerate(probabilities.tolist())}


@pytest.mark.parametrize("names", [OF_AST, ["speakers", "speech"]], ids=["ast", "wav2vec2"])
def test_every_adapter_predicts_what_it_does_by_itself(workspace, names):
    predictions = load(workspace, names).predict(CLIP, RATE, names, top_k=3)
    assert list(predictions) == names
    for name, found in predictions.items():
        expected = alone(workspace, name, CLIP)
        best = sorted(expected, key=expected.get, reverse=True)[:3]
        assert [label for label, _ in found] == best
        assert dict(found) == pytest.approx({label: expected[label] for label in best}, abs=1e-5)
    values = [tuple(round(value, 4) for _, value in found) for found in predictions.values()]
    assert len(set(values)) == len(names)  # the adapters do differ


def test_an_adapter_predicts_the_same_whatever_stands_beside_it(workspace):
    comparison = load(workspace, OF_AST)
    together = comparison.predict(CLIP, RATE, OF_AST)
    for name in OF_AST:
        ((label, value), *_) = comparison.predict(CLIP, RATE, [name])[name]
        assert label == together[name][0][0] and value == pytest.approx(together[name][0][1], abs=1e-5)


def test_a_group_answers_in_one_call_of_its_model(workspace):
    comparison = load(workspace, OF_AST)
    calls = []
    for group in comparison.groups:
        group.model.register_forward_pre_hook(
            lambda model, args, kwargs: calls.append((len(kwargs["input_values"]), len(kwargs["adapter_names"]))),
            with_kwargs=True,
        )
    comparison.predict(CLIP, RATE, ["pets", "engines", "tagging"])
    assert calls == [(3, 3)]
    calls.clear()
    comparison.predict(CLIP, RATE, OF_AST)
    # The rest differ in the number of labels, the type, the input's length and its normalization.
    assert sorted(calls) == [(1, 1)] * 4 + [(3, 3)]


def test_the_backbone_is_in_memory_once(workspace):
    comparison = load(workspace, OF_AST)
    parameters = [parameter for group in comparison.groups for parameter in group.model.parameters()]
    held = sum({parameter.data_ptr(): parameter.numel() for parameter in parameters}.values())
    backbone = sum(tensor.numel() for tensor in load_file(workspace / "ast" / "model.safetensors").values())
    adapters = sum(
        tensor.numel()
        for name in OF_AST
        for tensor in load_file(workspace / name / "adapter_model.safetensors").values()
    )
    own = 5 * 64 * 32 + 5 * 32 * 6  # positions of the longer input and unused heads, with room
    assert backbone < held < backbone + adapters + own < 2 * backbone


def test_any_sampling_rate_is_taken(workspace):
    comparison = load(workspace, ["pets"])
    expected = dict(comparison.predict(CLIP, RATE, ["pets"])["pets"])
    faster = scipy.signal.resample_poly(CLIP, 3, 1)
    assert dict(comparison.predict(faster, 3 * RATE, ["pets"])["pets"]) == pytest.approx(expected, abs=0.02)


def test_at_most_all_labels_are_returned_and_they_add_up(workspace):
    comparison = load(workspace, ["instruments"])
    found = comparison.predict(CLIP, RATE, ["instruments"], top_k=100)["instruments"]
    assert sorted(label for label, _ in found) == ["drum", "harp", "horn", "lute", "lyre"]
    assert sum(value for _, value in found) == pytest.approx(1, abs=1e-5)
    assert len(comparison.predict(CLIP, RATE, ["instruments"], top_k=2)["instruments"]) == 2


def test_how_much_is_heard_of_a_clip(workspace):
    comparison = load(workspace, ["pets", "longer"])
    assert [comparison.max_seconds(name) for name in ("pets", "longer")] == [pytest.approx(0.46), pytest.approx(0.66)]
    assert load(workspace, ["speech"]).max_seconds("speech") == float("inf")


def test_adapters_are_called_by_their_folder_and_by_their_path_where_that_is_not_enough(workspace):
    other = save_adapter(workspace / "other" / "pets", workspace / "ast", ["x", "y"])
    pets, engines = str(workspace / "pets"), str(workspace / "engines")
    assert load_adapters([pets, engines, pets]).names == ["pets", "engines"]
    assert load_adapters([pets, engines, other]).names == [pets, "engines", other]


def test_two_base_models_are_refused_by_name(workspace):
    with pytest.raises(ValueError, match="of one base model") as refusal:
        load(workspace, ["pets", "speech"])
    for name in ("pets", "speech", "ast", "wav2vec2"):
        assert str(workspace / name) in str(refusal.value)


def test_two_revisions_of_a_base_model_are_refused(workspace, tmp_path):
    save_adapter(tmp_path / "old", workspace / "ast", ["x", "y", "z"])
    file = tmp_path / "old" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"revision": "v1"}))
    with pytest.raises(ValueError, match="ast at revision main and .*old' on .*ast at revision v1"):
        load_adapters([workspace / "pets", tmp_path / "old"])


def test_adapters_that_do_not_say_their_labels_are_refused(workspace, tmp_path):
    base = load_classifier(str(workspace / "ast"), ["x", "y"])
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(LoraConfig\) does not say which labels"):
        load_adapters([tmp_path])


@pytest.mark.parametrize("content", [None, "{}", "{", '{"peft_type": "UNHEARD_OF"}'])
def test_folders_without_an_adapter_are_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=Path(tmp_path).name):
        load_adapters([tmp_path])


def test_no_adapter_at_all_is_refused():
    with pytest.raises(ValueError, match="Name at least one"):
        load_adapters([])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((CLIP, RATE, ["cats"]), "`names` must be one or more of 'pets', got 'cats'"),
        ((CLIP, RATE, []), "`names` must be one or more of 'pets', got none"),
        ((CLIP, RATE, ["pets"], 0), "`top_k` must be 1 or more, got 0"),
        ((np.stack([CLIP, CLIP]), RATE, ["pets"]), r"must be mono, .* got shape \(2, 8000\)"),
        ((np.full(8000, np.nan), RATE, ["pets"]), "finite, got numbers that are not finite"),
        ((CLIP[:1000], RATE, ["pets"]), r"must last 0\.175 s or more, got 0\.062 s"),
    ],
)
def test_wrong_arguments_are_refused(workspace, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(workspace, ["pets"]).predict(*arguments)
