"""What comes back from an adapter's folder and the base model: labels, sizes, heads."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, METHODS, each_method, make_ast, make_inputs, make_wav2vec2, randomize
from transformers import AutoModelForAudioClassification

from peft_audio import AutoPeftModelForAudioClassification, IPETConfig, resize_ast


LABELS = ["rain", "wind", "bell", "dog", "saw", "clock", "engine"]


@pytest.fixture
def base_folder(tmp_path):
    make_ast(max_length=166).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load_base(folder, labels=LABELS, **options):
    names = dict(enumerate(labels))
    return type(make_ast()).from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=names,
        label2id={label: index for index, label in names.items()},
        ignore_mismatched_sizes=True,
        **options,
    )


def train(model, config, folder):
    model = randomize(get_peft_model(model, config)).eval()
    model.save_pretrained(folder)
    return model


@each_method
def test_labels_length_and_strides_come_back(method, base_folder, tmp_path):
    # Two steps: positions that were cut and then interpolated are not those of a single step.
    base = resize_ast(resize_ast(load_base(base_folder), max_length=66), max_length=96, time_stride=16)
    model = train(base, METHODS[method](), tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    inputs = torch.randn(2, 96, 36)
    assert torch.equal(again(inputs).logits, model(inputs).logits)
    assert again.config.id2label == dict(enumerate(LABELS))
    assert again.config.label2id["saw"] == 4 and again.config.num_labels == len(LABELS)
    assert (again.config.max_length, again.config.time_stride) == (96, 16)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in ("deit", "vit")])
def test_every_audio_type_comes_back_with_its_labels(backbone, tmp_path):
    BACKBONES[backbone]().save_pretrained(tmp_path / "base")
    names = dict(enumerate(LABELS))
    base = AutoModelForAudioClassification.from_pretrained(
        tmp_path / "base", num_labels=len(LABELS), id2label=names, ignore_mismatched_sizes=True
    )
    model = train(base, METHODS["ipet"](), tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(**make_inputs(backbone)).logits, model(**make_inputs(backbone)).logits)
    assert again.config.id2label == names


def test_labels_named_after_get_peft_model_are_saved_too(base_folder, tmp_path):
    model = get_peft_model(type(make_ast()).from_pretrained(base_folder), IPETConfig())
    model.config.id2label = dict(enumerate("abcde"))
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert list(again.config.id2label.values()) == list("abcde")


def test_problem_type_comes_back(base_folder, tmp_path):
    base = load_base(base_folder, problem_type="multi_label_classification")
    train(base, IPETConfig(), tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    targets = torch.zeros(2, len(LABELS))
    output = again(torch.randn(2, 166, 36), labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, targets)
    torch.testing.assert_close(output.loss, expected)


def test_pefts_own_way_gives_label_names_to_a_base_without(base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    plain = type(make_ast()).from_pretrained(base_folder, num_labels=len(LABELS), ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert list(model.config.id2label.values()) == LABELS


MISFITS = [
    (lambda folder: load_base(folder, "abc"), r"num_labels=7, but .* num_labels=3"),
    (lambda folder: resize_ast(load_base(folder), max_length=66), "max_length=166, but .*max_length=66"),
    (lambda folder: resize_ast(load_base(folder), time_stride=16), "time_stride=10, but .*time_stride=16"),
]


def test_the_same_length_by_another_way_is_refused(base_folder, tmp_path):
    # Positions that were cut and then interpolated are not those of a single step.
    train(resize_ast(resize_ast(load_base(base_folder), max_length=66), max_length=96), IPETConfig(), tmp_path / "a")
    with pytest.raises(ValueError, match="ast_resizes"):
        PeftModel.from_pretrained(resize_ast(load_base(base_folder), max_length=96), tmp_path / "a")


@pytest.mark.parametrize("make_other, message", MISFITS)
def test_a_base_of_another_shape_is_refused_before_it_is_touched(make_other, message, base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    other = make_other(base_folder)
    keys = list(other.state_dict())
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    assert list(other.state_dict()) == keys


def test_adapter_name_trainable_and_dtype(base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    load = AutoPeftModelForAudioClassification.from_pretrained
    model = load(tmp_path / "adapter", adapter_name="mine", is_trainable=True)
    assert list(model.peft_config) == ["mine"] and model.get_nb_trainable_parameters()[0] > 0
    half = load(str(tmp_path / "adapter"), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.get_nb_trainable_parameters()[0] == 0
    placed = load(tmp_path / "adapter", device_map="cpu", attn_implementation="eager", low_cpu_mem_usage=True)
    base = placed.get_base_model()
    assert base.device == torch.device("cpu") and base.config._attn_implementation == "eager"
    inputs = torch.randn(1, 166, 36)
    torch.testing.assert_close(placed(inputs).logits, model.eval()(inputs).logits)
    (tmp_path / "outer").mkdir()
    (tmp_path / "adapter").rename(tmp_path / "outer" / "inner")
    assert load(tmp_path / "outer", subfolder="inner").config.num_labels == len(LABELS)


def test_no_head_saved_keeps_the_base_models(base_folder, tmp_path):
    base = type(make_ast()).from_pretrained(base_folder)
    model = train(base, IPETConfig(modules_to_save=[]), tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    inputs = torch.randn(1, 166, 36)
    assert torch.equal(again(inputs).logits, model(inputs).logits)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == []


def test_a_damaged_base_model_is_refused(base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    config = json.loads((base_folder / "config.json").read_text())
    (base_folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ValueError, match=r"does not fit its own configuration: .*mlp\.fc1"):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")


def test_loading_says_nothing_about_heads_that_the_adapter_replaces(base_folder, tmp_path, capfd):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    capfd.readouterr()
    AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert "MISMATCH" not in "".join(capfd.readouterr())


def test_tensors_missing_from_the_base_model_are_named(base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    weights = load_file(base_folder / "model.safetensors")
    # transformers may write the names of an older layout.
    missing = [key for key in weights if "layers.1.mlp.fc1" in key or "layer.1.intermediate.dense" in key]
    assert len(missing) == 2
    save_file({key: value for key, value in weights.items() if key not in missing}, base_folder / "model.safetensors")
    with pytest.warns(UserWarning, match=r"lacks .*layers\.1\.mlp\.fc1.*random"):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")


def test_an_adapter_without_a_base_model_is_refused(tmp_path):
    train(make_ast(), IPETConfig(), tmp_path)
    with pytest.raises(ValueError, match="names no base model"):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path)


def test_adapters_of_peft_itself_load_too(tmp_path):
    from peft import LoraConfig

    make_wav2vec2().save_pretrained(tmp_path / "base")
    base = type(make_wav2vec2()).from_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["projector", "classifier"])
    model = train(base, config, tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**make_inputs("wav2vec2")).logits, model(**make_inputs("wav2vec2")).logits)


def test_it_cannot_be_constructed():
    with pytest.raises(OSError, match="from_pretrained"):
        AutoPeftModelForAudioClassification()


@pytest.mark.parametrize(
    "add",
    [
        lambda model, folder: model.load_adapter(folder, "second"),
        lambda model, folder: model.get_base_model().load_adapter(folder, "second"),
    ],
    ids=["PEFT", "transformers"],
)
def test_every_adapter_keeps_its_own_label_names(add, base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "first")
    others = [label.upper() for label in LABELS]
    train(load_base(base_folder, others), IPETConfig(), tmp_path / "second")
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "first", adapter_name="first")
    add(model, tmp_path / "second")
    model.save_pretrained(tmp_path / "both")
    for name, labels in (("first", LABELS), ("second", others)):
        assert list(model.peft_config[name].base_settings["id2label"].values()) == labels
        again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "both", subfolder=name)
        assert list(again.config.id2label.values()) == labels
    # transformers' method makes the adapter that it loads the active one, PEFT's does not.
    active = next(layer.active_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    assert list(model.config.id2label.values()) == {"first": LABELS, "second": others}[active[0]]


def test_labels_that_are_renamed_later_are_saved(base_folder, tmp_path):
    train(load_base(base_folder), IPETConfig(), tmp_path / "adapter")
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter", is_trainable=True)
    renamed = [f"{label}!" for label in LABELS]
    model.config.id2label = dict(enumerate(renamed))
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")
    assert list(again.config.id2label.values()) == renamed
