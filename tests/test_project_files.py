"""The files beside the code: what the formats ask for, and that they say the same as the code."""

import re
from pathlib import Path

import pytest
import yaml

import peft_audio
from peft_audio.methods import citations


ROOT = Path(__file__).parents[1]
PAPERS = {name: entry for name, entry in vars(citations).items() if name.isupper()}
# Of the Citation File Format 1.2.0, https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema.json
REQUIRED = {"authors", "cff-version", "message", "title"}
REQUIRED_OF_REFERENCES = {"authors", "title", "type"}
FIELDS = REQUIRED | {"abstract", "keywords", "license", "references", "repository-code", "type", "url", "version"}
FIELDS_OF_REFERENCES = REQUIRED_OF_REFERENCES | {"collection-title", "identifiers", "notes", "url", "year"}
FIELDS_OF_PEOPLE = {"family-names", "given-names", "orcid", "affiliation"}
FIELDS_OF_ENTITIES = {"name", "website"}
REFERENCE_TYPES = {"article", "conference-paper"}
IDENTIFIER_TYPES = {"doi", "url", "swh", "other"}
# Of GitHub's issue forms, by type the attributes that they need.
FORM_ELEMENTS = {
    "markdown": {"value"},
    "textarea": {"label"},
    "input": {"label"},
    "dropdown": {"label", "options"},
    "checkboxes": {"label", "options"},
}
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def field_of(entry, name):
    return re.search(rf"^  {name} = {{(.*)}},?$", entry, re.MULTILINE)[1]


def test_the_citation_is_as_the_format_asks(citation):
    assert REQUIRED <= set(citation) <= FIELDS
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == peft_audio.__version__
    for reference in citation["references"]:
        assert REQUIRED_OF_REFERENCES <= set(reference) <= FIELDS_OF_REFERENCES
        assert reference["type"] in REFERENCE_TYPES and isinstance(reference["year"], int)
        assert re.fullmatch(r"https://\S+", reference["url"])
        assert all(found["type"] in IDENTIFIER_TYPES and found["value"] for found in reference["identifiers"])
    for author in [*citation["authors"], *(author for entry in citation["references"] for author in entry["authors"])]:
        assert set(author) <= FIELDS_OF_PEOPLE or set(author) <= FIELDS_OF_ENTITIES


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_is_cited_as_in_the_cards_of_adapters(citation, name):
    entry = PAPERS[name]
    (reference,) = [
        one for one in citation["references"] if one["identifiers"][0]["value"] == f"arXiv:{field_of(entry, 'eprint')}"
    ]
    assert reference["url"] == f"https://arxiv.org/abs/{field_of(entry, 'eprint')}"
    assert reference["title"] == re.sub("[{}]", "", field_of(entry, "title"))
    assert str(reference["year"]) == field_of(entry, "year")
    people = [f"{author['family-names']}, {author['given-names']}" for author in reference["authors"]]
    assert " and ".join(people) == field_of(entry, "author")
    assert all(hasattr(peft_audio, word) for word in re.findall(r"\w+Config\b", reference["notes"]))


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_are_as_github_reads_them(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [element["id"] for element in form["body"] if element["type"] != "markdown"]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]+", name) for name in ids)
    for element in form["body"]:
        assert FORM_ELEMENTS[element["type"]] <= set(element["attributes"])
        options = element["attributes"].get("options", [])
        # What YAML reads as true, false or a number is refused by GitHub.
        assert all(isinstance(option, str) for option in options) and len(options) == len(set(options))


def test_commands_that_the_guide_names_are_there():
    guide, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "Makefile"))
    targets = set(re.findall(r"`make ([\w-]+)`", guide))
    assert {"lint", "test", "release"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    paths = {path for path in re.findall(r"`([\w./]+\.(?:py|toml|sh|md|cff))`", guide) if "/" in path}
    assert paths and all((ROOT / path).exists() for path in paths)


def test_the_changelog_is_grouped():
    """As https://keepachangelog.com has it: versions from new to old, changes below what kind they are."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?([\d.]+|Unreleased)\]?", text, re.MULTILINE)
    assert peft_audio.__version__ in versions
    groups = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(groups) <= CHANGES
    before_groups = text.partition("## ")[2].partition("### ")[0]
    assert groups and "\n- " not in before_groups
