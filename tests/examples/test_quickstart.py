"""The tour, once in full with its numbers checked, and what is made of it as a notebook."""

import ast
import contextlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from notebook_cells import default_parameters, main, read_cells, run_cells, to_notebook
from transformers import ASTForAudioClassification
from transformers.utils import logging

import peft_audio


SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
BACKBONE = SCRIPT.parent / "assets" / "ast-tiny-synthetic"
# Of the backbone, and of the adapter that the tour puts on it.
WIDTH, LAYERS, PROMPTS, BOTTLENECK, CLASSES = 128, 4, 4, 32, 8
HEAD = 2 * WIDTH + CLASSES * WIDTH + CLASSES
ADAPTER = LAYERS * (PROMPTS * WIDTH + 2 * BOTTLENECK * WIDTH + BOTTLENECK + WIDTH)


@pytest.fixture(scope="module")
def tour():
    """The variables at the end of the whole tour, and what it prints, in one line."""
    printed = io.StringIO()
    before = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled(), sys.path[:]
    with contextlib.redirect_stdout(printed):
        variables = run_cells(SCRIPT)
    torch.set_num_threads(before[0])
    logging.set_verbosity(before[1])
    if before[2]:
        logging.enable_progress_bar()
    sys.path[:] = before[3]
    return variables, " ".join(re.sub("[│┃]", " ", printed.getvalue()).split())


@pytest.fixture(scope="module")
def backbone():
    return ASTForAudioClassification.from_pretrained(BACKBONE)


# Its numbers


def test_every_step_is_told(tour):
    _, printed = tour
    titles = [line for line in SCRIPT.read_text().splitlines() if re.match(r"# ## \d", line)]
    assert [title.split()[2] for title in titles] == [f"{number}." for number in range(1, 11)]
    places = [printed.index(title.removeprefix("# ## ")) for title in titles]
    assert places == sorted(places)
    assert ", ".join(peft_audio.supported_backbones()) in printed


def test_the_counts_are_those_of_the_equations(tour, backbone):
    variables, printed = tour
    assert f"ast-tiny-synthetic {backbone.num_parameters():,} {LAYERS} {WIDTH} 5.12 s" in printed
    positions = (512 - 256) // 16 * 4 * WIDTH  # those cut off
    old_head = 2 * WIDTH + 95 * WIDTH + 95
    total = backbone.num_parameters() - positions - old_head + 2 * HEAD + ADAPTER  # PEFT counts the frozen head too
    assert f"trainable params: {HEAD + ADAPTER:,} || all params: {total:,} ||" in printed
    assert variables["model"].get_nb_trainable_parameters() == (HEAD + ADAPTER, total)
    assert variables["probe"].get_nb_trainable_parameters()[0] == HEAD


def test_accuracy_starts_at_chance_and_ends_above_the_linear_probe(tour):
    variables, printed = tour
    for name, (model, before, after, seconds) in variables["results"].items():
        trainable = model.get_nb_trainable_parameters()[0]
        assert f"{name} {100 * before:.1f} {100 * after:.1f} {trainable:,} {seconds:.1f}" in printed
        assert 0 <= before < after <= 1 and after > 0.4  # chance is 0.125
    assert variables["results"]["IPET"][2] > variables["results"]["Linear probe"][2]


def test_accuracy_is_that_of_the_reloaded_model(tour):
    variables, _ = tour
    inputs, labels = variables["timing_test"].tensors
    found = variables["logits"].argmax(-1) == labels
    assert float(found.float().mean()) == pytest.approx(variables["results"]["IPET"][2])
    assert variables["identical"] is True and inputs.shape == (160, 256, 64)


def test_the_classes_differ_in_the_half_that_sounds(tour):
    variables, _ = tour
    for index, label in enumerate(variables["TIMING_LABELS"]):
        clip = variables["make_clip"](index, np.random.default_rng(0))
        first, second = (float(np.mean(half**2)) for half in np.split(clip, 2))
        assert clip.dtype == np.float32 and clip.shape == (256 * 160,)
        assert (first > 10 * second) if label.startswith("early") else (second > 10 * first)


