"""What `gpu.sh` measures and prints: all of it on a CPU with tiny models, and its parts by hand."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
import tables
import torch
from benchmarking import compiled, measure, on_gpu, packages, profiles
from benchmarking.measure import Precision
from benchmarking.subjects import FULL, IPET, LORA, WHISPER_5, WHISPER_30, Input


ROOT = Path(__file__).resolve().parents[2]
CPU = Precision()


def read(path):
    return json.loads(path.read_text())


def test_every_part_runs_on_a_cpu(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), "--cpu"]
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_SECONDS": "2400"}  # however busy the machine is
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2400)
    assert run.returncode == 0 and "exit code" not in run.stdout, run.stdout[-3000:] + run.stderr[-1000:]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("packages.json", "tests.jsonl", "steps.json", "compile.json", "profile.json", "gpu.log", "gpu.md")
    }
    rows = read(tmp_path / "steps.json")["rows"]
    assert [row["method"] for row in rows] == [FULL, LORA, IPET] * len(on_gpu.TINY_INPUTS)
    assert all(row["step_seconds"] > 0 and row["forward_seconds"] > 0 and "error" not in row for row in rows)
    (row,) = read(tmp_path / "compile.json")["rows"]
    assert row["graph_breaks"] == 0 and row["compiled_loss"] == pytest.approx(row["loss"], rel=1e-2)
    assert row["step_seconds"] > 0 and row["compiled_step_seconds"] > 0
    assert all(row["top"] for row in read(tmp_path / "profile.json")["rows"])
    results = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines()]
    assert results and {result["outcome"] for result in results} == {"passed"}
    text = (tmp_path / "gpu.md").read_text()
    assert text.strip() == tables.main(str(tmp_path)).strip() and "torch.compile" in text


def test_the_largest_batch_is_on_the_line_through_two_sizes():
    # 2 GB and 0.1 GB a clip.
    peaks = {"16": int(3.6e9), "64": int(8.4e9)}
    assert on_gpu.largest_batches(peaks) == {"8": 60, "16": 140, "24": 220}
    assert on_gpu.largest_batches({}) == {}
    assert on_gpu.largest_batches({"1": int(9e9), "2": int(10e9)})["8"] == 0


def test_cards_are_known_by_their_names():
    assert on_gpu.peak_tflops("NVIDIA H100 80GB HBM3") == 989 and on_gpu.peak_tflops("NVIDIA H100 PCIe") == 756
    assert on_gpu.peak_tflops("some other card") is None


def test_a_method_that_fails_leaves_the_others_their_turn(monkeypatch):
    alone = on_gpu.alone

    def fail(model, *args):
        if hasattr(model, "peft_config"):
            raise MemoryError("too large\nmore")
        return alone(model, *args)

    monkeypatch.setattr(on_gpu, "alone", fail)
    source = on_gpu.TINY_INPUTS[2]
    *_, rows = on_gpu.measure(source, [FULL, IPET], 2, CPU, time.monotonic())
    assert [row.get("error") for row in rows] == [None, "MemoryError: too large"]
    assert rows[0]["step_seconds"] > 0 and "step_seconds" not in rows[1]


def test_medians_are_given_after_each_round():
    calls = []
    rounds = list(measure.time_rounds({"a": lambda: calls.append(1)}, 3, CPU, calls=2))
    assert len(rounds) == 3 and len(calls) == 1 + 3 * 2


@pytest.mark.parametrize("source", [WHISPER_5, WHISPER_30, *on_gpu.TINY_INPUTS])
def test_inputs_fit_their_models(source):
    with torch.device("meta"):
        model = source.make_model()
    batch = {name: value.to("meta") for name, value in source.make_batch(2).items()}
    assert model(**batch).logits.shape == (2, 50)


def test_kernels_of_a_step_are_told_with_their_times():
    matrix = torch.randn(200, 200)
    rows = profiles.kernels(lambda: (matrix @ matrix).relu(), CPU)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert {row["kernel"]: row["calls"] for row in rows}["aten::mm"] == 1


def test_compiled_steps_have_the_precision_that_was_asked_for(tmp_path):
    options = ["--tiny", "--device", "cpu", "--backend", "eager", "--dtype", "float32", "--output_dir", str(tmp_path)]
    report = gpu.main(["compile", *options])
    (row,) = report["rows"]
    assert report["environment"]["dtype"] == "float32" and row["compiled_loss"] == pytest.approx(row["loss"], rel=1e-6)


def test_a_process_that_ends_is_told(tmp_path):
    cases = [(Input("AST-base", 7, True), FULL)]  # no such input
    *_, rows = compiled.compare(cases, ["--output_dir", str(tmp_path), "--tiny"], time.monotonic() + 300, 1)
    assert rows[0]["error"].startswith("ended with exit code") and "step_seconds" not in rows[0]


def test_models_that_compile_one_after_the_other_are_told_together(tmp_path):
    cases = [(Input("AST-base", 7, True), FULL), (Input("AST-base", 7, True), LORA)]  # no such input
    told = [list(rows) for rows in compiled.compare(cases, ["--output_dir", str(tmp_path)], time.monotonic() + 300, 1)]
    assert [[row["method"] for row in rows] for rows in told] == [[FULL], [FULL, LORA]]
    assert all(row["error"].startswith("ended with exit code") for row in told[-1])


def test_packages_are_compared_with_what_setup_cfg_asks(tmp_path, monkeypatch):
    wanted = packages.requirements()
    assert wanted["torch"].startswith(">=") and wanted["pytest"] == "" and "transformers" in wanted
    monkeypatch.setattr(packages, "requirements", lambda: {"torch": ">=2", "pytest": ">=999", "no-such-one": ""})
    packages.main(str(tmp_path / "packages.json"))
    facts = read(tmp_path / "packages.json")
    assert facts["missing"] == ["no-such-one"] and list(facts["other_version"]) == ["pytest"]


def test_tables_have_ratios_of_what_was_written(tmp_path, capsys):
    shared = {"environment": {"device": "card", "dtype": "bfloat16", "torch": "2", "transformers": "5", "peft": "0"}}
    full = {"input": "AST", "method": FULL, "batch_size": 64, "flops": 8e12, "step_seconds": 0.2}
    full |= {"forward_seconds": 0.05, "peak_bytes": {"16": 1e9, "64": 4e9}, "largest_batches": dict(zip("8", [9]))}
    full["largest_batches"] |= {"16": 10, "24": 1100}
    late = {"input": "AST", "method": IPET, "batch_size": 64, "error": "out of memory"}
    report = {**shared, "batch_size": 64, "measured_tflops": 700.0, "peak_tflops": 100, "rows": [full, late]}
    (tmp_path / "steps.json").write_text(json.dumps(report))
    (tmp_path / "tests.jsonl").write_text('{"test": "a", "outcome": "failed", "reason": "so"}\n{"test": "b", "outco')
    text = tables.main(str(tmp_path))
    cells = "200.0 | 1.00 |  | 4.00 | 1.00 | 1.00 | 40% | 4.0 |  | 9 / 10 / 1,100"
    assert f"| {FULL} | {cells} |" in text and "out of memory |" in text
    assert "Tests: 1 failed" in text and "failed: `a`: so" in text
