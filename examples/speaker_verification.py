"""Scores the trials of speaker verification with a run of `run_recipe.py`: EER, minDCF, and a picture of the errors.

    python method_comparison/run_recipe.py ipet/wav2vec2-voxceleb1 --data_dir VoxCeleb1 --musan_dir musan
    python examples/speaker_verification.py outputs/recipes/ipet/wav2vec2-voxceleb1/trials/seed-0 --data_dir VoxCeleb1

A recording's speaker embedding is the mean over several segments; a trial's score is the cosine of two embeddings. The
run's folder gets scores.csv (score, label, first, second) and verification.png, the histogram of the scores and the DET
curve. `--trials` names another list in DIR. Needs peft_audio[examples] and no other file.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from scipy.stats import norm
from torch import nn
from transformers import AutoFeatureExtractor, PreTrainedModel, TrainingArguments
from transformers.utils import logging

from peft_audio import head_modules, load_classifier, resize_ast, use_mean_token_pooling, use_statistics_pooling
from peft_audio.data import MEL_HOP_SECONDS, MEL_WINDOW_SECONDS, Clip, DataError, FeatureCache
from peft_audio.metrics import detection_error_tradeoff, equal_error_rate, min_dcf
from peft_audio.trainer import AudioTrainer
from peft_audio.utils.arguments import UsageError, check_folder, check_writable, run_command
from peft_audio.utils.ranges import Range


RESULT, WEIGHTS, SCORES, PICTURE = "result.json", "adapter_model.safetensors", "scores.csv", "verification.png"
PUBLISHED = "VoxCeleb1 is published as vox1_dev_wav.zip, vox1_test_wav.zip and veri_test.txt by VGG, Oxford."
# What is needed of the settings of a run's recipe, see method_comparison/experiments/recipe.py.
SETTINGS = ("code_size", "test_segments", "frames", "fill", "stride", "statistics_pooling", "weighted_layer_sum")
BLUE, RED, BLACK = "#0072B2", "#D55E00", "#000000"
TICKS = (1e-5, 1e-4, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999)


class SpeakerHead(nn.Module):
    """The head of IPET's speaker verification: a linear layer to the embedding, a norm, one to the speakers."""

    def __init__(self, input_size: int, code_size: int, num_labels: int) -> None:
        super().__init__()
        self.code = nn.Linear(input_size, code_size)  # the speaker embedding; checkpoints have it under this name
        self.norm = nn.LayerNorm(code_size)
        self.speakers = nn.Linear(code_size, num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled features `(batch, input_size)` to logits `(batch, num_labels)`."""
        return self.speakers(self.norm(self.code(pooled)))


def use_speaker_embeddings(model: PreTrainedModel, code_size: int = 128) -> PreTrainedModel:
    """Put a `SpeakerHead` in the place of the classifier's last module, in place. Call it before `get_peft_model`."""
    *_, name = head_modules(model)
    first = next(module for module in getattr(model, name).modules() if isinstance(module, nn.Linear))
    head = SpeakerHead(first.in_features, code_size, model.config.num_labels)
    setattr(model, name, head.to(device=first.weight.device, dtype=first.weight.dtype))
    return model


@contextmanager
def speaker_embeddings_of(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within, every call of the model appends its clips' speaker embeddings, `(batch, code_size)`, to the list."""
    embeddings: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for head in (module for module in model.modules() if isinstance(module, SpeakerHead)):
            hook = head.code.register_forward_hook(lambda module, args, output: embeddings.append(output.detach()))
            hooks.callback(hook.remove)
        yield embeddings


class EmbeddingTrainer(AudioTrainer):
    """A Trainer that predicts speaker embeddings, if its model has a `SpeakerHead`."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if not any(isinstance(module, SpeakerHead) for module in model.modules()):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")  # the speakers are not those of training, so there is no loss
        with torch.no_grad(), speaker_embeddings_of(model) as embeddings, self.compute_loss_context_manager():
            model(**inputs)
        return None, embeddings[-1].float(), labels


class Trial(NamedTuple):
    """Two recordings to compare, and whether the same person speaks."""

    is_same: bool
    first: Path
    second: Path


def read_trials(root: str | Path, name: str = "veri_test.txt") -> list[Trial]:
    """The trials of a list in VoxCeleb1's folder, from lines such as "1 id10270/x6uYqmx31kE/00001.wav id10270/...".

    Raises `DataError` if a line has another form, or a recording is missing.
    """
    root, files, lines = Path(root), find_utterances(root), trial_lines(root, name)
    trials = [Trial(same, *(files.get(key, root / "wav" / key) for key in pair)) for same, *pair in lines]
    missing = [clip.source for clip in recordings_of(trials) if not clip.source.is_file()]
    if missing:
        shown = ", ".join(repr(path.relative_to(root).as_posix()) for path in sorted(missing)[:3])
        raise DataError(f"{root}: {len(missing)} audio files are missing (the first: {shown}). {PUBLISHED}")
    return trials


def find_utterances(root: str | Path) -> dict[str, Path]:
    """The file of each utterance, by its name in the lists: "<speaker>/<video>/<utterance>.wav"."""
    parents = [path for pattern in ("wav", "*/wav") for path in Path(root).glob(pattern) if path.is_dir()]
    if not parents:
        raise DataError(f"{root}: has no folder wav, nor dev/wav and test/wav. {PUBLISHED}")
    return {file.relative_to(parent).as_posix(): file for parent in parents for file in parent.glob("*/*/*.wav")}


def trial_lines(root: str | Path, name: str) -> list[tuple[bool, str, str]]:
    """The lines of a list of trials: whether the same person speaks, and the names of both utterances."""
    path = Path(root) / name
    try:
        lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no such file, or no text in UTF-8 ({error}). {PUBLISHED}") from None
    trials = [(number, line, line.split()) for number, line in lines if line.strip()]
    for number, line, words in trials or [(1, "", [])]:  # an empty file lacks its first line
        if len(words) != 3:
            raise DataError(f"{path} line {number}: must be 'is_same path path', got {line!r}. Correct the list.")
        if words[0] not in ("0", "1"):
            raise DataError(f"{path} line {number}: must begin with 1 (same speaker) or 0, got {words[0]!r}.")
    return [(is_same == "1", first, second) for _, _, (is_same, first, second) in trials]


def recordings_of(trials: list[Trial]) -> list[Clip]:
    """Every recording of the trials once, in the order in which they come up."""
    paths = dict.fromkeys(path for trial in trials for path in (trial.first, trial.second))
    return [Clip(str(path), Path(path), ()) for path in paths]


def cut_or_fill(waveform: np.ndarray, num_samples: int, fill: str) -> np.ndarray:
    """The front of a waveform; a shorter one is repeated ("repeat"), followed by zeros ("pad") or left so ("cut")."""
    missing = num_samples - len(waveform)
    if missing > 0 and fill == "repeat":
        return np.resize(waveform, (num_samples, *waveform.shape[1:]))
    if missing > 0 and fill == "pad":
        return np.pad(waveform, [(0, missing)] + [(0, 0)] * (waveform.ndim - 1))
    return waveform[:num_samples]


def input_samples(recipe: SimpleNamespace, feature_extractor) -> int | None:
    """Samples of the model's input; None where clips stay as long as they are."""
    overhang = MEL_WINDOW_SECONDS - MEL_HOP_SECONDS if hasattr(feature_extractor, "num_mel_bins") else 0
    seconds = (recipe.frames or 0) * MEL_HOP_SECONDS + overhang
    return None if recipe.frames is None else round(seconds * feature_extractor.sampling_rate)


def segment_of(waveform: np.ndarray, index: int, recipe: SimpleNamespace, feature_extractor) -> np.ndarray:
    """Segment number `index` of those that are tested, evenly spread from the front to the end."""
    num_samples, gaps = input_samples(recipe, feature_extractor), recipe.test_segments - 1
    if num_samples is None:
        return waveform
    start = round(index * max(len(waveform) - num_samples, 0) / gaps) if gaps else 0
    # Spectrograms are filled up by the feature extractor: zeros there are something else than silence.
    fill = "cut" if hasattr(feature_extractor, "num_mel_bins") and recipe.fill == "pad" else recipe.fill
    return cut_or_fill(waveform[start:], num_samples, fill)


@dataclass
class Segments(torch.utils.data.Dataset):
    """Every recording as `test_segments` inputs one after the other; `waveforms` are by its name."""

    recordings: list[Clip]
    waveforms: Mapping
    recipe: SimpleNamespace
    feature_extractor: object

    def __len__(self) -> int:
        return len(self.recordings) * self.recipe.test_segments

    def __getitem__(self, index: int) -> dict[str, object]:
        recording, number = divmod(index, self.recipe.test_segments)
        waveform = self.waveforms[self.recordings[recording].name]["waveform"]
        segment, extract = segment_of(waveform, number, self.recipe, self.feature_extractor), self.feature_extractor
        outputs = extract(segment, sampling_rate=extract.sampling_rate, return_tensors="np")
        return {**{name: np.asarray(value)[0] for name, value in outputs.items()}, "labels": recording}


def averaged(values: np.ndarray, count: int) -> np.ndarray:
    """The means of every `count` rows, `(rows, n)` to `(rows / count, n)`."""
    return values.reshape(-1, count, values.shape[1]).mean(axis=1)


class Verifier(NamedTuple):
    """A finished run: its model with the adapter and `SpeakerHead`, and the EER and minDCF at its end, by metric."""

    model: PeftModel
    recipe: SimpleNamespace
    feature_extractor: object
    measured: Mapping[str, float]


def load_verifier(folder: Path, model_name_or_path: str | None = None) -> Verifier:
    """The verifier that `run_recipe.py` left in `folder`; `model_name_or_path` is where its pretrained model lies now.

    Raises `ValueError` if the run is not finished, is no speaker verification, has no adapter, or its model is not found.
    """
    recipe, measured = read_result(folder / RESULT)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: holds no {WEIGHTS}. Give the run of a recipe whose method is an adapter.")
    with safe_open(folder / WEIGHTS, framework="np") as weights:
        key = next(key for key in weights.keys() if key.endswith("speakers.weight"))  # noqa: SIM118, no dictionary
        speakers = [str(index) for index in range(weights.get_slice(key).get_shape()[0])]
    name = model_name_or_path or PeftConfig.from_pretrained(folder).base_model_name_or_path
    try:
        model = put_head(load_pretrained(name, recipe, speakers), recipe)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--model_name_or_path {name}: neither a folder nor a model on the Hub ({reason})") from None
    model = PeftModel.from_pretrained(model, folder).eval()
    return Verifier(model, recipe, AutoFeatureExtractor.from_pretrained(folder), measured)


def read_result(path: Path) -> tuple[SimpleNamespace, dict[str, float]]:
    """The settings of a run, and EER and minDCF of the weights it saved: averaged ones, or those of the last epoch."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        recipe = SimpleNamespace(**{name: result["settings"]["recipe"][name] for name in SETTINGS})
        measured = result.get("average") or {name: values[-1] for name, values in result["epochs"]["test"].items()}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Give the folder of a finished run.") from None
    except (ValueError, TypeError, KeyError) as error:  # no JSON, or of a version with other settings
        raise ValueError(f"{path}: is no recipe of this version ({error!r}). Run it again.") from None
    if recipe.code_size is None:
        raise ValueError(f"{path.parent}: has no speaker embeddings. Give the run of a verification recipe.")
    return recipe, measured


def load_pretrained(name: str, recipe: SimpleNamespace, labels: Sequence[str], **options) -> PreTrainedModel:
    """The pretrained model as a classifier for `labels`, with the input of the recipe; `options` of `load_classifier`."""
    if recipe.weighted_layer_sum:
        options["use_weighted_layer_sum"] = True
    model = load_classifier(name, labels, **options)
    if hasattr(model.config, "patch_size"):
        stride = {} if recipe.stride is None else {"time_stride": recipe.stride, "frequency_stride": recipe.stride}
        model = resize_ast(model, max_length=recipe.frames or model.config.max_length, **stride)
    if getattr(model.config, "mean_token_pooling", False):
        use_mean_token_pooling(model)
    return model


def put_head(model: PreTrainedModel, recipe: SimpleNamespace) -> PreTrainedModel:
    """Give the classifier the head of the recipe, in place."""
    if recipe.statistics_pooling:
        use_statistics_pooling(model)
    if recipe.code_size is not None:
        use_speaker_embeddings(model, recipe.code_size)
    return model


def extract_embeddings(verifier: Verifier, trials: list[Trial], cache_dir: Path, **options) -> np.ndarray:
    """The speaker embeddings of `recordings_of(trials)`, `(recordings, code_size)`, each the mean over its segments.

    `options` are of `TrainingArguments`. Raises `BadAudioError` with a list of the recordings that cannot be used.
    """
    recordings, recipe, extractor = recordings_of(trials), verifier.recipe, verifier.feature_extractor
    waveforms = FeatureCache(cache_dir, None, sampling_rate=extractor.sampling_rate).compute(recordings)
    options |= {"label_names": ["labels"], "remove_unused_columns": False, "per_device_eval_batch_size": 32}
    options |= {"report_to": "none", "dataloader_pin_memory": torch.accelerator.is_available()}
    trainer = EmbeddingTrainer(model=verifier.model, args=TrainingArguments(**options))
    segments = Segments(recordings, waveforms, recipe, extractor)
    return averaged(trainer.predict(segments).predictions, recipe.test_segments)


def score_trials(embeddings: np.ndarray, trials: list[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and labels (1: same speaker) of the trials, from an embedding of each of `recordings_of(trials)`."""
    index = {clip.source: position for position, clip in enumerate(recordings_of(trials))}
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.array([(index[trial.first], index[trial.second]) for trial in trials]).T
    return (unit[first] * unit[second]).sum(axis=1), np.array([int(trial.is_same) for trial in trials])


def metrics_of_scores(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """EER and minDCF, by metric."""
    return {"equal_error_rate": equal_error_rate(scores, labels), "min_dcf": min_dcf(scores, labels)}


def plot_verification(scores: Sequence[float], labels: Sequence[int], p_target: float = 0.01) -> Figure:
    """Draws the histogram of the scores, and the DET curve (Martin et al. 1997) on normal-deviate axes.

    `scores` `(trials,)` are higher where voices are more alike, `labels` `(trials,)` are 1 for the same speaker, else 0,
    `p_target` is the probability of a target trial. Rates of 0 lie at infinity on these axes and are drawn on their
    border. Raises `ValueError` as `peft_audio.metrics.min_dcf` does.
    """
    false_accepts, misses, thresholds = detection_error_tradeoff(scores, labels)
    error_rate, cost = equal_error_rate(scores, labels), min_dcf(scores, labels, p_target)
    threshold = thresholds[np.abs(misses - false_accepts).argmin()]
    cheapest = (p_target * misses + (1 - p_target) * false_accepts).argmin()
    figure = Figure(figsize=(12, 6), layout="constrained")
    histogram, curve = figure.subplots(1, 2)
    draw_histogram(histogram, np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1)
    histogram.axvline(threshold, color=BLACK, linestyle="--", label=f"threshold of equal errors, {threshold:.3f}")
    points = {
        f"equal error rate {100 * error_rate:.2f} %": (error_rate, error_rate, "o"),
        f"minDCF {cost:.3f} (target probability {p_target:g})": (false_accepts[cheapest], misses[cheapest], "s"),
    }
    draw_tradeoff(curve, false_accepts, misses, points)
    for axes in (histogram, curve):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axes.grid(alpha=0.3)
    return figure


def draw_histogram(axes, scores: np.ndarray, same: np.ndarray) -> None:
    edges = np.histogram_bin_edges(scores, min(60, 1 + int(np.sqrt(scores.size))))
    for kind, color, title in ((same, BLUE, "same speaker"), (~same, RED, "different speakers")):
        density, _ = np.histogram(scores[kind], edges, density=True)
        axes.stairs(density, edges, fill=True, color=color, alpha=0.5, label=f"{title} ({kind.sum():,} trials)")
    axes.set(xlabel="score", ylabel="density")


def draw_tradeoff(axes, false_accepts: np.ndarray, misses: np.ndarray, points: dict[str, tuple]) -> None:
    """The curve, and `points` on it: by title, false accept rate, miss rate and marker."""
    rates = np.concatenate([false_accepts, misses])
    low = min(0.001, rates[rates > 0].min() / 2)
    # Half the axis is of rates that no one would use; the points have to be on it.
    high = min(1 - low, max(0.5, *(1.2 * rate for point in points.values() for rate in point[:2])))
    axes.set_xscale("function", functions=(norm.ppf, norm.cdf))
    axes.set_yscale("function", functions=(norm.ppf, norm.cdf))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="false accept rate, %", ylabel="miss rate, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{100 * tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_box_aspect(1)
    axes.plot(np.clip(false_accepts, low, 1 - low), np.clip(misses, low, 1 - low), color=BLACK)
    for title, (false_accept, miss, marker) in points.items():
        at = np.clip([false_accept, miss], low, 1 - low)
        axes.plot(*at[:, None], marker=marker, linestyle="none", label=title, clip_on=False, zorder=3)


def write_results(folder: Path, trials: list[Trial], scores: np.ndarray, labels: np.ndarray) -> None:
    """Write scores.csv and verification.png; a file always holds all of its old or all of its new content."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [["/".join(path.parts[-3:]) for path in trial[1:]] for trial in trials]
    table, picture = (folder / f"{name}.partial" for name in (SCORES, PICTURE))
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = zip(scores.tolist(), labels.tolist(), *zip(*names, strict=True), strict=True)
        csv.writer(file).writerows([("score", "label", "first", "second"), *rows])
    plot_verification(scores, labels).savefig(picture, dpi=120, format="png")
    table.replace(folder / SCORES)
    picture.replace(folder / PICTURE)


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
    parser.add_argument("--num_workers", type=Range(0, 1024, True), default=0, help="processes that make batches")
    args = parser.parse_args(arguments)
    check_folder("--data_dir", args.data_dir, args.trials)
    args.output_dir = args.output_dir or args.run
    check_writable("--output_dir", args.output_dir)
    check_writable("--cache_dir", args.cache_dir)
    return args


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Do what the command line (or `arguments`) says. Returns EER and minDCF, by metric."""
    args = parse_arguments(arguments)
    verifier, trials = load_verifier(args.run, args.model_name_or_path), read_trials(args.data_dir, args.trials)
    options = {"bf16": args.bf16, "use_cpu": args.use_cpu, "dataloader_num_workers": args.num_workers}
    options |= {"output_dir": str(args.output_dir), "disable_tqdm": not sys.stdout.isatty()}
    embeddings = extract_embeddings(verifier, trials, args.cache_dir, **options)
    scores, labels = score_trials(embeddings, trials)
    write_results(args.output_dir, trials, scores, labels)
    metrics = metrics_of_scores(scores, labels)
    print(f"{len(trials)} trials of {len(embeddings)} recordings in {verifier.recipe.test_segments} segments")
    for title, name, form in (("EER", "equal_error_rate", "{:.2%}"), ("minDCF", "min_dcf", "{:.3f}")):
        value, at_the_end = (form.format(values[name]).replace("%", " %") for values in (metrics, verifier.measured))
        print(f"{title} {value}, at the end of the run {at_the_end}")
    return metrics


if __name__ == "__main__":
    logging.set_verbosity_error()  # else loading the base model reports that its head is new
    logging.disable_progress_bar()
    run_command(main)
