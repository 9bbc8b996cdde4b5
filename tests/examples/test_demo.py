"""The demonstration on real weights and recordings, at its smallest."""

import csv
import subprocess
import sys
from pathlib import Path

import soundfile


EXAMPLES = Path(__file__).parents[2] / "examples"
ASSETS = EXAMPLES / "assets"


def test_it_adapts_saves_and_reloads_with_the_same_predictions():
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--epochs", "1", "--clips_per_class", "2"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-2000:]
    output = " ".join(finished.stdout.split())  # lines break where the terminal's do
    assert "20 recordings to train on, 80 to test on, 10 classes" in output
    for title in ("Linear probe", "IPET", "+-"):
        assert title in output
    assert "are identical" in output and "NOT identical" not in output
    # The new process knew nothing but the adapter's folder.
    assert "loaded WhisperForAudioClassification with IPET and 10 labels" in output


def test_every_recording_is_there_and_names_its_source():
    with (ASSETS / "esc10" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file_name"] for row in rows} == {f"audio/{path.name}" for path in (ASSETS / "esc10/audio").iterdir()}
    assert all(row["source"].startswith("https://freesound.org/s/") for row in rows)
    for row in rows:
        info = soundfile.info(ASSETS / "esc10" / row["file_name"])
        assert (info.samplerate, info.channels) == (16000, 1) and 3 < info.duration < 8
    sources = {fold: {row["source"] for row in rows if row["fold"] == fold} for fold in "123"}
    assert not (sources["1"] & sources["2"] or sources["1"] & sources["3"] or sources["2"] & sources["3"])


def test_the_assets_are_small_and_have_licenses():
    def size(folder):
        return sum(path.stat().st_size for path in (ASSETS / folder).rglob("*") if path.is_file())

    assert size("whisper-tiny.en-encoder") < 17e6 and size("esc10") < 12e6
    assert "MIT License" in (ASSETS / "whisper-tiny.en-encoder" / "LICENSE").read_text()
    assert "CC BY 3.0" in (ASSETS / "esc10" / "README.md").read_text()