def test_the_adapter_is_a_twentieth_of_the_backbone(tour):
    _, printed = tour
    (adapter,) = re.findall(r"timing/adapter_model\.safetensors ([\d,]+)", printed)
    (backbone,) = re.findall(r"for comparison, the backbone ([\d,]+)", printed)
    adapter, backbone = (int(number.replace(",", "")) for number in (adapter, backbone))
    assert backbone == (BACKBONE / "model.safetensors").stat().st_size
    assert 4 * (HEAD + ADAPTER) < adapter < 4 * (HEAD + ADAPTER) + 10_000  # float32, and the names of the tensors


def test_the_pipeline_agrees_with_the_model(tour):
    variables, printed = tour
    probabilities = variables["new_logits"].softmax(-1)
    expected = [(variables["TIMING_LABELS"][i], float(probabilities[i])) for i in probabilities.argsort().flip(0)[:3]]
    found = [(entry["label"], pytest.approx(entry["score"], abs=1e-5)) for entry in variables["predictions"]]
    assert expected == found
    assert f"A new clip of 'late croak': {expected[0][0]}" in printed


def test_two_tasks_have_their_own_adapter_and_head(tour):
    variables, printed = tour
    for name, (enabled, disabled) in variables["scores"].items():
        assert f"{name} {100 * enabled:.1f} {100 * disabled:.1f}" in printed
        assert 0 <= disabled < enabled <= 1 and enabled > 0.3
    assert variables["scores"]["timing"][0] == pytest.approx(variables["results"]["IPET"][2])


def test_a_mixed_batch_gives_each_clip_what_its_adapter_gives_alone(tour):
    variables, _ = tour
    alone = {"timing": variables["model"], "rhythm": variables["rhythm"]}
    assert set(variables["adapter_names"]) == set(alone)
    with torch.inference_mode():
        rows = [
            alone[name].eval()(clip[None]).logits for name, clip in zip(variables["adapter_names"], variables["batch"])
        ]
    torch.testing.assert_close(variables["mixed"], torch.cat(rows))


def test_fewer_frames_are_fewer_tokens_and_less_time(tour):
    variables, printed = tour
    costs = variables["costs"]
    # Patches of 16 x 16 without overlap over 64 mel bins, and two special tokens.
    assert {length: tokens for length, (tokens, _) in costs.items()} == {n: 64 // 16 * n // 16 + 2 for n in costs}
    assert list(costs) == [512, 256, 128] and costs[512][1] > costs[128][1] > 0
    for length, (tokens, milliseconds) in costs.items():
        assert f"{length} {length / 100} {tokens} {milliseconds:.2f}" in printed


def test_the_backbone_comes_back_bit_for_bit(tour, backbone):
    variables, printed = tour
    plain = variables["plain"].state_dict()
    assert all(name in backbone.state_dict() for name in plain)
    changed = [name for name, tensor in backbone.state_dict().items() if not torch.equal(plain[name], tensor)]
    head = [name for name in plain if name.startswith("classifier.")]
    positions = "audio_spectrogram_transformer.embeddings.position_embeddings"
    assert sorted(changed) == sorted([*head, positions])  # the positions were cut, not trained
    middle = backbone.state_dict()[positions][:, 2:].unflatten(1, (4, 32))[:, :, 8:24].flatten(1, 2)
    assert torch.equal(plain[positions][:, 2:], middle)
    assert f"{len(plain) - len(head)} of {len(plain)} tensors are those of the backbone" in printed


# Its names


def imported_names():
    """(module, name) of everything that the cells import by name."""
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def test_every_name_is_public():
    names = list(imported_names())
    assert not [module for module, _ in names if module.startswith(("peft_audio.", "peft."))]
    assert {name for module, name in names if module == "peft_audio"} <= set(peft_audio.__all__)
    for module in (peft, transformers):
        used = {name for source, name in names if source == module.__name__}
        assert used and used <= set(dir(module))
    attributes = {node.attr for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Attribute)}
    private = {name for name in {*attributes, *(name for _, name in names)} if name.startswith("_")}
    assert private <= {"__file__", "__name__"}


