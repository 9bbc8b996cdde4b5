"""Which packages a machine has of those that setup.cfg names: `python -m benchmarking.packages OUT/packages.json`.

Needs none of them, so that it can say that they are missing.
"""

import configparser
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path


SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
# Beside those of setup.cfg: what runs the compiled code, and what stops a test that hangs.
MORE = ("triton", "pytest-timeout")


def requirements(setup: Path = SETUP) -> dict[str, str]:
    """The versions that are asked for, by the names of packages: those that the package needs, then the others."""
    parser = configparser.ConfigParser()
    parser.read(setup, encoding="utf-8")
    lists = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    names: dict[str, str] = {}
    for line in (*lines, *MORE):
        if line and not line.startswith("#"):
            name = line.partition("<")[0].partition(">")[0].partition("=")[0].strip()
            names.setdefault(name, line.removeprefix(name))
    return names


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(found: str, wanted: str) -> bool | None:
    """Whether a version is one of those asked for; None if that cannot be told."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return None
    return SpecifierSet(wanted).contains(found, prereleases=True)


def told(command: tuple[str, ...]) -> str | None:
    """The output of a command; None if there is no such command, or it does not answer."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def look() -> dict:
    wanted = requirements()
    found = {name: version(name) for name in wanted}
    present = {name: number for name, number in found.items() if number}
    return {
        "python": platform.python_version(),
        "gpu": told(NVIDIA_SMI),
        "present": present,
        "missing": [name for name, number in found.items() if number is None],
        "other_version": {
            name: f"{number}, wanted {wanted[name]}"
            for name, number in present.items()
            if fits(number, wanted[name]) is False
        },
    }


def main(path: str) -> None:
    facts = look()
    Path(path).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"Python {facts['python']}; GPU: {facts['gpu'] or 'none'}")
    print("present:", ", ".join(f"{name} {number}" for name, number in facts["present"].items()))
    print("missing:", ", ".join(facts["missing"]) or "none")
    print("another version:", "; ".join(f"{name} {text}" for name, text in facts["other_version"].items()) or "none")


if __name__ == "__main__":
    main(*sys.argv[1:])
