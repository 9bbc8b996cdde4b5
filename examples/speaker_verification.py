"""Scores the trials of speaker verification with a run of `run_recipe.py`: EER, minDCF, and a picture of the errors.

    python method_comparison/run_recipe.py ipet/wav2vec2-voxceleb1 --data_dir VoxCeleb1 --musan_dir musan
    python examples/speaker_verification.py outputs/recipes/ipet/wav2vec2-voxceleb1/trials/seed-0 --data_dir VoxCeleb1

A recording's speaker embedding is the mean over several segments; a trial's score is the cosine of two embeddings. The
run's folder gets scores.csv (score, label, first, second) and verification.png, the histogram of the scores and the DET
curve. `--trials` names another list in DIR.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


sys.path.append(str(Path(__file__).resolve().parents[1] / "method_comparison"))

from data_sets import Trial, read_trials
from experiments.backbones import BACKBONES, load_backbone
from experiments.inputs import Preparation, TestSet, needs_waveforms
from experiments.recipe import Recipe, RecipeError
from experiments.runs import RESULT, Setting, training_arguments
from experiments.trainer import RecipeTrainer, averaged
from experiments.verification import recordings_of, score_trials
from files import write_csv
from peft import PeftModel
from plots.files import read_entry, save_picture
from plots.verification import plot_verification
from rich.console import Console
from run_recipe import TITLES, shown
from safetensors import safe_open
from transformers import AutoFeatureExtractor
from transformers.utils import logging

from peft_audio.data import FeatureCache
from peft_audio.metrics import equal_error_rate, min_dcf


WEIGHTS = "adapter_model.safetensors"
SCORES, PICTURE = "scores.csv", "verification.png"


@dataclass(frozen=True)
class Verifier:
    """A finished run that tells speakers apart.

    Args:
        recipe: of the run.
        model: with its adapter and its `SpeakerHead`.
        preparation: how recordings become inputs.
        measured: EER and minDCF at the end of the run, by metric.
    """

    recipe: Recipe
    model: PeftModel
    preparation: Preparation
    measured: Mapping[str, float]


def load_verifier(folder: Path, model_name_or_path: str | None = None) -> Verifier:
    """The verifier that `run_recipe.py` left in `folder`; `model_name_or_path` is where its pretrained model lies now.

    Raises:
        ValueError: the run is not finished, is no speaker verification, has no adapter, or its model cannot be had.
    """
    settings = read_entry(folder / RESULT, "settings")
    recipe = recipe_of(folder, settings["recipe"])
    if not (folder / WEIGHTS).is_file():
        raise RecipeError(f"{folder}: holds no {WEIGHTS}. Give the run of a recipe whose method is an adapter.")
    speakers = [str(index) for index in range(count_speakers(folder / WEIGHTS))]
    with tempfile.TemporaryDirectory() as temporary:
        model = load_backbone(recipe, model_name_or_path or settings["model"], speakers, Path(temporary))
    model = PeftModel.from_pretrained(model, folder).eval()
    extractor, statistics = AutoFeatureExtractor.from_pretrained(folder), None
    if not BACKBONES[recipe.backbone].reads_waveforms:
        extractor.do_normalize = False  # done by `Preparation`
        statistics = extractor.mean, extractor.std
    return Verifier(recipe, model, Preparation(recipe, extractor, statistics), measured_by(folder / RESULT))


def recipe_of(folder: Path, settings: Mapping[str, object]) -> Recipe:
    try:
        recipe = Recipe(**settings)
    except TypeError as error:  # of a version with other settings
        raise RecipeError(f"{folder / RESULT}: is no recipe of this version ({error}). Run it again.") from None
    if recipe.code_size is None:
        raise RecipeError(f"{folder}: {recipe.name} has no speaker embeddings. Give the run of a verification recipe.")
    return recipe


def count_speakers(path: Path) -> int:
    """How many speakers the `SpeakerHead` among these weights was trained on."""
    with safe_open(path, framework="np") as weights:
        name = next(name for name in weights.keys() if name.endswith("speakers.weight"))  # noqa: SIM118, no dictionary
        return weights.get_slice(name).get_shape()[0]


def measured_by(path: Path) -> dict[str, float]:
    """EER and minDCF of the weights that the run saved: averaged ones, or those of the last epoch."""
    result = read_entry(path)
    return result.get("average") or {name: values[-1] for name, values in result["epochs"]["test"].items()}


def extract_embeddings(verifier: Verifier, trials: list[Trial], setting: Setting) -> np.ndarray:
    """The speaker embeddings of `recordings_of(trials)`, `(recordings, code_size)`, each the mean over its segments.

    Args:
        verifier: the run.
        trials: the trials.
        setting: folder of the feature cache, and arguments of the Trainer.

    Raises:
        BadAudioError: some recordings cannot be used; lists them.
    """
    recipe, preparation = verifier.recipe, verifier.preparation
    extractor = preparation.feature_extractor
    stored = None if needs_waveforms(recipe, BACKBONES[recipe.backbone].reads_waveforms) else extractor
    recordings = recordings_of(trials)
    store = FeatureCache(setting.cache_dir, stored, sampling_rate=extractor.sampling_rate).compute(recordings)
    segments = TestSet(recordings, store, np.arange(len(recordings)), preparation)
    arguments = training_arguments(recipe, setting.output_dir, 0, setting)
    trainer = RecipeTrainer(recipe, model=verifier.model, args=arguments, eval_dataset=segments)
    return averaged(trainer.predict(segments).predictions, recipe.test_segments)


def rows_of(trials: list[Trial], scores: np.ndarray) -> list[dict[str, object]]:
    """By column, what scores.csv says of each trial: score, label (1: same speaker), both recordings as in the list."""
    names = [["/".join(path.parts[-3:]) for path in (trial.first, trial.second)] for trial in trials]
    return [
        {"score": score, "label": int(trial.is_same), "first": first, "second": second}
        for trial, score, (first, second) in zip(trials, scores.tolist(), names, strict=True)
    ]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of a finished run, with result.json in it")
    parser.add_argument("--data_dir", type=Path, required=True, metavar="DIR", help="VoxCeleb1, or in its layout")
    parser.add_argument("--trials", default="veri_test.txt", help="file name of the trials in DIR")
    parser.add_argument("--output_dir", type=Path, help="for the scores and the picture; the run's if left out")
    parser.add_argument("--cache_dir", type=Path, default=Path("outputs/recipes/cache"), help="decoded recordings")
    parser.add_argument("--model_name_or_path", help="the run's pretrained model, if it lies elsewhere now")
    parser.add_argument("--bf16", action="store_true", help="mixed precision, as in a training with --bf16")
    parser.add_argument("--use_cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that prepare the batches")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Do what the command line (or `arguments`) says. Returns EER and minDCF, by metric.

    Raises:
        ValueError: the run or the data cannot be used; the message says why.
    """
    args = parse_arguments(arguments)
    console = Console()
    trainer = {
        "bf16": args.bf16,
        "use_cpu": args.use_cpu,
        "dataloader_num_workers": args.num_workers,
        "disable_tqdm": not console.is_terminal,
    }
    output_dir = args.output_dir or args.run
    setting = Setting(output_dir=output_dir, cache_dir=args.cache_dir, trainer=trainer)
    verifier = load_verifier(args.run, args.model_name_or_path)
    trials = read_trials(args.data_dir, args.trials)
    embeddings = extract_embeddings(verifier, trials, setting)
    scores, labels = score_trials(embeddings, trials)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(output_dir / SCORES, rows_of(trials, scores))
    save_picture(output_dir / PICTURE, plot_verification(scores, labels))
    metrics = {"equal_error_rate": equal_error_rate(scores, labels), "min_dcf": min_dcf(scores, labels)}
    segments = verifier.recipe.test_segments
    console.print(f"{len(trials)} trials of {len(embeddings)} recordings in {segments} segments", highlight=False)
    for name, value in metrics.items():
        at_the_end = shown(name, verifier.measured[name])
        console.print(f"{TITLES[name]} {shown(name, value)}, at the end of the run {at_the_end}", highlight=False)
    return metrics


if __name__ == "__main__":
    logging.set_verbosity_error()  # else loading the base model reports that its head is new
    logging.disable_progress_bar()
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
