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
from peft_audio.utils.arguments import UsageError, check_folder, run_command


ASSETS = Path(__file__).resolve().parent / "assets"
MODEL, CLIPS = ASSETS / "whisper-tiny.en-encoder", ASSETS / "esc10"
FOLDS = ("1", "2", "3")  # 240 of the 400 recordings
COLUMNS = ("file_name", "label", "fold", "freesound_id")
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
    rows = read_rows(data_dir)
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


def read_rows(data_dir: Path) -> list[dict[str, str]]:
    """The lines of metadata.csv in `FOLDS`. Raises `UsageError` where a column, all folds or a file are missing."""
    path = data_dir / "metadata.csv"
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise UsageError(f"--data_dir: {path} must have the columns {', '.join(COLUMNS)}, lacks {missing}.")
        rows = [row for row in reader if row["fold"] in FOLDS]
    absent = [row["file_name"] for row in rows if not (data_dir / row["file_name"]).is_file()]
    if absent or not rows:
        what = f"these are not there: {absent[:3]}" if absent else "there are none"
        raise UsageError(f"--data_dir: {path} must list the recordings of folds {', '.join(FOLDS)}; {what}.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="Whisper tiny.en, a folder or a name on the Hub")
    parser.add_argument("--data_dir", type=Path, help="ESC-10 at 16 kHz")
    arguments = parser.parse_args()
    if not arguments.model_name_or_path and not arguments.data_dir:
        parser.error("--model_name_or_path or --data_dir must say what to make; neither is given")
    if arguments.data_dir:
        check_folder("--data_dir", arguments.data_dir, "metadata.csv")
    if arguments.model_name_or_path:
        make_model(arguments.model_name_or_path, MODEL)
    if arguments.data_dir:
        make_clips(arguments.data_dir, CLIPS)


if __name__ == "__main__":
    run_command(main)
