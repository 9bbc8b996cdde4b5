"""Writes the notebooks of this folder, each from the script of the same name, whose cells start with `# %%`.

python docs/howto/make.py
"""

import json
import sys
from pathlib import Path


FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parents[1] / "examples"))
from notebook_cells import read_cells, to_notebook  # noqa: E402


SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "make.py")


def notebook_of(script: Path) -> str:
    return json.dumps(to_notebook(read_cells(script)), indent=1) + "\n"


if __name__ == "__main__":
    for script in SCRIPTS:
        script.with_suffix(".ipynb").write_text(notebook_of(script), encoding="utf-8")
