import os
import sys
from pathlib import Path

import pytest


os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "tests", ROOT / "tests" / "examples", Path(__file__).parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    """A `Recorder`, with a method that tells how often it has been called since one last asked."""
    from caches import Recorder

    monkeypatch.setattr(Recorder, "log", tmp_path / "calls.log")

    def calls():
        text = Recorder.log.read_text() if Recorder.log.exists() else ""
        Recorder.log.write_text("")
        return text.count("called")

    recorder = Recorder()
    recorder.calls = calls
    return recorder
