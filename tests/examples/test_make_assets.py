"""How the assets of the demonstration are made."""

import csv

import make_assets
import soundfile
import torch
from sounds import tone
from tiny import WHISPER, shared_path
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification, WhisperModel


def load(folder):
    return WhisperForAudioClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32)


def test_the_encoder_alone_is_kept(tmp_path):
    model = WhisperModel(WhisperConfig(**WHISPER))
    model.save_pretrained(tmp_path / "whole")
    WhisperFeatureExtractor(feature_size=12).save_pretrained(tmp_path / "whole")
    make_assets.make_model(str(tmp_path / "whole"), tmp_path / "encoder")
    encoder = load(tmp_path / "encoder").encoder
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value.half().float(), msg=name)
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "encoder").feature_size == 12


def test_the_bundled_encoder_is_the_published_one():
    expected = load(shared_path("models/whisper-tiny.en")).encoder.state_dict()
    bundled = load(make_assets.MODEL).encoder.state_dict()
    assert bundled.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in bundled.items())


def test_recordings_of_three_folds_are_kept(tmp_path):
    (tmp_path / "data").mkdir()
    lines = ["file_name,label,fold,freesound_id"]
    for fold in range(1, 5):
        soundfile.write(tmp_path / "data" / f"{fold}.flac", tone("high", 0.5, seed=fold), 16000)
        lines.append(f"{fold}.flac,high,{fold},{100 + fold}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines))
    make_assets.make_clips(tmp_path / "data", tmp_path / "clips")
    rows = list(csv.DictReader((tmp_path / "clips" / "metadata.csv").open()))
    assert [row["fold"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["source"] == "https://freesound.org/s/101"
    waveform, rate = soundfile.read(tmp_path / "clips" / rows[0]["file_name"])
    assert (len(waveform), rate) == (8000, 16000)
