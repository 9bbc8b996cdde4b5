"""Steps of compiled models against those as written. Every model has a process of its own, so that several compile together.

They take turns with their steps when these are compiled, so that none disturbs another's times.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from benchmarking.extras import on_device
from benchmarking.measure import Precision, time_each, training_step
from benchmarking.subjects import FULL, IPET, LOAA, LORA, SUBJECTS, Input


PARALLEL_MLP = next(name for name in SUBJECTS if name.startswith("parallel MLP"))
SIDE = [name for name in SUBJECTS if name.startswith("side network")]
METHODS = (FULL, IPET, LORA, PARALLEL_MLP, LOAA, *SIDE[:1])  # what a GPU has time for, the most important first
SCRIPT = Path(__file__).resolve().parents[1] / "gpu.py"
SECONDS_OF_STEPS = 20  # for the times of one model, or its share of what is left where that is more


def worker(source: Input, name: str, batch_size: int, precision: Precision, backend: str, repeats: int) -> None:
    """Compile a step and say so in a line of JSON; take and tell the times when a line comes in."""
    torch.manual_seed(0)
    model = SUBJECTS[name](source.make_model(dropout=False)).to(precision.device).train()
    batch = on_device(source.make_batch(batch_size), precision)
    # wav2vec2 installs hooks in its first pass, under a lock that cannot be compiled.
    with precision.autocast():
        expected = model(**batch).loss.item()
    counters.clear()
    compiled = torch.compile(model, backend=backend)
    start = time.perf_counter()
    with precision.autocast():
        loss = compiled(**batch).loss
    loss.backward()
    precision.wait()
    facts = {
        "compile_seconds": time.perf_counter() - start,
        "graph_breaks": sum(counters["graph_break"].values()),
        "loss": expected,
        "compiled_loss": loss.item(),
    }
    steps = {"step_seconds": training_step(model, batch, precision)}
    steps["compiled_step_seconds"] = training_step(compiled, batch, precision)
    del loss
    model.zero_grad()
    if precision.device.type == "cuda":
        torch.cuda.empty_cache()
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()
    print(json.dumps(time_each(steps, repeats, precision)), flush=True)


class Process:
    """A worker, and the lines that it writes."""

    def __init__(self, source: Input, name: str, options: list[str]):
        self.row = {"input": source.name, "method": name}
        command = [sys.executable, str(SCRIPT), "compile-one", "--inputs", source.name, "--methods", name, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def facts(self, seconds: float) -> bool:
        """Add the next line of JSON to the row; False if the process ended, or says nothing for so long."""
        until = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                self.row["error"] = "did not finish in time"
                return False
            if line.startswith("{"):
                self.row.update(json.loads(line))
                return True
            if not line:
                self.row["error"] = f"ended with exit code {self.process.wait()}"
                return False

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(cases: list[tuple[Input, str]], options: list[str], until: float, at_once: int) -> Iterator[list[dict]]:
    """Yields the rows of all cases whenever something was added; at `until` (of time.monotonic) all is over.

    So many as `at_once` compile together, and then take turns; each of these groups has its share of the time.
    """
    done: list[dict] = []
    for start in range(0, len(cases), at_once):
        now, rows = time.monotonic(), []
        group, left = cases[start : start + at_once], len(cases) - start
        for rows in _compare_group(group, options, now + (until - now) * len(group) / left):
            yield done + rows
        done += rows


def _compare_group(cases: list[tuple[Input, str]], options: list[str], until: float) -> Iterator[list[dict]]:
    processes = [Process(source, name, options) for source, name in cases]
    rows = [process.row for process in processes]
    try:
        compiled_by = time.monotonic() + 0.7 * (until - time.monotonic())
        ready = []
        for process in processes:
            if process.facts(compiled_by - time.monotonic()):
                ready.append(process)
            else:
                process.end()
            yield rows
        for waiting, process in zip(range(len(ready), 0, -1), ready):
            process.go()
            left = until - time.monotonic()
            process.facts(min(left, max(SECONDS_OF_STEPS, left / waiting)))
            process.end()
            yield rows
    finally:
        for process in processes:
            process.end()
