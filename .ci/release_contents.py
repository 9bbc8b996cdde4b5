"""Checks what is in the sdist and the wheel: `python .ci/release_contents.py dist`. Needs nothing but Python."""

import sys
import tarfile
import zipfile
from pathlib import Path


# Of the sdist, by folder a file that it must have.
IN_SDIST = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks/benchmark.py",
    "examples/assets/ast-tiny-synthetic/model.safetensors",
    "examples/train_classification.py",
    "method_comparison/recipes/ipet.yaml",
    "metrics/min_dcf/min_dcf.py",
    "peft_audio/py.typed",
    "requirements-dev.txt",
    "tests/conftest.py",
)
WASTE = ("__pycache__", ".venv", ".git/", ".mypy_cache", ".hypothesis", "outputs/")


def main(folder: str) -> None:
    (sdist,), (wheel,) = (list(Path(folder).glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    package = {name for name in source if name.startswith("peft_audio/") and name.endswith(".py")}
    strange = {name for name in installed if not name.startswith(("peft_audio/", "peft_audio-"))}
    problems = [f"the sdist lacks {name}" for name in IN_SDIST if name not in source]
    problems += [f"the wheel lacks {name}" for name in sorted({*package, "peft_audio/py.typed"} - installed)]
    problems += [f"the wheel has {name}" for name in sorted(strange)]
    problems += [f"{name} is in an archive" for name in sorted(source | installed) if any(w in name for w in WASTE)]
    if problems:
        sys.exit("error: " + "; ".join(problems))
    print(f"{sdist.name}: {len(source)} entries; {wheel.name}: {len(installed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
