"""Folders that cannot be written or read: files and models stay as they were."""

import builtins
import errno
import os
from typing import Any

import pytest
from damage import WAYS, each_way
from peft import get_peft_model
from refusals import CONFIG, left_alone
from tiny import METHODS, make, randomize

from peft_audio import write_card


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
