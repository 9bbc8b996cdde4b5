"""The page of results: how many of PEFT's tests each method passes of those that LoRA passes on the same models."""

import re
from collections import Counter, defaultdict

from reasons import reason_of
from subjects import CONTROL, METHOD_NAMES


INTRODUCTION = """# PEFT's own tests

    make test-peft

runs the tests of the installed PEFT ({version}) with the methods of this package in the place of LoRA, and with LoRA itself
beside them. Tiny audio models take the place of PEFT's text and toy models: they take the same inputs, and have encoder layers
where those have linear ones. All tests run on AST; those in `tests/peft_suite/cases.py` with `backbones` on wav2vec2 too. None
of PEFT's code is here: its classes are imported from its source distribution, and this page is written by the command.

A test **applies** if LoRA passes it on the same model and no reason below stands against it; {other} of the tests that were
run fail or are skipped for LoRA too (text generation, token inputs, names of the toy models' layers, files of the Hub).

A method's configuration that is used for a second model is copied, since the package fills in what belongs to the model (its
head, labels and input length). `test_from_pretrained_config_construction` expects the caller's object there. A name in
`modules_to_save` that is a path means that module alone, and is kept with a mark (`^lin1`) where PEFT would take others by it,
of which `test_delete_adapter_multiple_adapters_with_modules_to_save` knows nothing. In mixed batches
with prompts each adapter runs on its own samples, which changes logits by up to 2e-6, and PEFT's tests allow 1e-8 + 1e-5 of
the value.

## Counts
"""


def write_report(lines, version, path):
    """Write the page for lines as `plugin.Recorder` leaves them."""
    tests = by_test(lines)
    controlled = {key: found for key, found in tests.items() if passed(found.get(CONTROL))}
    outcomes = classify(controlled)
    other = len(tests) - len(controlled)
    parts = [INTRODUCTION.format(version=version, other=other)]
    parts += [counts_by_method(controlled, outcomes), counts_by_suite(controlled, outcomes)]
    parts += ["## Tests that fail\n", failures(outcomes), "## Tests that cannot apply\n", reasons(outcomes)]
    path.write_text("\n".join(parts), encoding="utf-8")


def by_test(lines):
    """By suite, test, case and backbone, the line of each method; tests that made no configuration are left out."""
    tests = defaultdict(dict)
    for line in lines:
        tests[line["suite"], line["test"], line["case"], line["backbone"]][line["method"]] = line
    return {key: found for key, found in tests.items() if any(line["configurations"] for line in found.values())}


def passed(line):
    return line is not None and line["outcome"] == "passed"


def classify(controlled):
    """For each method: what it passes, what cannot apply (with the reason), and what fails."""
    outcomes = {method: {"passed": [], "not": [], "failed": []} for method in (CONTROL, *METHOD_NAMES)}
    for key, found in controlled.items():
        for method, line in found.items():
            kind = "passed" if passed(line) else "not" if reason_of(line) else "failed"
            outcomes[method][kind].append((key, line))
    return outcomes


def table(header, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def counts_by_method(controlled, outcomes):
    rows = []
    for method, kinds in outcomes.items():
        numbers = {kind: len(found) for kind, found in kinds.items()}
        applying = numbers["passed"] + numbers["failed"]
        rows.append([method, len(controlled), numbers["not"], applying, numbers["passed"], numbers["failed"]])
    return table(["method", "passed by LoRA", "cannot apply", "apply", "passed", "failed"], rows)


def counts_by_suite(controlled, outcomes):
    """Passed of those that apply, for each of PEFT's classes."""
    suites = list(dict.fromkeys(key[0] for key in controlled))
    rows = []
    for suite in suites:
        cells = []
        for kinds in outcomes.values():
            numbers = {kind: sum(key[0] == suite for key, _ in kinds[kind]) for kind in ("passed", "failed")}
            cells.append(f"{numbers['passed']} of {sum(numbers.values())}")
        rows.append([suite.removeprefix("Test"), *cells])
    return table(["tests", *outcomes], rows)


def failures(outcomes):
    """Each test that fails, with the methods and backbones, and the end of its message."""
    found = defaultdict(list)
    for method, kinds in outcomes.items():
        for (suite, test, case, backbone), line in kinds["failed"]:
            found[suite, test, case].append((method, backbone, line["message"]))
    rows = []
    for (suite, test, case), runs in sorted(found.items()):
        methods = ", ".join(dict.fromkeys(method for method, _, _ in runs))
        where = ", ".join(dict.fromkeys(backbone for _, backbone, _ in runs))
        rows.append([f"{suite.removeprefix('Test')}: `{test}` {case}", methods, where, short(runs[0][2])])
    return table(["test", "methods", "on", "message"], rows) if rows else "None.\n"


def short(message):
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(message.split())).replace("|", "\\|").replace("<", "&lt;")
    return text[:160] + ("..." if len(text) > 160 else "")


def reasons(outcomes):
    """How often each reason was given, over all methods, and by which tests."""
    counts, tests = Counter(), defaultdict(set)
    for kinds in outcomes.values():
        for (_, test, _, _), line in kinds["not"]:
            counts[reason_of(line)] += 1
            tests[reason_of(line)].add(f"`{test}`")
    rows = [[reason, count, ", ".join(sorted(tests[reason]))] for reason, count in counts.most_common()]
    return table(["reason", "times", "tests"], rows)
