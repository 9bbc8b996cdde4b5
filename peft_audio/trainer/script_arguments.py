"""Arguments that all training scripts have: the pretrained model, and where the clips come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from transformers import AutoConfig, SequenceFeatureExtractor

from ..data import ClipTable, load_feature_extractor, minimum_seconds, read_audiofolder, read_hub_dataset
from ..utils.arguments import check_folder
from .command_line import UsageError, check_before_data, one_line, parse_dataclasses
from .method_arguments import MethodArguments, fill_learning_rates
from .method_table import make_config


def argument(default: Any, help_text: str, **more: Any) -> Any:
    """Return a dataclass's field as an argument of a command line.

    Args:
        default: its value where it is left out.
        help_text: what it is for.
        more: what else `HfArgumentParser` takes, such as `choices`.
    """
    return field(default=default, metadata={"help": help_text, **more})


@dataclass
class PretrainedArguments:
    """The pretrained model.

    Args:
        model_name_or_path: a folder, or a name on the Hub.
        half_precision_activations: see `save_activations_in_half`.
    """

    model_name_or_path: str = field(metadata={"help": "The pretrained model: a folder, or a name on the Hub."})
    half_precision_activations: bool = argument(False, "Keep what adapted layers save for backward in float16.")


@dataclass
class ClipArguments:
    """Where the clips come from, which of them test, and how they are read.

    Args:
        data_dir: an audiofolder.
        dataset_name: a data set on the Hub, instead.
        dataset_config_name: its configuration.
        audio_column_name: its column with the audio.
        fold: that tests.
        test_fraction: share of the clips that test, where neither fold nor split says which.
        max_seconds: the longest clip.
        cache_dir: of the features.
        skip_bad_files: leave unusable audio files out.
    """

    data_dir: Optional[str] = argument(None, "Class folders, or metadata.csv (file_name, label, maybe fold or split).")
    dataset_name: Optional[str] = argument(None, "A data set on the Hub, instead of --data_dir.")
    dataset_config_name: Optional[str] = argument(None, "The configuration of that data set.")
    audio_column_name: str = argument("audio", "Its column with the audio.")
    fold: Optional[str] = argument(None, "Test on this fold, train on the rest.")
    test_fraction: float = argument(0.2, "Share of the clips that test, where neither fold nor split says which.")
    max_seconds: Optional[float] = argument(None, "Cut longer clips to this length; a Whisper's input gets as short.")
    cache_dir: Optional[str] = argument(None, "Keep the features in this folder, for other runs too; else in memory.")
    skip_bad_files: bool = argument(False, "Leave unusable audio files out (and list them) instead of stopping.")

    @property
    def data_name(self) -> str:
        """The data set's name, without folders that are nobody's business."""
        return self.dataset_name or Path(str(self.data_dir)).name

    def read_table(self, **columns: Any) -> ClipTable:
        """List the clips.

        Args:
            columns: `label_column` or `text_column`, see `read_hub_dataset`.

        Raises:
            DataError: the description of the data cannot be used.
        """
        if self.dataset_name is None:
            columns.pop("label_column", None)  # always `label` in an audiofolder
            return read_audiofolder(str(self.data_dir), **columns)
        return read_hub_dataset(
            self.dataset_name, self.dataset_config_name, audio_column=self.audio_column_name, **columns
        )


def parse_script_arguments(
    model_class: type, data_class: type, trainer_class: type, metrics: Iterable[str], arguments: Optional[list[str]]
) -> tuple[Any, Any, Any, Any]:
    """Return the arguments of a training script, checked as far as they can be without data, and with learning rates.

    Args:
        model_class: a `PretrainedArguments`.
        data_class: a `ClipArguments`, or another with `data_dir` and `cache_dir`.
        trainer_class: the Trainer's arguments.
        metrics: what may choose the best checkpoint.
        arguments: the words of the command line; None for those of this process.

    Returns:
        The model's arguments, those of the data, the method's, the Trainer's.

    Raises:
        UsageError: they cannot be right.
        FileNotFoundError: there is no checkpoint to go on from.
    """
    try:
        parsed = parse_dataclasses((model_class, data_class, MethodArguments, trainer_class), arguments)
        model_args, data_args, method_args, args = parsed
        make_config(method_args.method, **method_args.options())
        check_before_data(args, vars(model_args) | vars(data_args), metrics)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not hasattr(data_args, "dataset_name"):
        check_folder("--data_dir", data_args.data_dir)
    elif (data_args.data_dir is None) == (data_args.dataset_name is None):
        raise UsageError("Give either --data_dir (a folder) or --dataset_name (a data set on the Hub).")
    fill_learning_rates(args, method_args.method)
    args.remove_unused_columns = False  # the data sets hold exactly what the model takes
    return model_args, data_args, method_args, args


def load_inputs(
    name: str, max_length: Optional[int] = None, max_seconds: Optional[float] = None
) -> tuple[SequenceFeatureExtractor, float]:
    """Load a model's feature extractor.

    Args:
        name: `--model_name_or_path`.
        max_length: see `load_feature_extractor`, and there for `max_seconds`.
        max_seconds: the longest clip.

    Returns:
        The feature extractor, and the length in seconds of the shortest clip that the model takes.

    Raises:
        UsageError: the model has none, or it does not fit.
    """
    try:
        feature_extractor: Any = load_feature_extractor(name, max_length, max_seconds)
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        reason = f"neither a folder with a model and its feature extractor, nor one on the Hub ({str(error).splitlines()[0]})"
        raise UsageError(f"--model_name_or_path {name}: {reason}") from None
    except ValueError as error:  # e.g. max_length for a model of waveforms
        raise UsageError(f"--{one_line(error)}") from None
    min_seconds = minimum_seconds(config, feature_extractor.sampling_rate)
    if max_seconds is not None and max_seconds < min_seconds:
        raise UsageError(f"--max_seconds {max_seconds}: this model needs at least {min_seconds:.3f} s.")
    return feature_extractor, min_seconds
