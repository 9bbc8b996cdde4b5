"""Folders without an adapter, and base models that do not fit: the error says what to do, and nothing changes."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from damage import WAYS
from refusals import CONFIG, WEIGHTS, Refusal, bert, each_row, edit, left_alone, refused, row
from tiny import make

from peft_audio import AutoPeftModelForAudioClassification


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
    row(
        "base of another working directory",
        with_fields(base_model_name_or_path="my/base/models/ast"),
        FileNotFoundError,
        "trained on the base model in 'my/base/models/ast', and '/.*' does not exist. Call this from the folder",
    ),
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
