"""The pages of the methods: figures, fields and citations are those of the code."""

import dataclasses
import importlib.util
import re

import pytest
from site_pages import DOCS

from peft_audio import methods
from peft_audio.methods import citations
from peft_audio.trainer import METHODS


CONFIGS = {
    "bottleneck": "BottleneckAdapterConfig",
    "conv_adapter": "TimeFreqConvAdapterConfig",
    "embedding_prompt": "EmbeddingPromptConfig",
    "input_prompt": "InputPromptConfig",
    "ipet": "IPETConfig",
    "parallel_mlp": "ParallelMLPAdapterConfig",
    "side_network": "SideNetworkConfig",
}
SHARED = {field.name for field in dataclasses.fields(methods.EncoderAdapterConfig)}
HEADINGS = ["Equation", "Defaults, and why", "Parameters", "Against LoRA", "Measured", "Citation"]


def load_drawing():
    spec = importlib.util.spec_from_file_location("draw", DOCS / "figures" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page):
    return (DOCS / "methods" / f"{page}.md").read_text(encoding="utf-8")


def config_of(page):
    import peft_audio

    return getattr(peft_audio, CONFIGS[page])


def test_every_method_has_a_page():
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == {*CONFIGS, "index"}
    classes = {method.config_class.__name__ for method in METHODS.values() if method.config_class}
    assert set(CONFIGS.values()) == classes - {"LoraConfig"}


@pytest.mark.parametrize("page", CONFIGS)
def test_a_page_has_its_parts(page):
    text = text_of(page)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert f"(../figures/{page}.svg)" in text
    assert all(entry in text for entry in config_of(page).citations)
    assert [
        entry
        for entry in re.findall("```bibtex\n(.*?)\n```", text, re.DOTALL)
        if entry not in vars(citations).values()
    ] == []


@pytest.mark.parametrize("page", sorted(CONFIGS.keys() - {"ipet"}))
def test_a_page_names_every_field_of_its_own(page):
    own = {field.name for field in dataclasses.fields(config_of(page))} - SHARED
    assert [name for name in sorted(own) if f"`{name}" not in text_of(page)] == []


@pytest.mark.parametrize("page", CONFIGS)
def test_the_defaults_on_a_page_are_the_codes(page):
    """Settings `name=value` in the list of defaults, unless the sentence is about others."""
    section = text_of(page).split("## Defaults, and why")[1].split("## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(("- `", "`prompt_size"))]
    config = config_of(page)()
    found = [setting for line in lines for setting in re.findall(r"`(\w+)=([^`]+)`", line.split(":")[0])]
    assert found or page == "ipet"
    for name, value in found:
        assert getattr(config, name) == eval(value), f"{name}={value}"


def test_the_figures_are_what_the_script_draws():
    drawing = load_drawing()
    files = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "figures").glob("*.svg")}
    assert files == {name: draw().svg() for name, draw in drawing.FIGURES.items()}


def test_the_table_of_methods_is_that_of_the_scripts():
    names = set(re.findall(r"`([a-z_]+)`", text_of("index")))
    assert METHODS.keys() <= names
