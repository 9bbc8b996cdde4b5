"""The labels of a model are those of its active adapter, and what is no label never costs the weights."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from tiny import METHODS, NUM_LABELS, each_typical_backbone, make, make_inputs, randomize

from peft_audio import AutoPeftModelForAudioClassification, IPETConfig
from peft_audio.config import normal_labels, normal_settings


def named(letter):
    return {index: f"{letter}{index}" for index in range(NUM_LABELS)}


def name_labels(model, letter):
    config = model.config if not isinstance(model, PeftModel) else model.get_base_model().config
    config.id2label = named(letter)
    config.label2id = {label: index for index, label in config.id2label.items()}


def labels_of(model):
    config = model.get_base_model().config
    assert config.label2id == {label: index for index, label in config.id2label.items()}
    return config.id2label


@pytest.fixture
def two(tmp_path, backbone="ast"):
    """A model with two adapters that were trained on other labels each."""
    for letter in "ab":
        base = make(backbone)
        if letter == "a":
            base.save_pretrained(tmp_path / "base")
        base = type(base).from_pretrained(tmp_path / "base")
        name_labels(base, letter)
        randomize(get_peft_model(base, METHODS["ipet"]())).save_pretrained(tmp_path / letter)
    base = type(base).from_pretrained(tmp_path / "base")
    name_labels(base, "own")
    model = PeftModel.from_pretrained(base, tmp_path / "a", "a")
    model.load_adapter(tmp_path / "b", "b")
    return model


def test_switching_switches_labels(two):
    assert labels_of(two) == named("a")
    two.set_adapter("b")
    assert labels_of(two) == named("b")
    with two.disable_adapter():
        assert labels_of(two) == named("own")
    assert labels_of(two) == named("b")
    copied = copy.deepcopy(two)
    copied.set_adapter("a")
    assert (labels_of(copied), labels_of(two)) == (named("a"), named("b"))
    two.delete_adapter("b")
    assert labels_of(two) == named("a")


def test_changes_by_hand_belong_to_the_adapter_that_is_active(two, tmp_path):
    two.set_adapter("b")
    name_labels(two, "new")
    two.set_adapter("a")
    assert labels_of(two) == named("a")
    two.save_pretrained(tmp_path / "saved")
    for name, letter in (("a", "a"), ("b", "new")):
        config = json.loads((tmp_path / "saved" / name / "adapter_config.json").read_text())
        assert config["base_settings"]["id2label"] == {str(index): label for index, label in named(letter).items()}
    two.set_adapter("b")
    assert labels_of(two) == named("new")


def test_plain_models_of_transformers_switch_too(two, tmp_path):
    base = type(two.get_base_model()).from_pretrained(tmp_path / "base")
    for name in ("a", "b"):
        base.load_adapter(str(tmp_path / name), adapter_name=name)
        base.set_adapter(name)
        assert base.config.id2label == named(name)
    base.set_adapter("a")
    assert base.config.id2label == named("a")
    base.disable_adapters()
    assert base.config.id2label[0] == "LABEL_0"
    base.enable_adapters()
    assert base.config.id2label == named("a")


def test_an_adapter_without_a_head_leaves_the_models_labels():
    base = make("wav2vec2")
    name_labels(base, "own")
    model = get_peft_model(base, METHODS["ipet"](modules_to_save=[]))
    model.add_adapter("second", METHODS["ipet"](modules_to_save=[], base_settings={"id2label": named("x")}))
    model.set_adapter("second")
    assert labels_of(model) == named("own")


def test_weights_loaded_over_an_adapter_bring_their_labels(two, tmp_path):
    two.load_adapter(tmp_path / "b", "a")
    assert labels_of(two) == named("b")


def test_weights_of_other_settings_are_refused(two, tmp_path):
    other = get_peft_model(make("ast"), METHODS["ipet"](scaling=0.5))
    other.save_pretrained(tmp_path / "other")
    before = {name: value.clone() for name, value in two.state_dict().items()}
    with pytest.raises(ValueError, match=r"adapter 'a' with other settings .* scaling=0.5 \(here 0.1\)"):
        two.load_adapter(tmp_path / "other", "a")
    get_peft_model(make("ast"), METHODS["parallel_mlp"]()).save_pretrained(tmp_path / "third")
    with pytest.raises(ValueError, match="a ParallelMLPAdapterConfig with"):
        two.load_adapter(tmp_path / "third", "a")
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())


# ---- what is a label -------------------------------------------------------------------------------------------------


ODD = {
    "numbers": ({0: 0, 1: 1, 2: 2, 3: 3, 4: 4}, ["0", "1", "2", "3", "4"]),
    "truth and nothing": ({0: True, 1: False, 2: None, 3: 1.5, 4: "e"}, ["True", "False", "None", "1.5", "e"]),
    "numpy": ({np.int64(i): np.float32(i) for i in range(5)}, ["0.0", "1.0", "2.0", "3.0", "4.0"]),
    "a list": (["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e"]),
    "another order": ({4: "e", 0: "a", "1": "b", 3: "d", 2: "c"}, ["a", "b", "c", "d", "e"]),
}
NO_LABELS = {
    "gaps": {0: "a", 1: "b", 2: "c", 3: "d", 99: "e"},
    "twice": {"0": "a", "00": "b", "1": "c", "2": "d", "3": "e"},
    "both kinds of keys": {"0": "a", 0: "b", "1": "c", "2": "d", "3": "e"},
    "digits of other scripts": {"\u0660": "a", "\u0661": "b", "\u0662": "c", "\u0663": "d", "\u0664": "e"},
    "lists": {index: ["a"] for index in range(5)},
    "text": "abcde",
}


@pytest.mark.parametrize("case", ODD)
@each_typical_backbone
def test_labels_that_are_not_text_are_saved_as_text(backbone, case, tmp_path):
    base = make(backbone)
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    base.config.id2label, expected = ODD[case]
    model = randomize(get_peft_model(base, METHODS["ipet"]())).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert list(again.config.id2label.items()) == list(enumerate(expected))
    inputs = make_inputs(backbone)
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("case", NO_LABELS)
def test_what_is_no_label_is_refused_before_and_left_out_after_training(case, tmp_path):
    base = make("wav2vec2")
    base.config.id2label = NO_LABELS[case]
    keys = set(base.state_dict())
    with pytest.raises(ValueError, match="`Wav2Vec2Config` must be such that id2label is"):
        get_peft_model(base, METHODS["ipet"]())
    assert set(base.state_dict()) == keys
    base.config.id2label = named("a")
    model = get_peft_model(base, METHODS["ipet"]())
    base.config.id2label = NO_LABELS[case]
    with pytest.warns(UserWarning, match="left out"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    with pytest.raises(ValueError, match="`base_settings` must be such that id2label is"):
        IPETConfig(base_settings={"id2label": NO_LABELS[case]})


def test_many_labels_keep_their_order(tmp_path):
    base = make("wav2vec2", num_labels=23)
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    base.config.id2label = {index: f"label {index}" for index in range(23)}
    get_peft_model(base, METHODS["ipet"]()).save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert list(again.config.id2label) == list(range(23)) and list(again.config.label2id.values()) == list(range(23))


label = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(), st.lists(st.integers(), max_size=2))
key = st.one_of(st.integers(-2, 12), st.text(max_size=3), st.booleans(), st.floats(), st.none())


@given(st.dictionaries(key, label, max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_mapping_becomes_labels_by_index_or_is_refused(id2label):
    try:
        labels = normal_labels(id2label, "model")
    except ValueError as error:
        assert "`model` must be such that id2label is" in str(error)
        return
    assert list(labels) == [str(index) for index in range(len(id2label))]
    assert all(isinstance(label, str) for label in labels.values())
    assert normal_labels(json.loads(json.dumps(labels, sort_keys=True)), "model") == labels


WRONG_SETTINGS = {
    "problem_type": "guess",
    "ast_resizes": [{"max_length": 10, "mel": 3}],
    "max_length": 10**9,
    "time_stride": 0,
    "image_size": [24, 24, 24],
    "statistics_pooling": "yes",
    "model_type": ["ast"],
    "use_weighted_layer_sum": 1,
}
json_value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_wrong_settings_are_named(name):
    with pytest.raises(ValueError, match=f"`base_settings` must be such that {name} is "):
        IPETConfig(base_settings={name: WRONG_SETTINGS[name]})


@given(st.dictionaries(st.sampled_from([*WRONG_SETTINGS, "id2label", "other"]), json_value))
@settings(max_examples=300, deadline=None)
def test_any_settings_are_kept_or_refused(values):
    try:
        kept = normal_settings(values)
    except ValueError as error:
        assert "`base_settings` must be such that " in str(error)
        return
    assert {name: kept[name] for name in kept if name != "id2label"} == {
        name: value for name, value in values.items() if name != "id2label"
    }
