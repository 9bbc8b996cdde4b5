"""What users pass to `AutoPeftModelForAudioClassification.from_pretrained` besides the folder."""

import json

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import METHODS, NUM_LABELS, make, make_inputs, randomize

from peft_audio import AutoPeftModelForAudioClassification


@pytest.fixture
def folder(tmp_path):
    make("wav2vec2").save_pretrained(tmp_path / "base")
    base = type(make("wav2vec2")).from_pretrained(tmp_path / "base")
    model = randomize(get_peft_model(base, METHODS["conformer"]())).eval()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "options",
    [
        {"num_labels": NUM_LABELS},
        {"hidden_dropout": 0.3},
        {"ignore_mismatched_sizes": True},
        {"autocast_adapter_dtype": False},
        {"torch_device": "cpu"},
        {"dtype": torch.float32},
        {"attn_implementation": "eager"},
        {"output_attentions": True, "attn_implementation": "eager"},
    ],
    ids=str,
)
def test_arguments_reach_who_they_are_for(folder, options):
    inputs = make_inputs("wav2vec2")
    expected = AutoPeftModelForAudioClassification.from_pretrained(folder)(**inputs).logits
    model = AutoPeftModelForAudioClassification.from_pretrained(folder, **options)
    torch.testing.assert_close(model(**inputs).logits, expected)
    config = model.get_base_model().config
    assert config.hidden_dropout == options.get("hidden_dropout", 0.0)
    assert (model(**inputs).attentions is not None) == options.get("output_attentions", False)


def test_label_names_may_be_others(folder):
    names = {index: f"other {index}" for index in range(NUM_LABELS)}
    model = AutoPeftModelForAudioClassification.from_pretrained(folder, id2label=names)
    assert model.config.id2label == names and model.config.label2id["other 2"] == 2
    model.save_pretrained(folder)
    assert AutoPeftModelForAudioClassification.from_pretrained(folder).config.id2label == names


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_labels": 3}, "`num_labels` must be for 5 labels, .* got 3"),
        ({"id2label": {0: "a"}}, "`id2label` must be for 5 labels"),
        ({"output_loading_info": True}, "`output_loading_info` must be left out"),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        AutoPeftModelForAudioClassification.from_pretrained(folder, **options)


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_tensors_that_no_adapter_takes_are_an_error_for_every_type(folder, tmp_path):
    base = type(make("wav2vec2")).from_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["projector", "classifier"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "lora")
    AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="tensors that a LoraConfig has no place for"):
        AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "lora")


def test_a_negative_variance_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("running_var"))
    tensors[name][0] = -1.0
    save_file(tensors, path)
    with pytest.raises(ValueError, match="negative: .*running_var is a variance"):
        AutoPeftModelForAudioClassification.from_pretrained(folder)


def test_sizes_are_compared_with_the_file_before_they_get_memory(folder):
    edit(folder, bottleneck_dim=10**5)
    with pytest.raises(ValueError, match="wrong shape: "):
        AutoPeftModelForAudioClassification.from_pretrained(folder)


@pytest.mark.parametrize("load", ["auto", "peft", "new"])
@pytest.mark.parametrize("field", ["bottleneck_dim", "conv_kernel"])
def test_an_adapter_far_larger_than_its_model_is_refused_before_it_gets_memory(folder, load, field):
    edit(folder, **{field: 10**8 - 1})  # up to 50 GB
    with pytest.raises(ValueError, match=f"`{field}` must give an adapter of at most ten times the .*got 99999999"):
        if load == "auto":
            AutoPeftModelForAudioClassification.from_pretrained(folder)
        elif load == "peft":
            PeftModel.from_pretrained(make("wav2vec2"), folder)
        else:
            get_peft_model(make("wav2vec2"), PeftConfig.from_pretrained(folder))


DEEP = json.loads("[" * 50 + "]" * 50)
HOSTILE = {
    "auto_mapping": ["a"],
    "base_model_name_or_path": {"a": 1},
    "revision": 3,
    "peft_type": ["IPET"],
    "base_settings": {"id2label": {"0": ["x"]}},
    "scaling": 10**400,
    "layers_to_transform": {"a": 1},
    "modules_to_save": DEEP,
    "sites": 3,
    "bottleneck_dim": 10**30,
}


@pytest.mark.parametrize("field", HOSTILE)
def test_configurations_of_strangers_end_in_one_kind_of_error(folder, field):
    edit(folder, **{field: HOSTILE[field]})
    with pytest.raises(ValueError, match=r"adapter_config.json|must be|" + field):
        AutoPeftModelForAudioClassification.from_pretrained(folder)
