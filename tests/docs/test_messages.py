"""Every error message of the package has an entry under Troubleshooting, which quotes its fixed part."""

import ast
import re
from pathlib import Path

from site_pages import DOCS

import peft_audio


PACKAGE = Path(peft_audio.__file__).parent
VARIES = "..."
# A quote with a shorter fixed part stands only for the message that is no more than that.
SHORTEST = 12
# Classes of errors that never reach a user, with what becomes of them.
CAUGHT = {
    "_ReachedError": "ends the forward pass at the split point, in cache_frozen",
    "NotCoveredError": "is the reason in a warning that the feature extractor itself computes the features",
    "AttributeError": "is what Python asks of __getattr__",
}
# Errors whose text comes from elsewhere, with the place where it does.
PASSED_ON = {
    "OSError(error.errno)": "the operating system's message, with the folder",
    "BadAudioError(bad_files)": "the reasons of the files, by name",
    "BadAudioError({name: str(error)})": "the reason of the file",
    "self._cannot_write(error)": "the operating system's message, with the folder",
    "UsageError(' '.join(text.split()))": "another error, in one line",
    "UsageError(f'--{one_line(error)}')": "another error, in one line",
    "UsageError(str(error))": "another error, as it is",
}
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [path.read_text(encoding="utf-8") for path in sorted((DOCS / "troubleshooting").glob("*.md"))]
QUOTES = [line for page in PAGES for block in BLOCK.findall(page) for line in block.splitlines()]


def template(node, texts=None):
    """The text of an expression, with `...` for all that is not fixed; `texts` are those of variables."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, texts) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, texts)
    if isinstance(node, ast.BinOp):
        return template(node.left, texts) + template(node.right, texts)
    if isinstance(node, ast.IfExp):
        return template(node.body, texts)
    return (texts or {}).get(node.id, VARIES) if isinstance(node, ast.Name) else VARIES


def texts_of(function):
    """The texts that a function gives to variables, by name; those that it gives several count as not fixed."""
    found = [(node.targets[0], node.value) for node in ast.walk(function) if isinstance(node, ast.Assign)]
    names = [target.id for target, _ in found if isinstance(target, ast.Name)]
    return {
        target.id: template(value)
        for target, value in found
        if isinstance(target, ast.Name)
        and names.count(target.id) == 1
        and isinstance(value, ast.JoinedStr | ast.Constant)
    }


def fixed_parts(text):
    """What stands between the parts that vary; a dot at the end of a sentence may follow `...` as well as not."""
    parts = re.split(r"(?:\.\.\.)+", " ".join(text.split()))
    return [part.strip() for part in parts if re.search("[A-Za-z]", part)]


def is_covered(message, quote):
    parts, wanted = fixed_parts(message), fixed_parts(quote)
    if [part.strip(".") for part in parts] == [part.strip(".") for part in wanted]:
        return True
    pattern = ".*?".join(re.escape(part) for part in wanted)
    return max(map(len, wanted)) >= SHORTEST and re.search(pattern, VARIES.join(parts)) is not None


def raised():
    """(place, call, message) of every error that the package makes where it raises it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        functions = [
            node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
        ]
        for function in functions:
            texts = texts_of(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    message = template(node.exc.args[0], texts)
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.exc, message


def messages():
    """(place, message) of the errors that users meet."""
    for place, call, message in raised():
        if ast.unparse(call.func) not in CAUGHT and fixed_parts(message):
            yield place, message


def test_every_message_has_an_entry():
    missing = [f"{place} {text}" for place, text in messages() if not any(is_covered(text, q) for q in QUOTES)]
    assert not missing, "docs/troubleshooting has no entry that quotes (with ... for what varies) " + "\n".join(
        missing
    )


def test_no_entry_is_of_a_message_that_is_gone():
    texts = [text for _, text in messages()]
    assert len(texts) > 200
    assert [quote for quote in QUOTES if not any(is_covered(text, quote) for text in texts)] == []


def test_every_text_that_comes_from_elsewhere_is_known():
    unknown = [
        f"{place} {ast.unparse(call.func)}({ast.unparse(call.args[0])})"
        for place, call, message in raised()
        if ast.unparse(call.func) not in CAUGHT and not fixed_parts(message)
    ]
    assert {line.split(" ", 1)[1] for line in unknown} == PASSED_ON.keys(), unknown


def test_a_quote_covers_its_message_alone():
    message = template(ast.parse('f"`{name}` must be above {low} here, got {value}. Take more."').body[0].value)
    assert message == "`...` must be above ... here, got .... Take more."
    assert is_covered(message, "`...` must be above ... here, got ...")
    assert is_covered(message, "must be above")
    assert not is_covered(message, "`...` must be ..., got ...")  # too little is fixed
    assert not is_covered(message, "`...` must be below ... here, got ...")
    assert is_covered("no clip.", "no clip") and not is_covered("no clip has it", "no clip")
