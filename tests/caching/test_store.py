"""Cached states on disk: found again, told apart, whole whenever a process ends, and bounded."""

import json
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from cached import Samples, batch_of, frozen_head, logits
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import die_at
from peft import get_peft_model
from refusals import files_in
from safetensors.torch import load_file
from tiny import METHODS, make
from torch.utils.data import DataLoader

from peft_audio.caching import cache_frozen


NUM_FRAMES, HIDDEN_SIZE = 38, 32
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def make_model(**options):
    return frozen_head("wav2vec2", **options)


def fill(folder, samples=None, **options):
    return cache_frozen(make_model(), samples or Samples("wav2vec2", padded=True), folder, **options)


def entries(folder):
    """Every entry by name, with what changes when its file is written again."""
    return {path.stem: path.stat().st_ino for path in folder.glob("*/??/*.safetensors")}


def test_an_entry_is_what_enters_the_head(tmp_path):
    samples, model = Samples("wav2vec2", padded=True), make_model()
    cached = cache_frozen(model, samples, tmp_path, batch_size=3)
    batch = batch_of(samples)
    with torch.no_grad():
        expected = model.wav2vec2(batch["input_values"], batch["attention_mask"]).last_hidden_state
    torch.testing.assert_close(batch_of(cached)["input_values"], expected.reshape(4, NUM_FRAMES, HIDDEN_SIZE))
    (written,) = tmp_path.glob("*/settings.json")
    assert len(written.parent.name) == 32
    assert json.loads(written.read_text())["cut"] == "projector"
    files = {path.name[:2] == path.parent.name for path in tmp_path.glob("*/??/*.safetensors")}
    assert files == {True} and len(entries(tmp_path)) == 4
    assert not any((written.parent / "partial").iterdir())


def test_samples_keep_their_columns(tmp_path):
    samples = Samples("wav2vec2", padded=True)
    rows = [{**samples[index], "name": f"clip {index}", "weights": [0.5, index]} for index in range(4)]
    rows = [{**row, "input_values": row["input_values"].numpy()} for row in rows]
    for name in ("input_values", "attention_mask"):
        rows[1][name] = rows[1][name].tolist()
    cached = cache_frozen(make_model(), rows, tmp_path)
    for row, sample in zip(rows, cached):
        assert list(sample) == list(row)
        assert sample["input_values"].shape == (NUM_FRAMES, HIDDEN_SIZE)
        assert sample["attention_mask"].dtype == torch.int64
        assert np.array_equal(sample["attention_mask"], row["attention_mask"])
        assert all(sample[name] == row[name] for name in ("labels", "name", "weights"))


def test_workers_read_them(tmp_path):
    cached = fill(tmp_path)
    loader = DataLoader(pickle.loads(pickle.dumps(cached)), batch_size=4, num_workers=1)
    (batch,) = loader
    assert torch.equal(batch["input_values"], batch_of(cached)["input_values"])


def test_states_keep_their_type(tmp_path):
    model, samples = make_model().to(torch.bfloat16), Samples("wav2vec2")
    samples.inputs = samples.inputs.bfloat16()
    cached = cache_frozen(model, samples, tmp_path)
    assert cached[0]["input_values"].dtype == torch.bfloat16
    torch.testing.assert_close(logits(model, batch_of(cached)), logits(model, batch_of(samples)))


def test_a_second_call_computes_only_what_is_new(tmp_path):
    fill(tmp_path, Samples("wav2vec2", num_clips=3))
    before = entries(tmp_path)
    more = Samples("wav2vec2", num_clips=6)
    more.inputs[4] = more.inputs[0]
    cached = fill(tmp_path, more)
    after = entries(tmp_path)
    assert len(before) == 3 and len(after) == 5 and before.items() <= after.items()
    assert torch.equal(cached[4]["input_values"], cached[0]["input_values"])


def test_what_another_run_has_added_meanwhile_is_not_computed_again(tmp_path):
    class Meanwhile(Samples):
        times = 0

        def __getitem__(self, index):
            self.times += index == 0
            if self.times == 6 and not entries(tmp_path):
                self.entries = fill(tmp_path) and entries(tmp_path)
            return super().__getitem__(index)

    samples = Meanwhile("wav2vec2", padded=True)
    fill(tmp_path, samples, batch_size=1)
    assert len(samples.entries) == 4 and entries(tmp_path) == samples.entries


def other_weight(model):
    with torch.no_grad():
        model.wav2vec2.encoder.layers[2].final_layer_norm.bias[0] += 1e-6


def other_setting(model):
    model.config.layer_norm_eps *= 2


def other_attention(model):
    model.set_attn_implementation("eager")


def trained_head(model):
    with torch.no_grad():
        model.projector.weight.add_(1.0)


CHANGES = {"weight": other_weight, "setting": other_setting, "attention": other_attention, "none": lambda model: None}


@pytest.mark.parametrize("change", [*CHANGES.values(), trained_head], ids=[*CHANGES, "trained head"])
def test_another_frozen_part_has_entries_of_its_own(change, tmp_path):
    fill(tmp_path)
    model = make_model()
    change(model)
    cache_frozen(model, Samples("wav2vec2", padded=True), tmp_path)
    is_same = change in (CHANGES["none"], trained_head)
    assert len(list(tmp_path.iterdir())) == (1 if is_same else 2)
    assert len(entries(tmp_path)) == 4  # their names are those of the samples
    assert len(list(tmp_path.rglob("*.safetensors"))) == (4 if is_same else 8)


