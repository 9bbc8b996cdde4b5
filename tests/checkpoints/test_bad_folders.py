"""Damaged, missing and unwritable files: the error says what to do, and files and models stay as they were."""

import builtins
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
import torch
from peft import PeftModel, get_peft_model
from refusals import (
    CONFIG,
    INFINITY,
    NAN,
    PICKLE,
    WEIGHTS,
    Intruder,
    Refusal,
    bert,
    bytes_of,
    each_row,
    edit,
    left_alone,
    logits,
    param,
    refused,
    row,
    two_adapters,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import METHODS, make, randomize

from peft_audio import (
    AutoPeftModelForAudioClassification,
    write_card,
)


# ---- folders ---------------------------------------------------------------------------------------------------------


def editing(**fields):
    return lambda folder: edit(folder, **fields)


def dropping(name):
    def damage(folder):
        settings = json.loads((folder / CONFIG).read_text())
        del settings[name]
        (folder / CONFIG).write_text(json.dumps(settings))

    return damage


def writing(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removing(name):
    return lambda folder: (folder / name).unlink()


def making_a_folder_of(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def flipping(position):
    def damage(folder):
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[position] ^= 0xFF
        (folder / WEIGHTS).write_bytes(content)

    return damage


def tensors(part, change):
    """Damage that changes the first tensor whose name ends with `part`."""

    def damage(folder):
        weights = load_file(folder / WEIGHTS)
        name = next(name for name in weights if name.endswith(part))
        weights[name] = change(weights[name])
        save_file(weights, folder / WEIGHTS)

    return damage


def with_one(value):
    def change(tensor):
        tensor = tensor.double() if abs(value) < INFINITY else tensor
        tensor.view(-1)[3] = value
        return tensor

    return change


def pickled(make_content, dump=torch.save):
    def damage(folder):
        (folder / WEIGHTS).unlink()
        with open(folder / PICKLE, "wb") as stream:
            dump(make_content(folder), stream)

    return damage


WAYS = {
    "peft": lambda folder: (make("ast"), lambda model: PeftModel.from_pretrained(model, folder)),
    "beside": lambda folder: (two_adapters(), lambda model: model.load_adapter(folder, "second")),
    "plain": lambda folder: (make("ast"), lambda model: model.load_adapter(folder)),
    "auto": lambda folder: (None, lambda _: AutoPeftModelForAudioClassification.from_pretrained(folder)),
}
each_way = pytest.mark.parametrize("way", WAYS)


class Damage(NamedTuple):
    """What is done to an adapter's folder, and what is raised on loading: by this package, and else by PEFT."""

    what: str
    damage: Callable
    ours: Refusal
    peft: Optional[Refusal] = None
    plain: Optional[Refusal] = None

    def cases(self):
        peft = self.peft or self.ours
        by_way = {"peft": peft, "beside": peft, "plain": self.plain or peft, "auto": self.ours}
        return [param(f"{self.what}-{way}", refusal, self.damage, way) for way, refusal in by_way.items()]


def each_damage(damages):
    return pytest.mark.parametrize("damage, way, refusal", [case for damage in damages for case in damage.cases()])


def unreadable_config(what, damage, error, message, plain=None):
    ours = Refusal(ValueError, f"configuration .*{CONFIG}.*cannot be read")
    return Damage(what, damage, ours, Refusal(error, message), plain)


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


# ---- AutoPeftModelForAudioClassification -----------------------------------------------------------------------------


def auto(places, **options):
    return AutoPeftModelForAudioClassification.from_pretrained(places / "adapter", **options)


def with_base(make_base):
    def act(places):
        shutil.rmtree(places / "base")
        make_base().save_pretrained(places / "base")
        return auto(places)

    return act


def with_fields(**fields):
    def act(places):
        edit(places / "adapter", **fields)
        return auto(places)

    return act


def without_base(places):
    shutil.rmtree(places / "base")
    return auto(places)


LOADING = [
    row("no base named", with_fields(base_model_name_or_path=None), ValueError, "names no base model. Load the base"),
    row("base gone", without_base, OSError, "base"),
    row("base is a file", with_fields(base_model_name_or_path=__file__), (ValueError, OSError), Path(__file__).stem),
    row("base of text", with_base(bert), ValueError, "BertConfig"),
    row("deeper base", with_base(partial(make, "ast", num_hidden_layers=4)), ValueError, r"missing: .*layers\.3"),
    row("wider base", with_base(partial(make, "ast", hidden_size=48)), ValueError, "wrong shape: .*the model needs"),
    row("longer base", with_base(partial(make, "ast", max_length=66)), ValueError, "max_length=46.*max_length=66"),
    row("another type", with_base(partial(make, "wav2vec2")), ValueError, "audio-spectrogram.*wav2vec2"),
    row("clashing name", partial(auto, adapter_name="layers"), ValueError, "`adapter_name` .*'layers'.*another name"),
    row("no subfolder", partial(auto, subfolder="deep"), ValueError, f"'{CONFIG}'.*adapter"),
    row(
        "missing folder",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained(places / "gone"),
        ValueError,
        f"Can't find '{CONFIG}' at '.*gone'.*Check the name",
    ),
    row(
        "a file",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained(places / "adapter" / WEIGHTS),
        ValueError,
        f"Can't find '{CONFIG}' at '.*{WEIGHTS}'.*Check the name",
    ),
    row(
        "unknown id",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained("nobody/nothing"),
        ValueError,
        f"Can't find '{CONFIG}' at 'nobody/nothing'.*Check the name",
    ),
    row(
        "no name",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained(None),
        TypeError,
        "os.PathLike object, not NoneType",
    ),
    row(
        "resizes",
        with_fields(base_settings={"ast_resizes": [{"max_length": -5}]}),
        ValueError,
        "`max_length` must be a positive integer, got -5",
    ),
]


@each_row(LOADING)
def test_a_wrong_folder_is_refused(act, refusal, places):
    with refused(refusal):
        act(places)
    assert not [path for path in places.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["gone", f"adapter/{WEIGHTS}", "."])
@pytest.mark.parametrize("way", ["peft", "beside", "plain"])
def test_where_no_adapter_is_the_model_stays(place, way, places):
    model, load = WAYS[way](places / place)
    with left_alone(model=model, folder=places), refused(Refusal((ValueError, OSError), "not found|Can't find|form")):
        load(model)


# ---- folders that cannot be written or read --------------------------------------------------------------------------


def deny(monkeypatch, module, name, folder, applies=lambda *args: True):
    """Let `module.name` say what it says where permissions are missing, which do not stop a superuser."""
    original = getattr(module, name)

    def denied(path, *args: Any, **kwargs: Any):
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(folder)) and applies(path, *args):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(module, name, denied)


def writes(path, mode="r", *others):
    return any(letter in mode for letter in "wax+")


SAVING = {
    "over an adapter": lambda model, places: model.save_pretrained(places / "adapter"),
    "to a new folder": lambda model, places: model.save_pretrained(places / "new"),
    "a configuration": lambda model, places: model.peft_config["default"].save_pretrained(places / "adapter"),
    "a plain model": lambda model, places: model.get_base_model().save_pretrained(places / "adapter"),
    "a card": lambda model, places: write_card(places / "adapter", training="Twice."),
}


@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("function", ["mkdir", "open"])
def test_a_folder_that_cannot_be_written_stays_as_it_is(saving, function, places, monkeypatch):
    model = randomize(get_peft_model(make("ast"), METHODS["ipet"]()), seed=9)
    module, applies = (os, lambda *args: True) if function == "mkdir" else (builtins, writes)
    # PEFT and transformers fill in what they write on their configurations before they write it.
    unchanged = left_alone(model=model, folder=places, but=("adapters", "configuration"))
    with monkeypatch.context() as context, unchanged:
        deny(context, module, function, places, applies)
        with pytest.raises(PermissionError, match=f"Permission denied: '{places}"):
            SAVING[saving](model, places)
    SAVING[saving](model, places)


@pytest.mark.parametrize("file", [CONFIG])
@each_way
def test_a_file_that_cannot_be_read_leaves_the_model_alone(file, way, places, monkeypatch):
    model, load = WAYS[way](places / "adapter")
    with monkeypatch.context() as context, left_alone(model=model, folder=places):
        deny(context, builtins, "open", places / "adapter" / file)
        with pytest.raises(PermissionError, match=f"Permission denied: '.*{file}"):
            load(model)


@pytest.mark.parametrize("what", ["model", "config"])
def test_a_file_where_the_folder_should_be_is_named(what, tmp_path):
    (tmp_path / "taken").write_text("mine")
    model = get_peft_model(make("ast"), METHODS["ipet"]())
    saved = model if what == "model" else model.peft_config["default"]
    with left_alone(model=model, folder=tmp_path), pytest.raises(ValueError, match="taken' is a file. Choose"):
        saved.save_pretrained(tmp_path / "taken")


@pytest.mark.parametrize("names", [["nobody"], ["default", "nobody"]])
def test_saving_an_unknown_adapter_writes_nothing(names, tmp_path):
    model = get_peft_model(make("ast"), METHODS["ipet"]())
    with (
        left_alone(model=model, folder=tmp_path),
        pytest.raises(ValueError, match=r"selected_adapters.*\['default'\]"),
    ):
        model.save_pretrained(tmp_path / "new", selected_adapters=names)
