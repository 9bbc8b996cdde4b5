"""What the training script of recognizers says of files, texts and arguments that cannot be right: in one line."""

import re
import runpy
import shutil
import sys

import pytest
import train_asr
from runs import arguments
from speech import LETTERS, TEXTS, save_encoder, save_whisper, write_transcribed
from train_asr import main

import peft_audio
from peft_audio.data import BadAudioError, DataError
from peft_audio.trainer import UsageError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_transcribed(folder / "data")
    save_whisper(folder / "whisper", max_target_positions=24)
    save_encoder(folder / "wav2vec2")
    save_encoder(folder / "letters", LETTERS)
    save_encoder(folder / "capitals", LETTERS.upper())
    (folder / "empty").mkdir()
    shutil.copytree(folder / "whisper", folder / "wordless")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "wordless" / file).unlink()
    return folder


@pytest.mark.parametrize(
    ("model", "more", "expected"),
    [
        ("whisper", ("--model_name_or_path", "{}/empty"), "a folder without config.json"),
        ("wordless", (), "--model_name_or_path .*/wordless: has no tokenizer"),
        ("whisper", ("--method", "linear_probe"), "has no head of its own. Choose another method"),
        ("whisper", ("--language", "german"), "--language must be left out: this Whisper knows one"),
        ("letters", ("--language", "german"), "--language is for a Whisper"),
        ("whisper", ("--new_vocabulary", "True"), "--new_vocabulary is for models with a CTC head"),
        ("whisper", ("--layers_to_transform", "99"), "--method ipet: `layers_to_transform` must be between -3 and 2"),
        ("whisper", ("--num_virtual_tokens", "0"), "`num_virtual_tokens` must be"),
        ("whisper", ("--learning_rate", "nan"), "learning_rate must be a number from 0 up"),
        ("whisper", ("--max_seconds", "0"), "max_seconds must be a number above 0"),
        ("whisper", ("--metric_for_best_model", "accuracy"), "one of loss, wer, cer, got 'accuracy'"),
        ("whisper", ("--normalize", "nonsense"), "invalid choice"),
        ("whisper", ("--resume_from_checkpoint", "nowhere"), "resume_from_checkpoint nowhere: no such checkpoint"),
        ("whisper", ("--dataset_name", "some/data"), "Give either --data_dir"),
    ],
)
def test_arguments_that_cannot_be_right(model, more, expected, workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_asr, "prepare_transcribed", lambda *args, **kwargs: pytest.fail("read the audio"))
    words = [word.format(workspace) for word in more]
    with pytest.raises((UsageError, FileNotFoundError, SystemExit)) as error:
        main(arguments(workspace, tmp_path / "out", *words, model=model))
    text = str(error.value) if error.type is not SystemExit else capsys.readouterr().err.splitlines()[-1]
    assert re.search(expected, text), text
    assert len(text.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_model_without_recognizers_is_refused(workspace, tmp_path):
    from sounds import save_ast

    save_ast(tmp_path / "ast")
    with pytest.raises(UsageError, match="of type 'audio-spectrogram-transformer', of which .* no recognizer"):
        main(arguments(workspace, tmp_path / "out", model=tmp_path / "ast"))


@pytest.mark.parametrize(
    ("text", "model", "more", "expected"),
    [
        ("   ", "whisper", (), "line 8: column 'transcription' is empty"),
        ("?!", "whisper", ("--normalize", "words"), "the transcription of 'odd.wav' has no words"),
        ("a" * 30, "whisper", (), "of 'odd.wav' has 3. tokens, more than the decoder's 24 positions"),
        ("ab" * 600, "letters", (), "'odd.wav': the clip has fewer frames than its transcription has tokens"),
    ],
)
def test_texts_that_cannot_be_learned(text, model, more, expected, workspace, tmp_path):
    write_transcribed(tmp_path / "data", odd=text)
    with pytest.raises(DataError, match=expected) as error:
        main(arguments(workspace, tmp_path / "out", *more, model=model, data=tmp_path / "data"))
    assert len(str(error.value).splitlines()) == 1


def test_characters_that_the_vocabulary_lacks_are_counted_and_named(workspace, tmp_path, caplog):
    write_transcribed(tmp_path / "data", odd="\u00e9t\u00e9 7")
    more = ("--save_strategy", "no", "--eval_strategy", "no")
    results = main(arguments(workspace, tmp_path / "out", *more, model="letters", data=tmp_path / "data"))
    assert results["unknown_characters"] == {"\u00e9": 2, "7": 1}
    assert "3 characters of the transcriptions are not in the vocabulary: '\u00e9' 2 times, '7' 1 times" in caplog.text
    with pytest.raises(DataError, match="most characters .*Give --letter_case upper or lower"):
        main(arguments(workspace, tmp_path / "out", model="capitals"))
    results = main(arguments(workspace, tmp_path / "out", *more, "--letter_case", "upper", model="capitals"))
    assert results["unknown_characters"] == {}
    assert all(text.upper() in (tmp_path / "out" / "transcriptions.csv").read_text() for text in TEXTS.values())


def test_a_table_without_transcriptions_is_refused(workspace, tmp_path):
    data = tmp_path / "data"
    write_transcribed(data)
    (data / "metadata.csv").write_text("file_name,label\n0.wav,x\n")
    with pytest.raises(DataError, match="column 'transcription' is missing, the columns are 'file_name', 'label'"):
        main(arguments(workspace, tmp_path / "out", data=data, model="whisper"))
    (data / "metadata.csv").unlink()
    with pytest.raises(DataError, match="holds no metadata.csv, which must name the columns file_name and transcr"):
        main(arguments(workspace, tmp_path / "out", data=data, model="whisper"))


def test_bad_files_stop_a_run_or_are_skipped_and_counted(workspace, tmp_path):
    write_transcribed(tmp_path / "data", odd="a dog")
    (tmp_path / "data" / "odd.wav").write_bytes(b"")
    more = ("--save_strategy", "no", "--eval_strategy", "no")
    call = arguments(workspace, tmp_path / "out", *more, model="whisper", data=tmp_path / "data")
    with pytest.raises(BadAudioError, match=r"1 of 7 audio files(.|\n)*odd\.wav: empty"):
        main(call)
    results = main([*call, "--skip_bad_files"])
    assert (results["skipped_files"], results["train_samples"], results["eval_samples"]) == (1, 3, 3)
    with pytest.raises(BadAudioError, match=r"0\.wav: too long \(0\.5 s, the longest is 0\.3 s: max_seconds\)"):
        main([*call, "--skip_bad_files", "False", "--max_seconds", "0.3"])


def test_the_command_line_ends_with_one_line_and_a_status(workspace, tmp_path, monkeypatch, capsys):
    command = arguments(workspace, tmp_path, "--fold", "9", model="whisper")
    monkeypatch.setattr(sys, "argv", ["train_asr.py", *command])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(train_asr.__file__, run_name="__main__")
    assert stop.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch("error: .*fold 9 needs a column 'fold', and there is none.*", last)


def test_labels_are_read_as_before(tmp_path):
    write_transcribed(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label,transcription\n0.wav,x;y,a bird\n")
    (labeled,), (transcribed,) = (
        peft_audio.data.read_audiofolder(tmp_path, column).clips for column in (None, "transcription")
    )
    assert (labeled.labels, labeled.text) == (("x", "y"), None)
    assert (transcribed.labels, transcribed.text) == ((), "a bird")
