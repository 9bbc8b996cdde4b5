"""The comparison on recognition, on a tiny Whisper: what is run and kept, how rates are chosen, what the tables say."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import comparison_runs
import numpy as np
import pytest
import recognition
import recognition_corpus
import soundfile
import transformers
from comparison_runs import read_records
from recognition import main
from recognition_corpus import SEEN, TEST, TRAIN, UNSEEN, VALIDATION, sentences
from recognition_report import by_voice, chosen_rates, difference, error_rate, rates_table, table
from recognition_rows import BASE, BASE_30, ROWS, TRAINED, adapted
from sounds import tone
from speech import TEXTS, save_whisper
from transformers.utils import logging

from peft_audio.trainer import METHODS, UsageError, parameter_counts


SPLITS = {TRAIN: ("m1", "f1"), VALIDATION: ("m6",), TEST: ("m3", "f5")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    save_whisper(folder / "whisper")
    lines = ["file_name,transcription,split"]
    for split, voices in SPLITS.items():
        for voice in voices:
            for index, (label, text) in enumerate(TEXTS.items()):
                path = folder / "data" / split / voice / f"{(SEEN, UNSEEN)[index % 2]}-{index}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, tone(label, seed=index), 16000)
                lines.append(f"{path.relative_to(folder / 'data')},{text},{split}")
    (folder / "data" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def no_processes(monkeypatch):
    """Runs are trained in this process: new ones would import everything again."""
    monkeypatch.setattr(comparison_runs, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.mark.usefixtures("no_processes")
def test_an_interrupted_comparison_goes_on_and_seeds_take_the_chosen_rate(workspace, tmp_path, capsys):
    command = ["--model_name_or_path", str(workspace / "whisper"), "--data_dir", str(workspace / "data")]
    command += ["--output_dir", str(tmp_path), "--methods", BASE, "mlp_both", "--seeds", "0", "1"]
    records = main(command)
    runs = [(record["row"], record["learning_rate"], record["seed"]) for record in records]
    chosen = chosen_rates(records)["mlp_both"]
    tried = [("mlp_both", rate, 0) for rate in ROWS["mlp_both"].rates]
    assert runs == [(BASE, None, 0), *tried, ("mlp_both", chosen, 1)]
    for record in records:
        assert len(record[TEST]["names"]) == 6
        assert (VALIDATION in record) == (record["row"] != BASE and record["seed"] == 0)
        assert {name.split("/")[0] for name in record[TEST]["names"]} == {TEST}
        wrong, words, _, _ = np.sum(record[TEST]["counts"], axis=0)
        assert words == 2 * len(record[TEST]["names"]) and record["wer"] == pytest.approx(wrong / words)
    base, trained = records[0], records[-1]
    assert base["checkpoint_bytes"] == base["trainable_parameters"] == 0
    assert trained["checkpoint_bytes"] > 4 * trained["trainable_parameters"] > 0 and trained["train_loss"] > 0
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])  # killed while it wrote
    assert len(read_records(path)) == 3
    again = main(command)
    assert again[:3] == records[:3] and again[3][TEST] == records[3][TEST]  # the same seed, the same result
    capsys.readouterr()
    main(["--output_dir", str(tmp_path), "--table"])
    printed = capsys.readouterr().out
    assert ROWS["mlp_both"].title in printed and f"**{chosen:g}**" in printed


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UsageError, match="--data_dir is missing"):
        main(["--output_dir", str(tmp_path)])
    with pytest.raises(UsageError, match="--table: there is no"):
        main(["--output_dir", str(tmp_path), "--table"])


def test_numbers_and_punctuation_do_not_count(workspace):
    class Heard:
        label_ids = np.arange(2)
        metrics = {"test_loss": 1.0}
        predictions = None

    class Clips:
        texts, names = ["Ask Bergstrom for 217 tickets.", "It costs 42 dollars."], ["a", "b"]

    said = ["ask bergstrom, for two hundred seventeen tickets", "It costs $43"]
    tokenizer = transformers.WhisperTokenizer.from_pretrained(workspace / "whisper")
    tokenizer.batch_decode = lambda tokens, **_: said
    Heard.predictions = np.zeros((2, 1), dtype=int)
    trainer = type("Trainer", (), {"predict": lambda self, dataset: Heard})()
    tested = recognition.tested_on(trainer, Clips, tokenizer)
    assert [row[:2] for row in tested["counts"]] == [[0, 5], [1, 3]]
    assert tested["heard"] == said


# ---- the corpus --------------------------------------------------------------------------------------------------------


def test_no_voice_sentence_or_wording_is_in_two_splits():
    parts = {split: sentences(split) for split in SPLITS}
    for kind in ("variant", "text"):
        values = {split: {getattr(sentence, kind) for sentence in part} for split, part in parts.items()}
        assert len(set.union(*values.values())) == sum(map(len, values.values())), kind
    wordings = [wording for split in SPLITS for wording in recognition_corpus.WORDINGS[split]]
    assert len(set(wordings)) == len(wordings)
    assert len({sentence.variant for part in parts.values() for sentence in part}) >= 8
    assert len({sentence.text for sentence in parts[TEST]}) == len(parts[TEST]) == 96


def test_unseen_names_are_in_no_training_sentence():
    trained = " ".join(sentence.text for sentence in sentences(TRAIN))
    for part in (VALIDATION, TEST):
        kinds = [sentence.names for sentence in sentences(part)]
        assert kinds.count(SEEN) == kinds.count(UNSEEN)
    for names in (recognition_corpus.PEOPLE, recognition_corpus.PLACES):
        assert not [name for name in names[UNSEEN] if name in trained]
        assert not [name for name in names[SEEN] if name not in trained]


def test_the_corpus_is_an_audiofolder_whose_clips_fit_the_input(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the voices are those of eSpeak NG")
    monkeypatch.setattr(recognition_corpus, "SENTENCES", dict.fromkeys(SPLITS, 1))
    recognition_corpus.main([str(tmp_path / "corpus")])
    table = recognition.read_audiofolder(tmp_path / "corpus", text_column="transcription")
    assert len(table.clips) == sum(map(len, recognition_corpus.VOICES.values()))
    assert {clip.split for clip in table.clips} == set(SPLITS)
    for clip in table.clips:
        assert 1 < soundfile.info(clip.source).duration < ROWS[BASE].seconds
    with pytest.raises(ValueError, match="is there already"):
        recognition_corpus.write_corpus(tmp_path / "corpus")


# ---- rows and tables ---------------------------------------------------------------------------------------------------


def test_adapters_have_equal_sizes_and_every_method_as_many_tries():
    sizes = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in
             {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}.items()}  # fmt: skip
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = transformers.WhisperConfig(d_model=384, vocab_size=60, **sizes, **ids)
    counts = {}
    for name in TRAINED:
        assert ROWS[name].method in METHODS and len(ROWS[name].rates) == len(ROWS["full"].rates)
        model = adapted(transformers.WhisperForConditionalGeneration(config), ROWS[name])
        counts[name] = parameter_counts(model)["trainable_parameters"]
        in_decoder = any(".decoder." in key for key, value in model.named_parameters() if value.requires_grad)
        assert in_decoder == (name in ("lora_both", "mlp_both", "full")), name
    adapters = [count for name, count in counts.items() if name != "full"]
    assert max(adapters) < 1.04 * min(adapters) and counts["full"] > 10 * max(adapters)


def record(row, rate, seed, validation, test):
    """A run with these wrong words of four in each of two clips, a seen and an unseen name."""
    names = [f"a/m3/{SEEN}-1.wav", f"a/f5/{UNSEEN}-2.wav"]
    parts = {
        part: {"names": names, "counts": [[wrong, 4, wrong, 20] for wrong in counts], "loss": 0.5}
        for part, counts in {VALIDATION: validation, TEST: test}.items()
    }
    more = {"train_loss": 0.25, "seconds": 7.0, "trainable_parameters": 1234, "checkpoint_bytes": 5678}
    return {"row": row, "learning_rate": rate, "seed": seed, **parts, **more}


RECORDS = [
    record(BASE, None, 0, (4, 4), (4, 8)),
    record("ipet", 1e-3, 0, (1, 1), (2, 2)),
    record("ipet", 3e-3, 0, (1, 2), (0, 0)),  # better on the test clips, which must not choose
    record("ipet", 1e-3, 1, (4, 4), (0, 2)),
]


def test_validation_clips_choose_the_rate():
    assert chosen_rates(RECORDS) == {"ipet": 1e-3}
    header, rows = rates_table(RECORDS)
    title = ROWS["ipet"].title
    assert rows == [[title, "**0.001**", "25.0", "0.50", "0.25"], [title, "0.003", "37.5", "0.50", "0.25"]]
    assert len(header) == len(rows[0])


def test_the_table_has_means_and_spread_of_the_chosen_runs():
    chosen = {BASE: RECORDS[:1], "ipet": [RECORDS[1], RECORDS[3]]}
    header, (base, ipet) = table(chosen)
    told = dict(zip(header, ipet, strict=True))
    assert told["WER %"] == "37.5 ± 17.7" and told["of the seeds"] == "50.0, 25.0"
    assert (told["names seen"], told["names unseen"]) == ("25.0", "50.0")
    assert (told["trainable"], told["checkpoint, bytes"], told["seeds"]) == ("1,234", "5,678", "2")
    assert dict(zip(header, base, strict=True))["WER %"] == "150.0"
    assert by_voice(chosen) == (["method", "m3", "f5"], [[ROWS[BASE].title, "100.0", "200.0"],
                                                          [ROWS["ipet"].title, "25.0", "50.0"]])  # fmt: skip


def test_differences_are_paired_over_clips():
    ours = [record("ipet", 1e-3, 0, (0, 0), (3, 7))]
    assert difference(ours, RECORDS[:1]) == "-25.0 (-25.0 to -25.0)"  # one word less in every clip
    assert difference([], RECORDS[:1]) == difference(ours, []) == "-"
    assert np.isnan(error_rate(ours, TEST, lambda name: False))
    assert BASE_30 in ROWS and ROWS[BASE_30].seconds == 30
    assert json.dumps(ours)


def test_every_table_of_the_page_is_printed_by_the_command(capsys):
    folder = Path(recognition.__file__).parents[1] / "docs" / "recognition"
    main(["--output_dir", str(folder), "--table"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    page = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) > 20
    assert [line for line in page if line.startswith("|")] == printed
