"""One run of a recipe: a part of its data, a seed, a training, and the metrics after every epoch."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from data_sets import DATA_SETS
from files import write_csv, write_json
from speaker_verification import averaged
from training.aggregation import epoch_metrics
from training.augmentation import MusanNoise
from training.statistics import spectrogram_statistics
from training.weight_averaging import WeightAveraging
from transformers import set_seed

from peft_audio import last_complete_checkpoint
from peft_audio.data import FeatureCache, Splits, recordings_of
from peft_audio.trainer import AudioTrainingArguments, apply_method, logits_of, parameter_counts, saved_bytes

from .backbones import BACKBONES, feature_extractor_of, load_backbone
from .inputs import Preparation, TestSet, TrainingSet, needs_waveforms, targets_of
from .parts import Part
from .recipe import METRICS, Recipe, RecipeError
from .trainer import RecipeTrainer, metrics_of
from .verification import metrics_of_trials


RESULT = "result.json"
STATISTICS_CLIPS = 2000  # enough for a mean and a standard deviation over all frames


@dataclass(frozen=True)
class Setting:
    """What a run needs beside its recipe.

    Args:
        output_dir: each recipe has a folder in it, by its name.
        cache_dir: folder of the feature cache.
        model_name_or_path: the pretrained model, None for the published one.
        musan_dir: folder of the MUSAN corpus, for recipes with its noise.
        skip_bad_files: leave unusable audio files out instead of stopping.
        trainer: further arguments of the Trainer.
    """

    output_dir: Path
    cache_dir: Path
    model_name_or_path: str | None = None
    musan_dir: Path | None = None
    skip_bad_files: bool = False
    trainer: Mapping[str, object] = field(default_factory=dict)


def run(recipe: Recipe, part: Part, seed: int, setting: Setting) -> dict:
    """Train one part with one seed; a run that is finished already is read, one that was interrupted goes on.

    Returns:
        What `result.json` in the run's folder holds: the metrics after every epoch, sizes and times.

    Raises:
        RecipeError: the folder has the result of other settings, a damaged one, or the recipe needs something that is not given.
    """
    folder = setting.output_dir / recipe.name / part.name / f"seed-{seed}"
    settings = {"recipe": dataclasses.asdict(recipe), "model": setting.model_name_or_path}
    settings = json.loads(json.dumps(settings))  # as it is read again
    result = finished(folder / RESULT, settings)
    if result is None:
        result = {"settings": settings, **train(recipe, part, seed, setting, folder)}
        write_json(folder / RESULT, result)
    return result


def finished(path: Path, settings: dict) -> dict | None:
    """The result at `path`, None where there is none. Raises `RecipeError` if it is of other settings."""
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        found = result["settings"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{path}: is no result of a run ({error!r}). Remove it to run again.") from None
    if found != settings:
        raise RecipeError(
            f"{path}: is the result of other settings. Choose another --output_dir, or remove the folder to run again."
        )
    return result


def train(recipe: Recipe, part: Part, seed: int, setting: Setting, folder: Path) -> dict:
    set_seed(seed)
    preparation, store, part = prepare(recipe, part, setting)
    splits, labels = part.splits, part.splits.labels
    base = setting.output_dir / recipe.name / part.name / "base"
    model = load_backbone(recipe, setting.model_name_or_path, labels, base)
    model = apply_method(model, recipe.method, **recipe.options)
    tests = {"test": test_set(splits.test, store, labels, preparation, part)}
    if splits.validation:
        tests["validation"] = test_set(splits.validation, store, labels, preparation, part)
    trainer = RecipeTrainer(
        recipe,
        model=model,
        args=training_arguments(recipe, folder, seed, setting),
        train_dataset=TrainingSet(splits.train, store, labels, preparation),
        eval_dataset=tests,
        compute_metrics=metrics_of_trials(recipe, part.trials) if part.trials else metrics_of(recipe),
        callbacks=[WeightAveraging(*recipe.weight_average)] if recipe.weight_average else [],
    )
    seconds = trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder)).metrics["train_runtime"]
    log = trainer.state.log_history
    result = {"epochs": {kind: metrics_by_epoch(log, kind) for kind in tests}}
    if recipe.weight_average:
        result["average"] = of_kind(trainer.evaluate(tests["test"], metric_key_prefix="average"), "average")
    if not part.trials:
        write_predictions(folder / "predictions.csv", recipe, tests["test"], labels, trainer)
    trainer.save_model()
    finished_extractor(recipe, setting, preparation).save_pretrained(folder)
    return {
        **result,
        **parameter_counts(model),
        "adapter_bytes": saved_bytes(folder),
        "train_clips": len(splits.train),
        "test_clips": len(splits.test),
        "train_seconds": seconds,
    }


def write_predictions(path: Path, recipe: Recipe, test: TestSet, labels: list[str], trainer: RecipeTrainer) -> None:
    """Write a line for every test clip: its name, its labels, and the label with the highest score."""
    logits = averaged(logits_of(trainer.predict(test).predictions), recipe.test_segments)
    rows = [
        {"clip": clip.name, "label": ";".join(clip.labels), "prediction": labels[best]}
        for clip, best in zip(test.clips, logits.argmax(axis=1), strict=True)
    ]
    write_csv(path, rows)


def training_arguments(recipe: Recipe, folder: Path, seed: int, setting: Setting) -> AudioTrainingArguments:
    return AudioTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=seed,
        label_names=["labels"],
        remove_unused_columns=False,
        **setting.trainer,
    )


def metrics_by_epoch(log: list[dict], kind: str) -> dict[str, list[float]]:
    """By name, the values of a metric of "test" or "validation" after each epoch."""
    names = [name for name in METRICS if any(f"eval_{kind}_{name}" in entry for entry in log)]
    return {name: epoch_metrics(log, f"eval_{kind}_{name}") for name in names}


def of_kind(metrics: dict[str, float], kind: str) -> dict[str, float]:
    return {name: metrics[f"{kind}_{name}"] for name in METRICS if f"{kind}_{name}" in metrics}


# ---- inputs ----------------------------------------------------------------------------------------------------------


def prepare(recipe: Recipe, part: Part, setting: Setting) -> tuple[Preparation, Mapping, Part]:
    """How the clips of a part become inputs, what is kept of them on disk, and the part without unusable files."""
    reads_waveforms = BACKBONES[recipe.backbone].reads_waveforms
    extractor = feature_extractor_of(recipe, setting.model_name_or_path, None)
    if not reads_waveforms:
        extractor.do_normalize = False  # done by `Preparation`, after the masks
    preparation = Preparation(recipe, extractor, musan=musan_noise(recipe, setting))
    stored = None if needs_waveforms(recipe, reads_waveforms) else extractor
    cache = FeatureCache(setting.cache_dir, stored, sampling_rate=extractor.sampling_rate)
    store = cache.compute(part.splits.clips, skip_bad_files=setting.skip_bad_files)
    if store.skipped:
        part = without(part, store.skipped)
    if not reads_waveforms:
        preparation.statistics = statistics_of(recipe, part, store, preparation)
    return preparation, store, part


def without(part: Part, skipped: Collection[str]) -> Part:
    """The part less the clips of these names, and the trials with them."""
    trials = tuple(trial for trial in part.trials if not {str(trial.first), str(trial.second)} & set(skipped))
    if not part.trials:
        return Part(part.name, part.splits.without(skipped))
    train = [clip for clip in part.splits.train if clip.name not in skipped]
    return Part(part.name, Splits(train, recordings_of(trials)), trials)


def musan_noise(recipe: Recipe, setting: Setting) -> MusanNoise | None:
    if not recipe.musan:
        return None
    if setting.musan_dir is None:
        raise RecipeError(f"{recipe.name}: trains with noise of the MUSAN corpus. Give its folder with --musan_dir.")
    return MusanNoise(setting.musan_dir)


def statistics_of(recipe: Recipe, part: Part, store: Mapping, preparation: Preparation) -> tuple[float, float]:
    """Mean and standard deviation of the data set's spectrograms: the papers', or over (some of) the training clips."""
    known = DATA_SETS[recipe.data_set]
    if known.input_mean is not None:
        return known.input_mean, known.input_std
    clips = part.splits.train
    if len(clips) > STATISTICS_CLIPS:
        drawn = np.random.default_rng(0).choice(len(clips), STATISTICS_CLIPS, replace=False)
        clips = [clips[index] for index in sorted(drawn)]
    return spectrogram_statistics(spectrogram(store[clip.name], preparation) for clip in clips)


def spectrogram(stored: Mapping[str, np.ndarray], preparation: Preparation) -> np.ndarray:
    if "waveform" in stored:
        stored = preparation.features(preparation.cut(stored["waveform"]))
    return stored["input_values"]


def test_set(clips: list, store: Mapping, labels: list[str], preparation: Preparation, part: Part) -> TestSet:
    # The speakers of trials are not those of training: a recording's target is its own number.
    targets = np.arange(len(clips)) if part.trials else targets_of(clips, labels, preparation.recipe.loss)
    return TestSet(clips, store, targets, preparation)


def finished_extractor(recipe: Recipe, setting: Setting, preparation: Preparation):
    """The feature extractor to save beside the adapter, which normalizes by itself."""
    return feature_extractor_of(recipe, setting.model_name_or_path, preparation.statistics)
