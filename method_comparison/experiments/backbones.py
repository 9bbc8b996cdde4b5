"""The pretrained models that recipes name, brought to the input and the labels of a recipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from speaker_verification import load_pretrained, put_head
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForImageClassification,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from peft_audio import (
    ast_from_ssast,
    ast_from_vit,
    use_mean_token_pooling,
)
from peft_audio.trainer import apply_method, parameter_counts

from .recipe import Recipe


AST_STRIDE = 10  # of the published models, in frames and mel bins


class BackboneError(ValueError):
    """A pretrained model cannot be had; the message says what is missing and the way out."""


@dataclass(frozen=True)
class Backbone:
    """How a kind of pretrained model becomes the classifier of a recipe.

    Args:
        title: what it is.
        default: its name on the Hub; None where it is published elsewhere, and a file has to be given.
        load: `(name, recipe, labels, folder) -> classifier` with the pretrained weights and the recipe's input.
        config: the configuration of the published size, by recipe.
        model_class: of the classifier.
        reads_waveforms: whether its input is the waveform, not a spectrogram.
        has_extractor: whether it is published with the feature extractor of its input; else AST's is taken.
    """

    title: str
    default: str | None
    load: Callable[[str, Recipe, list[str], Path], PreTrainedModel]
    config: Callable[[Recipe], object]
    model_class: type[PreTrainedModel]
    reads_waveforms: bool = False
    has_extractor: bool = True


def load_backbone(recipe: Recipe, name: str | None, labels: list[str], folder: Path) -> PreTrainedModel:
    """The classifier of `recipe` for `labels`, from the pretrained model `name` (None: the usual one).

    A model that is made of another one's weights is saved in `folder` and loaded from there: the checkpoint of an
    adapter names it as its base model.

    Raises:
        BackboneError: there is no such model.
    """
    backbone = BACKBONES[recipe.backbone]
    published = published_name(recipe, name)
    with found(published):
        return put_head(backbone.load(published, recipe, labels, folder), recipe)


def published_name(recipe: Recipe, name: str | None) -> str:
    backbone = BACKBONES[recipe.backbone]
    if not (name or backbone.default):
        raise BackboneError(
            f"{recipe.name}: {backbone.title} is not on the Hub. Download the checkpoint and give the file with "
            "--model_name_or_path."
        )
    return name or backbone.default


@contextmanager
def found(name: str) -> Iterator[None]:
    """Raise `BackboneError` where the model `name` cannot be had."""
    try:
        yield
    except OSError as error:
        raise BackboneError(
            f"--model_name_or_path {name}: neither a folder or file with a model, nor a model that can be had from the "
            f"Hub ({str(error).splitlines()[0]})"
        ) from None


def published_size(recipe: Recipe, num_labels: int) -> dict[str, int]:
    """Trainable and total parameters of `recipe` at the published size of its model. Needs no weights and no memory."""
    backbone = BACKBONES[recipe.backbone]
    config = backbone.config(recipe)
    config.num_labels = num_labels
    with torch.device("meta"):
        model = put_head(backbone.model_class(config), recipe)
        return parameter_counts(apply_method(model, recipe.method, **recipe.options))


def feature_extractor_of(recipe: Recipe, name: str | None, statistics: tuple[float, float] | None):
    """The feature extractor that goes with the classifier, with the mean and standard deviation of the data set."""
    backbone = BACKBONES[recipe.backbone]
    published = published_name(recipe, name)
    if backbone.has_extractor:
        with found(published):
            extractor = AutoFeatureExtractor.from_pretrained(published)
    else:
        extractor = ASTFeatureExtractor()
    if not backbone.reads_waveforms:
        extractor.max_length = recipe.frames or extractor.max_length
        extractor.mean, extractor.std = statistics or (extractor.mean, extractor.std)
    return extractor


def _pretrained(name: str, recipe: Recipe, labels: list[str], folder: Path) -> PreTrainedModel:
    return load_pretrained(name, recipe, labels, multi_label=recipe.loss == "binary_cross_entropy")


def _ast_of_an_image_model(name: str, recipe: Recipe, labels: list[str], folder: Path) -> PreTrainedModel:
    image_model = AutoModelForImageClassification.from_pretrained(name)
    return _saved(ast_from_vit(image_model, num_labels=len(labels), **_input(recipe)), recipe, labels, folder)


def _ast_of_ssast(name: str, recipe: Recipe, labels: list[str], folder: Path) -> PreTrainedModel:
    model = _saved(ast_from_ssast(name, num_labels=len(labels), **_input(recipe)), recipe, labels, folder)
    return use_mean_token_pooling(model)


def _saved(model: PreTrainedModel, recipe: Recipe, labels: list[str], folder: Path) -> PreTrainedModel:
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    is_multi_label = recipe.loss == "binary_cross_entropy"
    model.config.problem_type = f"{'multi' if is_multi_label else 'single'}_label_classification"
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def _input(recipe: Recipe) -> dict[str, int]:
    stride = recipe.stride or AST_STRIDE
    return {"max_length": recipe.frames or 1024, "time_stride": stride, "frequency_stride": stride}


def _ast_config(recipe: Recipe) -> ASTConfig:
    return ASTConfig(**_input(recipe))


AST = {"config": _ast_config, "model_class": ASTForAudioClassification}
BACKBONES = {
    "ast": Backbone("the AST trained on AudioSet", "MIT/ast-finetuned-audioset-10-10-0.4593", _pretrained, **AST),
    "ssast": Backbone(
        "the self-supervised AST (SSAST-Base-Patch-400)", None, _ast_of_ssast, **AST, has_extractor=False
    ),
    "image": Backbone(
        "the image model that AST starts from",
        "facebook/deit-base-distilled-patch16-384",
        _ast_of_an_image_model,
        **AST,
        has_extractor=False,
    ),
    "wav2vec2": Backbone(
        "wav2vec 2.0",
        "facebook/wav2vec2-base",
        _pretrained,
        lambda recipe: Wav2Vec2Config(use_weighted_layer_sum=recipe.weighted_layer_sum),
        Wav2Vec2ForSequenceClassification,
        reads_waveforms=True,
    ),
}
