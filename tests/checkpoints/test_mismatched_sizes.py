"""`ignore_mismatched_sizes`: an adapter trained on other classes is where a new task starts."""

import pytest
import torch
from adapted import adapted, each_backbone, each_method, logits
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from saved import without_prefix
from tiny import BACKBONES, METHODS, make, randomize


CLASSES = 3  # of the new task; the adapters were trained on five


def trained(backbone, method, folder):
    model = randomize(adapted(backbone, METHODS[method]()))
    model.save_pretrained(folder)
    return get_peft_model_state_dict(model)


def by_peft(backbone, method, folder, **options):
    return PeftModel.from_pretrained(make(backbone, num_labels=CLASSES), folder, **options)


def by_load_adapter(backbone, method, folder, **options):
    model = PeftModel.from_pretrained(make(backbone, num_labels=CLASSES), folder, ignore_mismatched_sizes=True)
    model.load_adapter(folder, "second", **options)
    model.set_adapter("second")
    return model


def by_state_dict(backbone, method, folder, **options):
    model = make(backbone, num_labels=CLASSES)
    model.add_adapter(METHODS[method]())
    set_peft_model_state_dict(model, without_prefix(load_file(f"{folder}/adapter_model.safetensors")), **options)
    return model


def by_transformers(backbone, method, folder, **options):
    model = make(backbone, num_labels=CLASSES)
    model.load_adapter(str(folder), **options)
    return model


WAYS = (by_peft, by_load_adapter, by_state_dict, by_transformers)


@each_backbone
@each_method
@pytest.mark.parametrize("load", WAYS)
@pytest.mark.filterwarnings("ignore:Some weights of")
def test_an_adapter_starts_a_task_with_other_classes(backbone, method, load, tmp_path):
    if load is by_transformers and backbone == "wav2vec2":
        pytest.skip("wav2vec2 has a method of its own by this name")
    expected = trained(backbone, method, tmp_path)
    model = load(backbone, method, tmp_path, ignore_mismatched_sizes=True).eval()
    assert logits(model, backbone).shape[-1] == CLASSES
    assert len(model.config.id2label) == CLASSES
    name = "second" if load is by_load_adapter else "default"
    actual = without_prefix(get_peft_model_state_dict(model, adapter_name=name))
    for key, tensor in without_prefix(expected).items():
        assert key.startswith("classifier") or torch.equal(actual[key], tensor), key
    assert actual["classifier.weight" if backbone == "wav2vec2" else "classifier.dense.weight"].shape[0] == CLASSES
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(make(backbone, num_labels=CLASSES), tmp_path / "again").eval()
    assert torch.equal(logits(again, backbone), logits(model, backbone))


@pytest.mark.parametrize("load", WAYS)
@pytest.mark.filterwarnings("ignore:Some weights of")
def test_other_classes_are_refused_unless_asked_for(load, tmp_path):
    trained("ast", "ipet", tmp_path)
    with pytest.raises(ValueError, match="num_labels=3|classifier.*wrong shape|wrong shape: classifier"):
        load("ast", "ipet", tmp_path)


def test_the_same_classes_keep_the_names_of_the_adapter(tmp_path):
    trained("ast", "ipet", tmp_path)
    other = BACKBONES["ast"]()
    other.config.id2label = {index: f"other {index}" for index in range(5)}
    model = PeftModel.from_pretrained(other, tmp_path, ignore_mismatched_sizes=True)
    assert model.config.id2label == BACKBONES["ast"]().config.id2label


def test_tensors_that_are_missing_are_refused_all_the_same(tmp_path):
    tensors = trained("ast", "ipet", tmp_path)
    model = adapted("ast", METHODS["ipet"]())
    tensors = {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    with pytest.raises(ValueError, match=r"missing: .*layers\.1"):
        set_peft_model_state_dict(model, tensors, ignore_mismatched_sizes=True)
