"""Resident memory of training steps: in processes of their own, and what the table says of it."""

import json

import memory
import torch
from benchmarking.subjects import AST_128, FULL, LORA, SUBJECTS


def test_each_process_has_its_own_peak(tmp_path, monkeypatch):
    held = torch.zeros(200_000_000)  # 0.8 GB of this process, which is not the other's
    alone = memory.in_a_process(AST_128.name, memory.PACKAGES, 0)
    assert alone < held.nbytes
    peaks = {"1": 3e9, "4": 6e9}
    monkeypatch.setattr(memory, "in_a_process", lambda name, method, size: int(peaks.get(str(size), alone)))
    found = memory.main(["--output_dir", str(tmp_path), "--inputs", AST_128.name, "--methods", LORA, FULL])
    assert json.loads((tmp_path / "memory.json").read_text()) == found
    packages, lora, full = found["rows"]
    assert packages["peak_bytes"] == {"0": alone} and lora["peak_bytes"] == peaks
    assert full["largest_batches"] == {"8": 6, "16": 14, "24": 22}  # 2 GB, and 1 GB a clip


def test_a_step_holds_weights_gradients_and_the_state_of_the_optimizer():
    model = SUBJECTS[FULL](AST_128.make_model())
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    del model
    alone = memory.in_a_process(AST_128.name, memory.PACKAGES, 0)
    step = memory.in_a_process(AST_128.name, FULL, 1)
    assert step - alone > 4 * weights
