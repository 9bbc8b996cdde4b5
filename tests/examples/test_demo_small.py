"""The demonstration, at its smallest."""

import subprocess
import sys
from pathlib import Path


def test_it_adapts_saves_and_reloads_with_the_same_predictions():
    script = Path(__file__).parents[2] / "examples" / "demo_small.py"
    command = [sys.executable, str(script), "--epochs", "1", "--clips_per_class", "2"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    output = " ".join(finished.stdout.split())  # lines break where the terminal's do
    for title in ("Linear probe", "Embedding prompt", "Parallel MLP", "IPET", "Full fine-tuning"):
        assert title in output
    assert "are identical" in output and "NOT identical" not in output
    # The new process knew nothing but the adapter's folder.
    assert "loaded ASTForAudioClassification with IPET and 8 labels" in output
