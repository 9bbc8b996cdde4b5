"""Trains and scores speaker verification: equal error rate, minDCF, and a picture of the errors.

    python examples/speaker_verification.py train --method ipet --model_name_or_path microsoft/wavlm-base-sv \\
        --data_dir VoxCeleb1 --output_dir OUT
    python examples/speaker_verification.py OUT --data_dir VoxCeleb1

`train` trains a model with an x-vector head, by its AMSoftmax loss, on the speakers who are in no trial of VoxCeleb1 or of a
folder in its layout. A run of `method_comparison/run_recipe.py` is scored in OUT's place, too. A recording's speaker embedding
is the mean over several segments; a trial's score is the cosine of two embeddings. The run's folder gets scores.csv (score,
label, first, second) and verification.png, the histogram of the scores and the DET curve. `--trials` names another list in
DIR. Needs peft_audio[examples] and no other file.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoFeatureExtractor, PreTrainedModel, TrainingArguments, set_seed
from transformers.utils import logging

import peft_audio
from peft_audio import head_modules, load_classifier, resize_ast, use_mean_token_pooling, use_statistics_pooling
from peft_audio.data import (
    MEL_HOP_SECONDS,
    AudioCollator,
    FeatureCache,
    RandomCrops,
    Segments,
    Trial,
    read_speakers,
    read_trials,
    recordings_of,
)
from peft_audio.metrics import equal_error_rate, min_dcf
from peft_audio.trainer import METHODS, AudioTrainer, apply_method
from peft_audio.trainer.arguments import SmallDataArguments
from peft_audio.trainer.command_line import one_line, run_script, silence_peft
from peft_audio.trainer.frames import frame_grid
from peft_audio.trainer.reports import describe_training, plot_curves, write_reports
from peft_audio.trainer.script_arguments import PretrainedArguments, argument, load_inputs, parse_script_arguments
from peft_audio.trainer.verification_plot import plot_verification
from peft_audio.trainer.xvector_trainer import XVectorTrainer, least_seconds
from peft_audio.utils.arguments import UsageError, check_folder, check_writable, run_command
from peft_audio.utils.ranges import Range


RESULT, WEIGHTS, SCORES, PICTURE = "result.json", "adapter_model.safetensors", "scores.csv", "verification.png"
# What is needed of the settings of a run's recipe, see method_comparison/experiments/recipe.py.
SETTINGS = ("code_size", "test_segments", "frames", "fill", "stride", "statistics_pooling", "weighted_layer_sum")

METRICS = ("equal_error_rate", "min_dcf")
XVECTOR, LIST = "verification", "veri_test.txt"  # where all_results.json has the settings of an x-vector; the trials
silence_peft()


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
    """The verifier that `train` or `run_recipe.py` left in `folder`; `model_name_or_path` is where its pretrained model lies now.

    Raises `ValueError` if the run is not finished, is no speaker verification, has no adapter, or its model is not found.
    """
    if not (folder / RESULT).is_file() and (folder / "all_results.json").is_file():
        return load_xvectors(folder, model_name_or_path)
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


def load_xvectors(folder: Path, model_name_or_path: str | None) -> Verifier:
    """The verifier that `train` left in `folder`. Raises `ValueError` if another script did, or its model is not found."""
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    if XVECTOR not in results:
        raise ValueError(f"{folder}: is no run of speaker verification. Give one of `speaker_verification.py train`.")
    settings, name = results[XVECTOR], str(folder)
    if is_adapter := (folder / WEIGHTS).is_file():
        name = model_name_or_path or PeftConfig.from_pretrained(folder).base_model_name_or_path
    try:
        model = peft_audio.load_xvector(name, settings.pop("speakers"))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--model_name_or_path {name}: neither a folder nor a model on the Hub ({reason})") from None
    model = PeftModel.from_pretrained(model, folder) if is_adapter else model
    measured = {name: results[f"eval_{name}"] for name in METRICS}
    return Verifier(model.eval(), SimpleNamespace(**settings), AutoFeatureExtractor.from_pretrained(folder), measured)


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
    has_head = any(isinstance(module, SpeakerHead) for module in verifier.model.modules())
    trainer_class = EmbeddingTrainer if has_head else XVectorTrainer
    trainer = trainer_class(model=verifier.model, args=TrainingArguments(**options))
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


# ---- Training --------------------------------------------------------------------------------------------------------


@dataclass
class VoiceArguments:
    data_dir: str = field(metadata={"help": "VoxCeleb1, or in its layout: wav/SPEAKER/VIDEO/RECORDING.wav."})
    trials: str = argument(LIST, "File name of the trials in it. Their speakers are not trained on.")
    max_seconds: float = argument(3.0, "Of the cuts that are trained and tested on.")
    test_segments: int = argument(4, "Cuts of a recording that are averaged in a test.")
    cache_dir: str = argument("outputs/recipes/cache", "For the decoded recordings.")


def parse_training(arguments: list[str] | None = None):
    """The four groups of arguments, checked. Raises `UsageError` where they do not fit together."""
    parsed = parse_script_arguments(PretrainedArguments, VoiceArguments, SmallDataArguments, METRICS, arguments)
    _, data_args, _, args = parsed
    check_folder("--data_dir", data_args.data_dir, data_args.trials)
    Range(1, 1000, whole=True).check("--test_segments", data_args.test_segments)
    args.greater_is_better = False
    if args.load_best_model_at_end and args.metric_for_best_model not in (*METRICS, *(f"eval_{m}" for m in METRICS)):
        raise UsageError(f"--load_best_model_at_end needs --metric_for_best_model {' or '.join(METRICS)}.")
    return parsed


def new_model(model_args: PretrainedArguments, method_args, speakers: Sequence[str]):
    """The pretrained model with an x-vector head for these speakers, set up for the method. Raises `UsageError`."""
    try:
        model = peft_audio.load_xvector(model_args.model_name_or_path, speakers)
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {model_args.model_name_or_path}: {one_line(error)}") from error
    try:
        model = apply_method(model, method_args.method, **method_args.options())
        return peft_audio.save_activations_in_half(model) if model_args.half_precision_activations else model
    except ValueError as error:  # what only the model shows
        raise UsageError(f"--method {method_args.method}: {one_line(error)}") from error


def train(arguments: list[str] | None = None) -> dict:
    """Trains as the command line (or `arguments`) says. Returns the content of all_results.json."""
    model_args, data_args, method_args, args = parse_training(arguments)
    extractor, _ = load_inputs(model_args.model_name_or_path)
    model = new_model(model_args, method_args, ["a", "b"])  # before the data are read, for what does not fit
    least, seconds = least_seconds(model.config, frame_grid(model, extractor)), data_args.max_seconds
    if seconds < least:
        raise UsageError(f"--max_seconds {seconds:g}: the x-vector head of this model needs at least {least:.3f} s.")
    table, trials = (read(data_args.data_dir, data_args.trials) for read in (read_speakers, read_trials))
    speakers, tested = sorted({clip.labels[0] for clip in table.clips}), recordings_of(trials)
    cache = FeatureCache(data_args.cache_dir, None, sampling_rate=extractor.sampling_rate)
    waveforms, heard = (cache.compute(clips) for clips in (table.clips, tested))
    recipe = {"frames": round(seconds / MEL_HOP_SECONDS), "fill": "repeat", "test_segments": data_args.test_segments}
    crops = RandomCrops(table.clips, waveforms, speakers, round(seconds * extractor.sampling_rate), args.seed)
    segments = Segments(tested, heard, SimpleNamespace(**recipe), extractor)

    def compute_metrics(prediction) -> dict[str, float]:
        embeddings = averaged(prediction.predictions, data_args.test_segments)
        return metrics_of_scores(*score_trials(embeddings, trials))

    set_seed(args.seed)
    model = new_model(model_args, method_args, speakers)
    sets = {"train_dataset": crops, "eval_dataset": segments, "data_collator": AudioCollator(extractor)}
    trainer = XVectorTrainer(model, args, **sets, processing_class=extractor, compute_metrics=compute_metrics)
    training = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trainer.save_model(_internal_call=True)  # else it pushes to the Hub at once, without the card
    results = {"method": method_args.method, XVECTOR: recipe | {"speakers": speakers}} | training | trainer.evaluate()
    results |= {name: value for name, value in vars(args).items() if name.endswith("learning_rate")}
    results |= {"train_samples": len(crops), "trials": len(trials), "train_seconds": training["train_runtime"]}
    results |= peft_audio.trainer.parameter_counts(trainer.model)
    results |= {"adapter_bytes": peft_audio.trainer.saved_bytes(args.output_dir)}
    results["problem"] = peft_audio.trainer.problem_at_the_end(trainer.state.log_history)
    if trainer.is_world_process_zero():
        report(trainer, data_args, results)
    return results


def report(trainer: XVectorTrainer, data_args: VoiceArguments, results: dict) -> None:
    """Writes curves.png, the model card and all_results.json, and pushes the folder to the Hub if asked to."""
    plot_curves(trainer.state.log_history, Path(trainer.args.output_dir) / "curves.png", METRICS[:1])
    data = f"{Path(data_args.data_dir).name}, {len(results[XVECTOR]['speakers'])} speakers who are in no trial"
    tested = f"{results['trials']} trials"
    training = describe_training(results, data, METHODS[results["method"]].summary, tested)
    scores = {name: results[f"eval_{name}"] for name in METRICS}
    write_reports(trainer, results, training=training, scores=scores, metadata={"tags": [results["method"]]})


# ---- Scoring ---------------------------------------------------------------------------------------------------------


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
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of a finished run")
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
    if sys.argv[1:2] == ["train"]:
        run_script(lambda: train(sys.argv[2:]))
    run_command(main)
