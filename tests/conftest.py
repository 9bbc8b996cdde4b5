import os
import shutil


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from refusals import edit, trained

from peft_audio.tuner import attention, prompt_gradient


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("ast", "wav2vec2")}
    for backbone, folder in folders.items():
        trained(backbone, folder)
    return folders


@pytest.fixture
def places(originals, tmp_path):
    """A folder with a base model and an adapter for it, which tests may damage."""
    shutil.copytree(originals["ast"], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


@pytest.fixture
def answers(monkeypatch):
    """What the backward pass through prompts alone gave for each call: an output, or None where torch's own is taken."""
    given = []

    def attend(*args, **kwargs):
        given.append(prompt_gradient.attend_to_frozen_tokens(*args, **kwargs))
        return given[-1]

    monkeypatch.setattr(attention, "attend_to_frozen_tokens", attend)
    return given


@pytest.fixture
def kernels(monkeypatch):
    """What was seen of each kernel, nothing yet."""
    monkeypatch.setattr(prompt_gradient, "_gives_log_sum_exp", {})
    return prompt_gradient._gives_log_sum_exp
