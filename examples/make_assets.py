"""Makes what `demo.py` runs on: Whisper tiny.en's encoder in half precision, and recordings of ESC-10 as Ogg.

    python examples/make_assets.py --model_name_or_path openai/whisper-tiny.en --data_dir ESC10

ESC10 is an `audiofolder` of the recordings at 16 kHz, whose metadata.csv has the columns file_name, label, fold and
freesound_id. The files are in the repository; this is how they came there.
"""

import argparse
import csv
import shutil
from pathlib import Path

import soundfile
import torch
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, WhisperModel

from peft_audio.data import load_waveform


ASSETS = Path(__file__).resolve().parent / "assets"
MODEL, CLIPS = ASSETS / "whisper-tiny.en-encoder", ASSETS / "esc10"
FOLDS = ("1", "2", "3")  # 240 of the 400 recordings
QUALITY = 0.4  # of Vorbis, from 0 (best) to 1


def make_model(name: str, folder: Path) -> None:
    """Saves the encoder of a Whisper, `(layers, d)` as its configuration says, in float16."""
    model = WhisperModel.from_pretrained(name, dtype=torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["WhisperForAudioClassification"]
    model.config.save_pretrained(folder)
    AutoFeatureExtractor.from_pretrained(name).save_pretrained(folder)
    tensors = {f"encoder.{key}": tensor.contiguous() for key, tensor in model.encoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def make_clips(data_dir: Path, folder: Path) -> None:
    """Writes the recordings of some folds as Ogg Vorbis, and a table of their labels, folds and sources."""
    with (data_dir / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] in FOLDS]
    shutil.rmtree(folder / "audio", ignore_errors=True)
    (folder / "audio").mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "label", "fold", "source"])
        for row in rows:
            name = Path("audio") / f"{Path(row['file_name']).stem}.ogg"
            waveform = load_waveform(data_dir / row["file_name"], 16000)
            soundfile.write(folder / name, waveform, 16000, format="OGG", subtype="VORBIS", compression_level=QUALITY)
            writer.writerow(
                [name.as_posix(), row["label"], row["fold"], f"https://freesound.org/s/{row['freesound_id']}"]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="Whisper tiny.en, a folder or a name on the Hub")
    parser.add_argument("--data_dir", type=Path, help="ESC-10 at 16 kHz")
    arguments = parser.parse_args()
    if arguments.model_name_or_path:
        make_model(arguments.model_name_or_path, MODEL)
    if arguments.data_dir:
        make_clips(arguments.data_dir, CLIPS)


if __name__ == "__main__":
    main()
