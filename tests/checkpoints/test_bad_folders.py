"""Damaged files: the error says what to do, and files and models stay as they were."""

import json
import pickle

import pytest
import torch
from damage import (
    WAYS,
    Damage,
    dropping,
    each_damage,
    each_way,
    editing,
    flipping,
    making_a_folder_of,
    pickled,
    removing,
    tensors,
    with_one,
    writing,
)
from peft import PeftModel
from refusals import CONFIG, INFINITY, NAN, WEIGHTS, Intruder, Refusal, bytes_of, edit, left_alone, logits, refused
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import make


def unreadable_config(what, damage, error, message, plain=None):
    ours = Refusal(ValueError, f"configuration .*{CONFIG}.*cannot be read")
    return Damage(what, damage, ours, Refusal(error, message), plain, beside=ours)


def refused_config(what, damage, error, message):
    return Damage(what, damage, Refusal(error, message))


NO_MAPPING = Refusal(TypeError, "'list' object is not a mapping")
NO_TYPE = Refusal(TypeError, "missing required keys.*peft_type")
NO_CONFIG = Refusal(ValueError, "(adapter model file not found in|Can't find 'adapter_config.json' at) .*adapter")
DAMAGED_CONFIGS = [
    unreadable_config("empty", writing(CONFIG, b""), json.JSONDecodeError, "Expecting value"),
    unreadable_config("no JSON", writing(CONFIG, b"peft_type = IPET"), json.JSONDecodeError, "Expecting value"),
    unreadable_config("cut", writing(CONFIG, b'{"peft_type": "IPET", "bott'), json.JSONDecodeError, "Unterminated"),
    unreadable_config("binary", writing(CONFIG, b"\xff\xfe\x00\x80"), UnicodeDecodeError, "invalid start byte"),
    unreadable_config("a list", writing(CONFIG, b"[1]"), TypeError, "list indices", NO_MAPPING),
    unreadable_config("null", writing(CONFIG, b"null"), TypeError, "'NoneType' is not iterable"),
    unreadable_config("no type", dropping("peft_type"), KeyError, "peft_type", NO_TYPE),
    unreadable_config("unknown type", editing(peft_type="MAGIC"), KeyError, "MAGIC"),
    Damage("missing", removing(CONFIG), Refusal(ValueError, f"'{CONFIG}' at '.*adapter"), plain=NO_CONFIG),
    Damage("a folder", making_a_folder_of(CONFIG), Refusal(ValueError, f"'{CONFIG}' at '.*adapter"), plain=NO_CONFIG),
    refused_config("range", editing(bottleneck_dim=-1), ValueError, "`bottleneck_dim` must be a positive .*got -1"),
    refused_config("type", editing(bottleneck_dim="8"), ValueError, "`bottleneck_dim` must be a positive .*got '8'"),
    refused_config("choice", editing(prompt_init="zeros"), ValueError, "`prompt_init` must be one of .*got 'zeros'"),
    refused_config("settings", editing(base_settings=[1]), ValueError, r"`base_settings` must be .*dict.*got \[1\]"),
    refused_config("layers", editing(layers_to_transform=[9]), ValueError, r"between -3 and 2 .*3 layers, got \[9\]"),
    refused_config(
        "module", editing(modules_to_save=["ears"]), ValueError, "none called 'ears'. Its head: 'classifier"
    ),
    refused_config(
        "two fields", editing(spatial_bottleneck_dim=4), ValueError, "without `spatial_adapter=True`, got 4"
    ),
    Damage(
        "labels",
        editing(base_settings={"id2label": {"first": "rain"}}),
        Refusal(ValueError, "`base_settings` must "),
        Refusal(ValueError, "`base_settings` must |trained with .*max_length=None.*max_length=46"),
    ),
]


@each_damage(DAMAGED_CONFIGS)
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_a_damaged_configuration_is_refused_before_anything_changes(damage, way, refusal, places):
    damage(places / "adapter")
    model, load = WAYS[way](places / "adapter")
    with left_alone(model=model, folder=places), refused(refusal):
        load(model)


def unreadable(what, damage, error, message):
    """Weights that cannot be read: PEFT's and other libraries' errors, which this package's loaders explain."""
    explained = "weights of adapter '.*adapter' cannot be read .*copy or download it again"
    ours = Refusal(ValueError, explained)
    return Damage(what, damage, ours, Refusal(error, message), plain=ours)


def misfit(what, damage, problem):
    return Damage(what, damage, Refusal(ValueError, f"does not fit adapter.*{problem}.*Was it "))


