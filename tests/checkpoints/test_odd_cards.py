"""The weights are saved whatever is wrong with a model card, and what people wrote stays."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model
from tiny import METHODS, make

from peft_audio.checkpoints.model_card import write_card
from peft_audio.utils import atomic_files
from peft_audio.utils.atomic_files import written_together


BEGIN, END = "<!-- peft_audio: adapter -->", "<!-- peft_audio: end of adapter -->"
CARDS = {
    "numbers as tags": b"---\ntags: [1, 2.5]\n---\nmine",
    "nothing as a tag": b"---\ntags: [null]\n---\nmine",
    "one tag": b"---\ntags: music\n---\nmine",
    "tags of tags": b"---\ntags: {a: b}\n---\nmine",
    "not UTF-8": "---\ntags: [a]\n---\nmine é".encode("latin-1"),
    "a list": b"---\n[1, 2]\n---\nmine",
    "no YAML": b"---\n{ : [\n---\nmine",
    "empty": b"",
}


@pytest.fixture(scope="module")
def model():
    return get_peft_model(make("wav2vec2"), METHODS["ipet"]())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CARDS)
def test_odd_cards_never_stop_the_weights(model, case, tmp_path):
    (tmp_path / "README.md").write_bytes(CARDS[case])
    for _ in range(2):
        model.save_pretrained(tmp_path)
        assert (tmp_path / "adapter_model.safetensors").is_file() and (tmp_path / "adapter_config.json").is_file()
    text = (tmp_path / "README.md").read_text("utf-8")
    assert BEGIN in text and text.count(BEGIN) == 1
    kept = [path.read_bytes() for path in tmp_path.glob("README*")]
    assert any(b"mine" in content for content in kept) or case == "empty"
    if case == "not UTF-8":
        assert CARDS[case] in kept
    if case in ("numbers as tags", "one tag"):
        tags = ModelCard.load(tmp_path / "README.md").data.to_dict()["tags"]
        assert set(tags) > ({"1", "2.5"} if case == "numbers as tags" else {"music"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CARDS)
def test_odd_cards_never_stop_the_trainers_card(model, case, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(CARDS[case])
    model.create_or_update_model_card(str(tmp_path))
    assert BEGIN in (tmp_path / "README.md").read_text("utf-8")
    assert any(b"mine" in path.read_bytes() for path in tmp_path.glob("README*")) or case == "empty"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", [b"[1, 2]", b"{", b"\xff\xfe", b'{"sampling_rate": "many"}', b"[" * 100_000])
def test_odd_feature_extractors_never_stop_the_weights(model, content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and (tmp_path / "README.md").is_file()
    assert (tmp_path / "preprocessor_config.json").read_bytes() == content


def test_a_part_without_its_end_is_a_persons_text(model, tmp_path):
    (tmp_path / "README.md").write_text(f"Before.\n\n{BEGIN}\n\nA person's text.\n")
    for _ in range(3):
        model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Before." in text and "A person's text." in text and text.count(END) == 1


def test_labels_of_strangers_are_text(tmp_path):
    base = make("wav2vec2")
    hostile = [END, "<script>alert(1)</script>", "# heading\n\n# another", "[link](http://x)", "```\ncode\n```"]
    base.config.id2label = dict(enumerate(hostile))
    model = get_peft_model(base, METHODS["ipet"]())
    model.peft_config["default"].auto_mapping = {
        "base_model_class": "A\nimport os\nos.system('x')",
        "parent_library": "y",
    }
    sizes = []
    for _ in range(3):
        model.save_pretrained(tmp_path)
        sizes.append((tmp_path / "README.md").stat().st_size)
    text = (tmp_path / "README.md").read_text()
    assert len(set(sizes)) == 1 and text.count(END) == 1
    assert "<script>" not in text and "\n# another" not in text and "[link](" not in text
    assert "import os" not in text
    for block in text.split("```python\n")[1:]:
        compile(block.split("\n```")[0], "card", "exec")


def test_results_survive_a_save(model, tmp_path):
    model.save_pretrained(tmp_path)
    write_card(tmp_path, training="Ten epochs.", results={"accuracy": 0.5})
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Ten epochs." in text and "| accuracy | 0.5000 |" in text


# ---- several at once -------------------------------------------------------------------------------------------------


NAMES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def save_often(folder, number):
    for turn in range(12):
        with written_together(folder) as staged:
            for name in NAMES:
                (staged / name).write_text(f"{number}, {turn}")


def test_savers_with_one_folder_all_succeed_and_the_last_one_wins_whole(tmp_path):
    folder = tmp_path / "adapter"
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        for future in [pool.submit(save_often, folder, number) for number in range(8)]:
            future.result(60)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert len({(folder / name).read_text() for name in NAMES}) == 1
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_what_stands_at_the_place_of_a_temporary_folder_is_left(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("stray", f"{atomic_files._place()}-999999999-0-x"):  # the second: as of a process that has ended
        (folder / f".saving-{name}").symlink_to(elsewhere)
    for number in range(2):
        with written_together(folder) as staged:
            for name in NAMES:
                (staged / name).write_text(str(number))
    assert (elsewhere / "precious").read_text() == "mine"
    assert [path.name for path in folder.iterdir() if path.is_symlink()] == [".saving-stray"]
    assert {(folder / name).read_text() for name in NAMES} == {"1"}


@pytest.mark.filterwarnings("ignore")
def test_a_hostile_trainer_state_is_not_complete(tmp_path):
    from peft_audio import last_complete_checkpoint

    for step, content in {
        10: json.dumps({"global_step": 10}),
        20: "[" * 100_000,
        30: '{"global_step": ' + "9" * 5000 + "}",
        40: '{"global_step": "40"}',
        50: "[]",
        60: '{"global_step": {}}',
    }.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(content)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
