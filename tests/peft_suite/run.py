"""Runs PEFT's own tests with the methods of this package and with LoRA, and writes the page of results.

python tests/peft_suite/run.py [pytest's arguments]     # as `make test-peft` does, after it fetched PEFT's tests
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "peft_tests" / "README.md"


def main(arguments):
    """Run all tests and write the page, or only run those that pytest's arguments pick."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PEFT_SUITE_MODELS": folder, "PEFT_SUITE_RESULTS": f"{folder}/results.jsonl"}
        lines = run(arguments)
    if arguments:
        return  # a part of the tests is no page
    from report import write_report

    write_report(lines, version("peft"), PAGE)
    print(PAGE)


def run(arguments):
    """The results of the tests, one dictionary each."""
    import pytest
    from stand_ins import save_models

    save_models()
    options = ["-q", "-c", os.devnull, "--rootdir", str(HERE), "-p", "plugin", "-p", "no:cacheprovider"]
    if not arguments:
        options += ["-n", "auto", "--tb=no", "--no-summary"]
    pytest.main([*options, *arguments, str(HERE / "cases.py")])
    with open(os.environ["PEFT_SUITE_RESULTS"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main(sys.argv[1:])
