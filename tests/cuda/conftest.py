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


def pytest_configure(config):
    # A worker of pytest-xdist hands its reports to the process that started it, which writes them. The environment does not
    # tell the two apart: a run inside of another run's worker inherits the variables of the worker.
    if os.environ.get("TEST_RESULTS") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(os.environ["TEST_RESULTS"]))


class Results:
    """Writes each report that counts to a file, as it comes."""

    def __init__(self, path):
        self.path = Path(path)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        # A test that runs has three reports: those before and after it count if they did not pass.
        if report.when != "call" and report.passed:
            return
        line = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "reason": reason(report),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def reason(report):
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:600]
