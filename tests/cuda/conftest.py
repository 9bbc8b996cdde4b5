"""Tests of what differs on a GPU. They run on one where there is one; with TEST_DEVICE=cpu the same is asked of a CPU.

With TEST_RESULTS, each result is written to that file as it comes, a line of JSON, so that a run that is ended loses none.
"""

import json
import os
from pathlib import Path

import pytest
import torch


DEVICE = os.environ.get("TEST_DEVICE", "cuda")


@pytest.fixture(autouse=True)
def device():
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA (with TEST_DEVICE=cpu the same runs on a CPU)")
    # Convolutions in float32, as on a CPU. torch's default on GPUs keeps ten bits of each number.
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield torch.device(DEVICE)
    torch.backends.cudnn.allow_tf32 = before


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    results = os.environ.get("TEST_RESULTS")
    # A test that runs has three reports: those before and after it count if they did not pass.
    if not results or "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    line = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(report.duration, 2),
        "reason": reason(report),
    }
    with Path(results).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def reason(report):
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:600]