def test_another_split_point_input_or_mask_has_entries_of_its_own(tmp_path):
    samples = Samples("wav2vec2", padded=True)
    fill(tmp_path, samples)
    samples.mask[0, -100:] = 0
    samples.inputs[1, 0] += 1e-6
    fill(tmp_path, samples)
    assert len(entries(tmp_path)) == 6
    cache_frozen(get_peft_model(make("wav2vec2"), METHODS["ipet"](layers_to_transform=[2])), samples, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def flip(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def renamed_mask(content):
    return content.replace(b'"attention_mask"', b'"attention_masc"')


DAMAGE = {
    "truncated": lambda content: content[:-5],
    "empty": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "one bit": flip,
    "longer": lambda content: content + b"x",
    "another dtype": lambda content: content.replace(b'"F32"', b'"I32"'),
    "a dtype that torch lacks": lambda content: content.replace(b'"F32"', b'"X99"'),
    "another shape": lambda content: content.replace(b"[38,32]", b"[32,38]"),
    "another name": renamed_mask,
    "no checksum": lambda content: content.replace(b"xxh3", b"none"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_told_and_computed_again(damage, tmp_path):
    cached = fill(tmp_path, batch_size=1)
    expected, before, files = batch_of(cached), entries(tmp_path), files_in(tmp_path)
    path = cached.store.path(cached.keys[2])
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content))
    with pytest.raises(OSError, match="sample 2 .*damaged or removed.*cache_frozen"):
        cached[2]
    again = fill(tmp_path, batch_size=1)
    assert files_in(tmp_path) == files
    changed = {name for name, file in entries(tmp_path).items() if before[name] != file}
    assert changed <= {path.stem}
    torch.testing.assert_close(batch_of(again), expected)


def test_an_entry_in_the_place_of_another_is_told_and_computed_again(tmp_path):
    cached = fill(tmp_path)
    expected = batch_of(cached)
    paths = [cached.store.path(key) for key in cached.keys]
    shutil.copy(paths[0], paths[1])
    with pytest.raises(OSError, match="sample 1 .*damaged or removed"):
        cached[1]
    torch.testing.assert_close(batch_of(fill(tmp_path)), expected)
    model = make_model()
    other_weight(model)
    elsewhere = cache_frozen(model, Samples("wav2vec2", padded=True), tmp_path)
    shutil.copy(elsewhere.store.path(cached.keys[1]), paths[1])
    with pytest.raises(OSError, match="sample 1 .*damaged or removed"):
        cached[1]
    torch.testing.assert_close(batch_of(fill(tmp_path)), expected)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damage_anywhere_is_told(data, tmp_path_factory):
    cached = fill(tmp_path_factory.getbasetemp() / "flipped")
    path = cached.store.path(cached.keys[2])
    content = path.read_bytes()
    place = data.draw(st.one_of(st.integers(0, 300), st.integers(0, len(content) - 1)))
    flipped = bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))])
    path.write_bytes(content[:place] + flipped + content[place + 1 :])
    try:
        entry = cached.store.read(cached.keys[2])
    finally:
        path.write_bytes(content)
    intact = cached.store.read(cached.keys[2])
    assert entry is None or all(torch.equal(entry[name], value) for name, value in intact.items())


@forks
@pytest.mark.parametrize("step", [1, 3, 9, 12, 18, 25])
def test_a_killed_run_leaves_whole_entries_and_is_resumed(step, tmp_path):
    expected = batch_of(fill(tmp_path / "whole"))
    folder = tmp_path / "killed"
    assert die_at(step, lambda: fill(folder, batch_size=1), folder)
    before = entries(folder)
    assert all("states" in load_file(path) for path in folder.rglob("*.safetensors"))
    cached = fill(folder, batch_size=1)
    after = entries(folder)
    assert len(after) == 4 and before.items() <= after.items()
    assert len(before) < 4 or step > 20
    torch.testing.assert_close(batch_of(cached), expected)
    for path in folder.glob("*/partial/*"):
        os.utime(path, (0, 0))
    shutil.rmtree(next(folder.glob("*/??")))  # something to be filled
    fill(folder)
    assert not list(folder.glob("*/partial/*")) and len(entries(folder)) == 4


@forks
def test_processes_may_fill_a_folder_together(tmp_path):
    def run(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE="3")
        fill(tmp_path, Samples("wav2vec2", num_clips=9), batch_size=1)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank,)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    before = entries(tmp_path)
    cached = fill(tmp_path, Samples("wav2vec2", num_clips=9))
    assert len(before) == 9 and entries(tmp_path) == before
    model = make_model()
    expected = cache_frozen(model, Samples("wav2vec2", num_clips=9), tmp_path / "alone")
    torch.testing.assert_close(batch_of(cached), batch_of(expected))


def test_what_does_not_fit_in_is_refused_before_anything_is_written(tmp_path):
    states, mask = NUM_FRAMES * HIDDEN_SIZE * 4, 800
    message = r"4 of 4 samples are missing and need .*max_bytes=22000 .*larger max_bytes"
    with pytest.raises(ValueError, match=message):
        fill(tmp_path / "states", max_bytes=22000)
    assert not list(tmp_path.iterdir()) and 4 * (states + mask) > 22000
    fill(tmp_path / "states", max_bytes=25000)
    files = files_in(tmp_path)
    assert sum(len(content) for content in files.values() if content and b"states" in content[:500]) < 25000
    fill(tmp_path / "states", max_bytes=1)  # nothing is missing
    with pytest.raises(ValueError, match="2 of 6 samples are missing"):
        fill(tmp_path / "states", Samples("wav2vec2", padded=True, num_clips=6), max_bytes=32000)
    assert files_in(tmp_path) == files


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**4, 10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"has 1e-05 GB free"):
        fill(tmp_path / "states")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "states").write_text("")
    with pytest.raises(OSError, match="Cannot write states.*another folder.*states"):
        fill(tmp_path / "states")
