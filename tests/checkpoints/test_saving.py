"""Saving over an adapter leaves the old or the new one, whenever the process ends and whatever fails."""

import errno
import filecmp
import multiprocessing
import os
import shutil

import pytest
import torch
from killing import die_at
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import load_peft_weights
from tiny import METHODS, make, make_inputs, randomize

from peft_audio import EmbeddingPromptConfig
from peft_audio.utils.atomic_files import written_together


def adapter(num_virtual_tokens, seed):
    config = EmbeddingPromptConfig(num_virtual_tokens=num_virtual_tokens)
    return randomize(get_peft_model(make("ast"), config), seed=seed).eval()


def logits_of(folder):
    model = PeftModel.from_pretrained(make("ast"), folder)
    with torch.no_grad():
        return model(**make_inputs("ast")).logits


OVERWRITES = {
    "other weights": lambda: (adapter(2, seed=1), adapter(2, seed=2), {}),
    "another configuration": lambda: (adapter(2, seed=1), adapter(5, seed=2), {}),
    "another format": lambda: (adapter(2, seed=1), adapter(5, seed=2), {"safe_serialization": False}),
}


def what_is_loaded(folder):
    """The configuration and the weights that PEFT finds in the folder."""
    weights = load_peft_weights(str(folder), device="cpu")
    return PeftConfig.from_pretrained(str(folder)).to_dict(), {key: value.tolist() for key, value in weights.items()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", OVERWRITES)
def test_killed_at_any_step_the_old_or_the_new_adapter_is_there(case, tmp_path):
    old, new, options = OVERWRITES[case]()
    old.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "new", **options)
    known = [what_is_loaded(tmp_path / name) for name in ("old", "new")]
    found, step, killed = [], 0, True
    while killed:
        step += 1
        folder = tmp_path / f"killed at {step}"
        shutil.copytree(tmp_path / "old", folder)
        killed = die_at(step, lambda folder=folder: new.save_pretrained(folder, **options), folder)
        found.append([what_is_loaded(folder) == each for each in known])
        assert sum(found[-1]) == 1, f"killed at step {step}, the folder holds neither adapter"
        if step % 5 == 0:  # the next save clears up what the killed one left
            old.save_pretrained(folder)
            assert what_is_loaded(folder) == known[0]
            assert sorted(os.listdir(folder)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
            assert not any(path.is_symlink() for path in folder.iterdir())
    new_at = [is_new for _, is_new in found]
    assert new_at == sorted(new_at) and step > 10 and new_at[-1] and not new_at[0]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("read-only")])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", ["replace", "symlink", "fsync"])
def test_a_failing_step_raises_and_leaves_the_old_adapter(function, call, error, tmp_path, monkeypatch):
    old, new = adapter(2, seed=1), adapter(5, seed=2)
    old.save_pretrained(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "before")
    original, calls = getattr(os, function), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(os, function, failing)
    raised = None
    try:
        new.save_pretrained(tmp_path / "adapter")
    except OSError as caught:
        raised = caught
    monkeypatch.undo()
    if len(calls) < call or function == "symlink" and raised is None:  # no such step, or one that can be done without
        assert torch.equal(logits_of(tmp_path / "adapter"), logits_of_model(new))
        return
    assert raised is error
    found = logits_of(tmp_path / "adapter")
    assert torch.equal(found, logits_of_model(old)) or torch.equal(found, logits_of_model(new))
    assert sorted(os.listdir(tmp_path / "adapter")) == sorted(os.listdir(tmp_path / "before"))


@torch.no_grad()
def logits_of_model(model):
    return model(**make_inputs("ast")).logits


def test_a_full_disk_leaves_the_old_files_byte_for_byte(tmp_path, monkeypatch):
    old, new = adapter(2, seed=1), adapter(5, seed=2)
    old.save_pretrained(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "before")

    def no_space(tensors, filename, metadata=None):
        with open(filename, "wb") as stream:
            stream.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", filename)

    monkeypatch.setattr("peft.peft_model.safe_save_file", no_space)
    with pytest.raises(OSError, match="No space left"):
        new.save_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match="No space left"):
        new.save_pretrained(tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    names = os.listdir(tmp_path / "before")
    assert filecmp.cmpfiles(tmp_path / "before", tmp_path / "adapter", names, shallow=False)[0] == names
    assert os.listdir(tmp_path / "adapter") == names or sorted(os.listdir(tmp_path / "adapter")) == sorted(names)


def test_other_files_and_adapters_of_the_folder_stay(tmp_path):
    model = adapter(2, seed=1)
    model.add_adapter("other", EmbeddingPromptConfig(num_virtual_tokens=3))
    model.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path / "other")) == ["adapter_config.json", "adapter_model.safetensors"]


def test_one_format_of_weights_is_left(tmp_path):
    old, new = adapter(2, seed=1), adapter(5, seed=2)
    old.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path, safe_serialization=False)
    assert "adapter_model.safetensors" not in os.listdir(tmp_path)
    assert torch.equal(logits_of(tmp_path), logits_of_model(new))
    old.save_pretrained(tmp_path)
    assert "adapter_model.bin" not in os.listdir(tmp_path)
    assert torch.equal(logits_of(tmp_path), logits_of_model(old))


def test_a_file_in_the_way_and_wrong_names_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    model = adapter(2, seed=1)
    with pytest.raises(ValueError, match="Choose another name"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match="selected_adapters"):
        model.save_pretrained(tmp_path / "new", selected_adapters=["nobody"])
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_a_process_that_does_not_write_writes_nothing(tmp_path):
    adapter(2, seed=1).save_pretrained(tmp_path / "adapter", is_main_process=False)
    assert os.listdir(tmp_path / "adapter") == []


def test_a_plain_transformers_model_saves_whole_too(tmp_path):
    model = make("ast")
    model.add_adapter(METHODS["parallel_mlp"]())
    randomize(model)
    model.save_pretrained(tmp_path)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} == set(os.listdir(tmp_path))
    assert torch.equal(logits_of(tmp_path), logits_of_model(model.eval()))


def test_other_tuner_types_are_saved_as_ever(tmp_path):
    from peft import LoraConfig

    get_peft_model(make("ast"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "peft_audio" not in (tmp_path / "README.md").read_text()
    make("ast").save_pretrained(tmp_path / "base")
    assert set(os.listdir(tmp_path / "base")) == {"config.json", "model.safetensors"}


def test_several_processes_may_save_the_same_adapter(tmp_path):
    model = adapter(2, seed=1)
    processes = [
        multiprocessing.get_context("fork").Process(
            target=lambda: [model.save_pretrained(tmp_path) for _ in range(10)]
        )
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(load_peft_weights(str(tmp_path))) > 0
    assert not any(path.name.startswith(".saving") or path.is_symlink() for path in tmp_path.iterdir())


def test_an_exception_inside_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), written_together(tmp_path / "a" / "b") as staged:
        (staged / "file").write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) in ([], ["a"]) and not (tmp_path / "a" / "b").exists()
