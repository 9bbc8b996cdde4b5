"""Pipelines from the folder of an adapter whose base model was resized."""

import pytest
import torch
from peft import get_peft_model
from sounds import EXTRACTORS, tone
from tiny import METHODS, make, randomize
from transformers import pipeline

from peft_audio import AutoPeftModelForAudioClassification, resize_ast, resize_whisper


RESIZES = {
    "ast": (lambda model: resize_ast(model, max_length=30), {}),
    "whisper": (lambda model: resize_whisper(model, 1), {"max_source_positions": 100}),
}
WHOLE = {"ast": {}, "whisper": {"chunk_length": 2}}


@pytest.mark.parametrize("backbone", RESIZES)
@pytest.mark.parametrize("own_extractor", [False, True], ids=["of_the_base_model", "of_the_adapter"])
@torch.no_grad()
def test_clips_are_made_as_long_as_the_resized_model_takes(backbone, own_extractor, tmp_path):
    resize, options = RESIZES[backbone]
    extractor = EXTRACTORS[backbone](**WHOLE[backbone])
    make(backbone, **options).save_pretrained(tmp_path / "base")
    for folder in ("base", "adapter"):
        extractor.save_pretrained(tmp_path / folder)
    base = type(make(backbone)).from_pretrained(tmp_path / "base")
    randomize(get_peft_model(resize(base), METHODS["ipet"]())).save_pretrained(tmp_path / "adapter")
    model = AutoPeftModelForAudioClassification.from_pretrained(tmp_path / "adapter")

    clip = tone("low")
    short = EXTRACTORS[backbone](**({"max_length": 30} if backbone == "ast" else {"chunk_length": 1}))
    scores = model(**short(clip, sampling_rate=16000, return_tensors="pt")).logits.softmax(-1)[0]
    given = {"feature_extractor": extractor} if own_extractor else {}
    for source in (str(tmp_path / "adapter"), model):
        if source is model and not own_extractor:
            continue  # a pipeline around a PeftModel needs one
        classify = pipeline("audio-classification", model=source, **given)
        found = {entry["label"]: entry["score"] for entry in classify({"raw": clip, "sampling_rate": 16000})}
        assert found == {f"LABEL_{index}": pytest.approx(score.item(), abs=1e-5) for index, score in enumerate(scores)}
    assert (
        getattr(extractor, "max_length", 46) == 46 and getattr(extractor, "chunk_length", 2) == 2
    )  # the caller's own


def test_a_model_that_was_never_resized_keeps_its_feature_extractor(tmp_path):
    extractor = EXTRACTORS["ast"](max_length=50)
    classify = pipeline("audio-classification", model=make("ast"), feature_extractor=extractor)
    assert classify.feature_extractor.max_length == 50
