"""What is printed of `benchmark.json`: shares by hand, and the page that shows them."""

import json
from pathlib import Path

import pytest
import tables
from benchmarking.subjects import AST_128, AST_1024, FULL, IPET, LOAA, LORA, SIDE, SUBJECTS, WAV2VEC2_3


ROOT = Path(__file__).resolve().parents[2]


def write(folder, rows, targets=()):
    (folder / "benchmark.json").write_text(json.dumps({"rows": rows, "targets": list(targets)}))


def row(source, method, seconds, flops, saved):
    figures = {"step_seconds": seconds, "flops": flops, "saved_bytes": saved, "checkpoint_bytes": 1234567}
    return {"input": source.name, "method": method, **figures}


def test_steps_and_operations_are_shares_of_full_fine_tuning(tmp_path):
    rows = [row(AST_1024, FULL, 4, 100, 5e8), row(AST_1024, IPET, 3, 60, 2.5e5), row(AST_128, FULL, 2, 10, 1e8)]
    write(tmp_path, [*rows, row(AST_128, IPET, 1, 6, 1e8), row(AST_1024, LORA, 5, 80, 4e8)])
    head, _, full, ipet, lora = tables.main(str(tmp_path)).split("\n\n")[1].splitlines()
    assert head == "| method | AST, 1024 | AST, 128 | AST, 1024, / LoRA | FLOP, AST, 1024 | MB, AST, 1024 | file, KB |"
    assert full == f"| {FULL} | 1.00 | 1.00 | 0.80 | 1.00 | 500 | 1,235 |"
    assert ipet == f"| {IPET} | 0.75 | 0.50 | 0.60 | 0.60 | 0.2 | 1,235 |"
    assert lora == f"| {LORA} | 1.25 |  | 1.00 | 0.80 | 400 | 1,235 |"


def test_what_was_not_measured_is_empty(tmp_path):
    write(tmp_path, [row(AST_1024, IPET, 3, 60, 2e6), row(WAV2VEC2_3, FULL, 3, 60, 2e6)])
    ipet, full = tables.main(str(tmp_path)).split("\n\n")[1].splitlines()[2:]
    assert (
        ipet == f"| {IPET} |  |  |  |  |  | 2 |  | 1,235 |" and full == f"| {FULL} |  | 1.00 |  |  | 1.00 |  | 2 |  |"
    )


@pytest.mark.parametrize(("reached", "text"), [(True, "0.5 ms"), (False, "**0.5 ms**"), (None, "0.5 ms")])
def test_targets_that_were_missed_are_bold(tmp_path, reached, text):
    bound = {"target": None if reached is None else 2, "at_least": True, "reached": reached}
    write(tmp_path, [], [{"name": "a / b", "value": 0.5, "unit": "ms", **bound}])
    assert f"| a / b | {text} | {'' if reached is None else '>= 2'} |" in tables.main(str(tmp_path))


README_ROWS = {
    "EmbeddingPromptConfig": "embedding prompts (k = 4)",
    "ParallelMLPAdapterConfig": "parallel MLP (h = 32)",
    "IPETConfig": IPET,
    "TimeFreqConvAdapterConfig": LOAA,
    "BottleneckAdapterConfig": "bottleneck (h = 32, Houlsby)",
    "SideNetworkConfig": SIDE,
    "InputPromptConfig": "input prompt (p = 10)",
}


@pytest.mark.parametrize("config", README_ROWS)
def test_the_readme_has_the_steps_of_the_same_run(config):
    rows = json.loads((ROOT / "docs" / "benchmark" / "benchmark.json").read_text())["rows"]
    seconds = {row["method"]: row["step_seconds"] for row in rows if row["input"] == AST_1024.name}
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in readme if line.startswith(f"| `{config}` |"))
    assert line.split(" | ")[2] == f"{seconds[README_ROWS[config]] / seconds[LORA]:.2f}"


def test_the_page_shows_the_last_whole_run_of_every_method():
    folder = ROOT / "docs" / "benchmark"
    lines = tables.methods(folder).splitlines()[4:]
    assert [line.split("|")[1].strip().replace("^MS^", "^MS") for line in lines] == list(SUBJECTS)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert not [line for line in lines if line not in page]
