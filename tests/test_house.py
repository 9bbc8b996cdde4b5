"""How large a file and a function may be: small enough to be read in one sitting."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = ("peft_audio", "examples", "method_comparison", "benchmarks", "metrics", "tests", "docs")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 40
FILES = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def too_large(source):
    """Names of the functions that are too long, decorators not counted, and "the file" if it is."""
    names = ["the file"] * (len(source.splitlines()) > MAX_FILE_LINES)
    for node in ast.walk(ast.parse(source)):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if is_function and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
            names.append(node.name)
    return names


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name):
    excess = too_large(FILES[name].read_text(encoding="utf-8"))
    assert not excess, f"{name}, {excess}: at most {MAX_FILE_LINES} lines a file and {MAX_FUNCTION_LINES} a function."


def test_what_is_too_long_is_found():
    def function(name, lines):
        return f"    def {name}():\n" + "        pass\n" * (lines - 1)

    source = "class Class:\n" + function("short", 40) + function("long", 41)
    assert too_large(source) == ["long"]
    assert too_large("\n" * 400) == [] and too_large("\n" * 401) == ["the file"]
