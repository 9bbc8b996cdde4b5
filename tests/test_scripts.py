"""That every script starts from wherever it is called, with nothing but the package installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("examples", "method_comparison", "benchmarks")
IS_A_NOTEBOOK = "quickstart.py"  # runs from top to bottom; its own test does that

# Imports each script with the path that `python FOLDER/SCRIPT.py` gives it, and none of the modules of the one before.
START = """
import runpy, sys
from pathlib import Path

clean = sys.path[1:]
for script in map(Path, sys.argv[1:]):
    sys.path[:] = [str(script.parent), *clean]
    runpy.run_path(str(script), run_name="started")
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", ""))
        is_installed = file.startswith(sys.prefix) or name.startswith("peft_audio")
        if file.startswith(str(script.parents[1])) and not is_installed:
            del sys.modules[name]
    print(script.name)
"""


@pytest.mark.parametrize("folder", FOLDERS)
def test_scripts_start_anywhere(folder, tmp_path):
    files = sorted(path for path in (ROOT / folder).glob("*.py") if path.name != IS_A_NOTEBOOK)
    scripts = [path for path in files if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START, *map(str, scripts)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert scripts and done.stdout.split() == [path.name for path in scripts]
