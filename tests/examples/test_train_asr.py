"""The training script of recognizers: whole runs on tiny models, and what their folders give when they are loaded."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import train_asr
import transformers
from runs import arguments, run_card
from safetensors.torch import load_file
from sounds import tone
from speech import LETTERS, TEXTS, save_encoder, save_whisper, write_transcribed
from train_asr import main

import peft_audio


METHODS = ("ipet", "parallel_mlp", "bottleneck", "time_freq_conv", "lora", "full")
LENGTH = 21  # of what is generated
MODELS = ("whisper", "wav2vec2", "letters")  # with a decoder, bare, with a CTC head
AUTO = {"whisper": "AutoPeftModelForSpeechSeq2Seq"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_transcribed(folder / "data")
    save_whisper(folder / "whisper")
    save_encoder(folder / "wav2vec2")
    save_encoder(folder / "letters", LETTERS, "Hubert")
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train_asr, "plot_curves", lambda *args: None)


def run(workspace, out, *more, model="whisper", method="ipet", data="data"):
    options = ("--per_device_train_batch_size", "3", "--save_strategy", "no", "--eval_strategy", "no", *more)
    options += ("--generation_max_length", str(LENGTH))
    return main(arguments(workspace, out, *options, model=model, method=method, data=data))


def recognized(folder):
    with (folder / "transcriptions.csv").open(newline="", encoding="utf-8") as file:
        return [row["recognized"] for row in csv.DictReader(file)]


def heard(recognize):
    limit = {} if recognize.type == "ctc" else {"generate_kwargs": {"max_new_tokens": LENGTH, "num_beams": 1}}
    return [recognize(tone(list(TEXTS)[index % 3], seed=index), **limit)["text"].strip() for index in (3, 4, 5)]


def pipeline_of(model, **parts):
    return transformers.pipeline("automatic-speech-recognition", model=model, **parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_a_run_leaves_a_recognizer_that_a_pipeline_loads(model, method, workspace, tmp_path, monkeypatch, capsys):
    results = run(workspace, tmp_path, "--learning_rate", "1e-2", model=model, method=method)
    assert {"eval_wer", "eval_cer", "eval_wer_standard_error", "train_loss"} <= results.keys()
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_wer"] == results["eval_wer"]
    texts, processor = recognized(tmp_path), transformers.AutoProcessor.from_pretrained(tmp_path)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    _, variables = run_card(tmp_path, monkeypatch, capsys)
    assert heard(pipeline_of(variables["model"], **parts)) == texts
    if model != "wav2vec2" or method == "full":  # whose class has a load_adapter of its own, for languages
        assert heard(pipeline_of(str(tmp_path))) == texts
    if method not in ("lora", "full"):
        loaded = getattr(peft_audio, AUTO.get(model, "AutoPeftModelForCTC")).from_pretrained(tmp_path)
        assert heard(pipeline_of(loaded, **parts)) == texts


def test_a_new_vocabulary_is_read_from_beside_the_adapter(workspace, tmp_path):
    """transformers' pipeline looks for the tokenizer at the base model, which has none."""
    save_encoder(tmp_path / "bare", kind="Hubert")
    run(workspace, tmp_path / "out", "--learning_rate", "1e-2", model=tmp_path / "bare")
    folder = str(tmp_path / "out")
    parts = {"tokenizer": folder, "feature_extractor": folder}
    assert heard(pipeline_of(folder, **parts)) == recognized(tmp_path / "out")
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    assert set(vocabulary) == {"[PAD]", "[UNK]", "|", *"".join(TEXTS.values())} - {" "}


def test_a_few_clips_are_learned_by_heart(workspace, tmp_path):
    write_transcribed(tmp_path / "data", different=3)
    more = ("--num_train_epochs", "250", "--learning_rate", "3e-3", "--head_learning_rate", "3e-3")
    results = run(workspace, tmp_path / "out", *more, method="full", data=tmp_path / "data")
    assert results["eval_wer"] == results["eval_cer"] == 0
    assert recognized(tmp_path / "out") == [TEXTS["high"], TEXTS["low"], TEXTS["middle"]]


@pytest.mark.parametrize("model", ["whisper", "wav2vec2"])
def test_resuming_ends_where_an_uninterrupted_run_does(model, workspace, tmp_path):
    more = ("--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "9", "--num_train_epochs", "4")
    more += ("--adapter_dropout", "0")
    whole = run(workspace, tmp_path / "whole", *more, model=model)
    checkpoint = ("--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2"))
    resumed = run(workspace, tmp_path / "resumed", *more, *checkpoint, model=model)
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-5)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items())


def test_a_whisper_gets_as_short_as_the_clips(workspace, tmp_path):
    save_whisper(tmp_path / "two", max_source_positions=100)
    path = tmp_path / "two" / "processor_config.json"
    fields = json.loads(path.read_text())
    fields["feature_extractor"] |= {"chunk_length": 2, "n_samples": 32000, "nb_max_frames": 200}
    path.write_text(json.dumps(fields))
    run(workspace, tmp_path / "out", "--max_seconds", "1", model=tmp_path / "two")
    model = peft_audio.AutoPeftModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out")
    assert model.config.max_source_positions == 50
    assert heard(pipeline_of(str(tmp_path / "out"))) == recognized(tmp_path / "out")


def edits(one, other):
    """The smallest number of substitutions, deletions and insertions (Levenshtein)."""
    if not one or not other:
        return len(one) + len(other)
    same = edits(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, edits(one[1:], other) + 1, edits(one, other[1:]) + 1)


def test_error_rates_are_those_of_the_levenshtein_distance():
    said, texts = ["a bird", "big dog", "one cab"], ["a bid", "big big dog", ""]
    score = train_asr.Scorer(said, None, train_asr.CTC, "none")
    pairs = list(zip(said, texts, strict=True))
    counts = np.array([[edits(a.split(), b.split()), len(a.split()), edits(a, b), len(a)] for a, b in pairs])
    assert score.count_pairs(pairs).tolist() == counts.tolist()
    assert train_asr.rates(counts) == {"wer": (1 + 1 + 2) / 6, "cer": (1 + 4 + 7) / 20}


def test_padding_is_not_heard(workspace, tmp_path):
    """Else what is recognized in a clip depends on the others of its batch."""
    shutil.copytree(workspace / "data", tmp_path / "data")
    soundfile.write(tmp_path / "data" / "4.wav", np.tile(tone("low", seed=4), 3), 16000)
    more = ("--learning_rate", "1e-2", "--per_device_eval_batch_size")
    texts = []
    for size in ("3", "1"):
        run(workspace, tmp_path / size, *more, size, model="letters", data=tmp_path / "data")
        texts.append(recognized(tmp_path / size))
    assert texts[0] == texts[1]