UNSAFE = "Weights only load failed"
HEAD = "classifier.dense.weight"
LACKING = Refusal(ValueError, "adapter '.*adapter' lacks .*classifier.* cut short")
DAMAGED_WEIGHTS = [
    unreadable("empty", writing(WEIGHTS, b""), SafetensorError, "header too small"),
    unreadable("garbage", writing(WEIGHTS, b"garbage " * 9), SafetensorError, "header"),
    unreadable("cut", lambda f: writing(WEIGHTS, (f / WEIGHTS).read_bytes()[:-1])(f), SafetensorError, "incomplete"),
    unreadable("flipped size", flipping(7), SafetensorError, "header too large"),
    unreadable("flipped name", flipping(20), SafetensorError, "invalid UTF-8 in header"),
    unreadable("missing", removing(WEIGHTS), ValueError, "adapter"),
    unreadable("a folder", making_a_folder_of(WEIGHTS), OSError, "device|directory"),
    unreadable("pickled garbage", pickled(lambda f: b"garbage", lambda b, s: s.write(b)), Exception, UNSAFE),
    unreadable("code", pickled(lambda f: {"a": Intruder(f / "ran")}), pickle.UnpicklingError, UNSAFE),
    unreadable("bare code", pickled(lambda f: Intruder(f / "ran"), pickle.dump), pickle.UnpicklingError, UNSAFE),
    misfit("NaN", tensors("down.weight", with_one(NAN)), r"not finite: .*0\..*down.weight has .*NaN"),
    misfit("infinity", tensors("embeddings", with_one(-INFINITY)), r"not finite: .*0\..*embeddings.*infinite"),
    misfit("NaN in the head", tensors(HEAD, with_one(NAN)), "not finite: classifier.*dense.weight"),
    misfit("too large", tensors("down.weight", with_one(1e300)), "not finite: .*infinite in torch.float32"),
    misfit("integers", tensors("down.weight", torch.Tensor.int), "wrong type: .*down.weight is torch.int32.*float32"),
    misfit("booleans", tensors("up.bias", torch.Tensor.bool), "wrong type: .*up.bias is torch.bool.*float32"),
    misfit("complex", tensors("up.bias", lambda t: t.to(torch.complex64)), "wrong type: .*torch.complex64.*float32"),
    misfit("transposed", tensors("down.weight", lambda t: t.T.contiguous()), r"wrong shape: .*\(32, 8\), .*\(8, 32\)"),
    misfit("another width", editing(bottleneck_dim=16), r"wrong shape: .*\(8, 32\), .*\(16, 32\)"),
    misfit("fewer layers", editing(layers_to_transform=[0, 1]), r"not of this adapter: .*2\..*prompt"),
    misfit("more parts", editing(spatial_adapter=True), "missing: .*attention_adapter"),
    misfit("no head wanted", editing(modules_to_save=[]), "not of this adapter: .*classifier"),
    Damage(
        "pickled nothing",
        pickled(lambda f: {}),
        LACKING,
        Refusal(KeyError, "classifier"),
        Refusal(ValueError, "missing: "),
    ),
]


@each_damage(DAMAGED_WEIGHTS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_weights_are_refused(damage, way, refusal, places):
    damage(places / "adapter")
    model, load = WAYS[way](places / "adapter")
    expected = None if model is None else logits(model)
    # PEFT has put the adapter on the model before it reads the weights: there, what was in the model stays.
    by_peft = way in ("peft", "beside")
    values = {
        id(tensor): bytes_of(tensor) for tensor in (model.state_dict(keep_vars=True).values() if by_peft else ())
    }
    with left_alone(model=None if by_peft else model, folder=places), refused(refusal):
        load(model)
    after = {id(tensor): bytes_of(tensor) for tensor in (model.state_dict(keep_vars=True).values() if by_peft else ())}
    assert values.items() <= after.items()
    if way in ("beside", "plain"):
        assert torch.equal(logits(model), expected)
    assert not (places / "adapter" / "ran").exists()


def test_the_code_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Intruder(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@each_way
def test_a_configuration_of_a_later_version_loads_with_a_warning(way, places):
    expected = logits(PeftModel.from_pretrained(make("ast"), places / "adapter"))
    edit(places / "adapter", gate="sigmoid")
    model, load = WAYS[way](places / "adapter")
    with pytest.warns(UserWarning, match=r"\['gate'\] for class IPETConfig, these are ignored"):
        loaded = load(model)
    if way == "beside":
        model.set_adapter("second")
    torch.testing.assert_close(logits(loaded if way == "auto" else model), expected)


@each_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_precision_load(way, dtype, places):
    file = places / "adapter" / WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    model, load = WAYS[way](places / "adapter")
    loaded = load(model) if way == "auto" else (load(model), model)[1]
    wanted = {tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert wanted == {torch.float32} and logits(loaded).isfinite().all()