# The notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "quickstart.ipynb"
    main(str(SCRIPT), "", ["--notebook", str(path)])
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_notebook_has_the_cells_of_the_script(notebook):
    markers = [line for line in SCRIPT.read_text().splitlines() if line.startswith("# %%")]
    kinds = ["markdown" if "[markdown]" in marker else "code" for marker in markers]
    assert [cell["cell_type"] for cell in notebook["cells"]] == kinds
    assert all(kinds[index - 1] == "markdown" for index, kind in enumerate(kinds) if kind == "code")
    for cell, part in zip(notebook["cells"], re.split("^# %%.*\n", SCRIPT.read_text(), flags=re.MULTILINE)[1:]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = "\n".join(f"# {line}".rstrip() for line in source.split("\n"))
        assert source == part.rstrip()


def test_the_committed_notebook_is_what_the_script_makes(notebook):
    committed = json.loads(SCRIPT.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert committed == notebook, "delete examples/quickstart.ipynb and make it again with --notebook"


def test_the_notebook_is_valid_and_has_not_been_run(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")
            assert cell["outputs"] == [] and cell["execution_count"] is None
        else:
            assert not {"outputs", "execution_count"} & set(cell)
    tagged = [cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["parameters"]]
    assert len(tagged) == 1 and "EPOCHS" in "".join(tagged[0]["source"])


def test_the_notebook_passes_jupyters_own_check(notebook):
    nbformat = pytest.importorskip("nbformat", reason="it knows the schema of notebooks")
    nbformat.validate(notebook)


def test_in_a_notebook_the_script_runs_its_cells_itself(monkeypatch):
    """Its head hands a script over to the command line, and a session of IPython not."""
    head = SCRIPT.read_text().split("# %%")[0]
    monkeypatch.setattr("notebook_cells.main", lambda path, description: 3)
    with pytest.raises(SystemExit, match="3"):
        exec(head, {"__name__": "__main__", "__file__": "x", "__doc__": ""})
    exec(head, {"__name__": "__main__", "get_ipython": None})


# Cells


SMALL = '''"""Not a cell."""
# %% [markdown]
# # Title
#
# - `code`

# %% tags=["parameters"]
SIZE = 2

# %%
double = 2 * SIZE
print(f"twice {SIZE} is {double}")
'''


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_cells_are_read_and_converted(small):
    cells = read_cells(small)
    assert [(cell.cell_type, cell.line, cell.tags) for cell in cells] == [
        ("markdown", 3, ()),
        ("code", 8, ("parameters",)),
        ("code", 11, ()),
    ]
    assert [cell.source for cell in cells] == ["# Title\n\n- `code`", "SIZE = 2", SMALL.split("# %%\n")[1].rstrip()]
    assert to_notebook(cells)["cells"][0] == {
        "cell_type": "markdown",
        "id": "cell-1",
        "metadata": {},
        "source": ["# Title\n", "\n", "- `code`"],
    }


@pytest.mark.parametrize("arguments, line", [([], "twice 2 is 4"), (["--size", "5"], "twice 5 is 10")])
def test_the_command_line_sets_the_parameters(small, capsys, arguments, line):
    assert default_parameters(small) == {"SIZE": 2}
    main(str(small), "", arguments)
    printed = capsys.readouterr().out
    assert "Title" in printed and "• code" in printed and line in printed
    assert printed.index("Title") < printed.index(line)


def test_a_traceback_points_at_the_script(small):
    small.write_text(SMALL + "1 / 0\n", encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(ZeroDivisionError) as error:
        run_cells(small)
    assert (error.traceback[-1].path, error.traceback[-1].lineno + 1) == (small, len(SMALL.splitlines()) + 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("# %% [raw]\n", r"small.py, line 1: a cell starts with .* got '# %% \[raw\]'"),
        ("x = 1\n# %%x\n", r"small.py, line 2: a cell starts with .* got '# %%x'"),
        ("# %% [markdown]\n# a\n\nb = 1\n", r"small.py, line 4: Markdown cells are comments, got 'b = 1'"),
    ],
)
def test_other_cells_are_refused(small, text, message):
    small.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_cells(small)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--notebook", "old.ipynb"], "old.ipynb: it is there already"),
        (["--notebook", "no/new.ipynb"], "there is no folder no; make it first"),
        (["--size", "0"], "--size must be 1 or more, got 0"),
    ],
)
def test_a_bad_command_line_loses_nothing(small, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(small.parent)
    Path("old.ipynb").write_text("old")
    with pytest.raises(SystemExit, match="2"):
        main(str(small), "", arguments)
    assert message in capsys.readouterr().err
    assert sorted(file.name for file in small.parent.iterdir()) == ["old.ipynb", "small.py"]
    assert Path("old.ipynb").read_text() == "old"
