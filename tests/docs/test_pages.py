"""The Python code of the README and the site's pages runs, block after block, with tiny models in the place of those of the Hub."""

import contextlib
import io
import re

import pytest
from site_pages import PAGES, README, ROOT, become_reader, prepare, python_blocks

from peft_audio.backbones import table


# Blocks that cannot run here, by their first line, with the reason.
NOT_RUN = {
    "from peft_audio.backbones import contrib": "the model's code is on the Hub; tests/backbones/test_contrib.py runs such models",
}
WITH_CODE = [name for name, path in PAGES.items() if any(python_blocks(path.read_text(encoding="utf-8")))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def reader(prepared, tmp_path, monkeypatch):
    become_reader(prepared, tmp_path, monkeypatch)
    monkeypatch.setattr(table, "BACKBONES", dict(table.BACKBONES))  # a page adds to it


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs(name, reader):
    variables, path = {"__name__": "__main__"}, PAGES[name]
    for line, code in python_blocks(path.read_text(encoding="utf-8")):
        if code.splitlines()[0] in NOT_RUN:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), variables)


def test_blocks_are_found():
    text = "a\n```python\nx = 1\n\ny = 2\n```\n\n- b\n\n    ```python\n    z = 3\n    ```\n"
    assert list(python_blocks(text)) == [(3, "x = 1\n\ny = 2"), (11, "z = 3")]


def test_what_is_not_run_is_there():
    starts = {code.splitlines()[0] for path in PAGES.values() for _, code in python_blocks(path.read_text("utf-8"))}
    assert NOT_RUN.keys() <= starts


def test_the_table_of_tasks_is_the_readmes():
    readme = README.read_text(encoding="utf-8")
    table = readme[readme.index("| model type | classes |") :].split("\n\n")[0]
    assert table in PAGES["backbones.md"].read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("https://")]
    assert len(links) > 10 and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", PAGES)
def test_commands_on_a_page_are_of_files_and_targets_that_exist(name):
    text = PAGES[name].read_text(encoding="utf-8")
    scripts = re.findall(r"\bpython ([\w/]+\.py)\b", text)
    # In a recipe's own folder, or one that the text names before.
    folders = (ROOT, ROOT / "examples", ROOT / "method_comparison")
    assert not [script for script in scripts if not any((folder / script).exists() for folder in folders)]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert not set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) - set(targets)
