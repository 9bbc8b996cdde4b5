"""Results in the metadata of cards: what the Hub's library reads there is what was measured, for every task."""

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from peft import LoraConfig, get_peft_model
from tasks import load
from tiny import METHODS, make
from transformers import ASTFeatureExtractor

from peft_audio import write_card


MODELS = {
    "classification": lambda: make("ast"),
    "CTC": lambda: load("wav2vec2", "ForCTC"),
    "x-vectors": lambda: load("wav2vec2", "ForXVector"),
    "frames": lambda: load("wav2vec2", "ForAudioFrameClassification"),
}
TASKS = {"CTC": "automatic-speech-recognition"}
PIPELINES = {"classification": "audio-classification", **TASKS}
RESULTS = {"accuracy": (0.83, 0.01), "macro_f1": 0.8, "loss": 0.5}


def read(folder):
    """The metadata as the Hub's library reads it, which raises where `model-index` has another form."""
    return ModelCardData(**metadata_load(folder / "README.md"))


def expected(task, dataset, results=RESULTS):
    types = {"macro_f1": "f1"}
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=types.get(name, name),
            metric_name=name,
            metric_value=score[0] if isinstance(score, tuple) else score,
        )
        for name, score in results.items()
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_the_hub_reads_the_results_of_every_task(kind, tmp_path):
    folder = tmp_path / "adapter"
    model = get_peft_model(MODELS[kind](), METHODS["parallel_mlp"]())
    model.save_pretrained(folder)
    assert read(folder).eval_results is None
    write_card(folder, results=RESULTS, metadata={"datasets": ["me/sounds"]})
    data, task = read(folder), TASKS.get(kind, "audio-classification")
    assert data.eval_results == expected(task, "me/sounds") and data.model_name == "adapter"
    assert data.datasets == ["me/sounds"] and data.metrics == ["accuracy", "f1"]
    assert data.library_name == "peft" and data.pipeline_tag == PIPELINES.get(kind)
    model.save_pretrained(folder)  # stays
    assert read(folder).eval_results == expected(task, "me/sounds")


def test_error_rates_of_a_recognizer_are_its_results(tmp_path):
    write = {"wer": (0.25, 0.02), "cer": 0.1}
    get_peft_model(load("wav2vec2", "ForCTC"), METHODS["ipet"]()).save_pretrained(tmp_path)
    write_card(tmp_path, results=write, metadata={"metrics": ["wer", "cer"]})
    data = read(tmp_path)
    assert data.eval_results == expected("automatic-speech-recognition", "unknown", write)
    assert data.metrics == ["wer", "cer"] and data.datasets is None


def test_other_models_have_results_too_and_newer_ones_take_their_place(tmp_path):
    base = make("ast")
    ASTFeatureExtractor(num_mel_bins=36, max_length=46).save_pretrained(tmp_path)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "query"]))
    model.save_pretrained(tmp_path)
    for value in (0.5, 0.75):
        write_card(tmp_path, model=model, location="me/lora", results={"accuracy": value})
        data = read(tmp_path)
        assert data.eval_results == expected("audio-classification", "unknown", {"accuracy": value})
        assert data.model_name == "lora"


def test_results_of_several_data_sets_are_of_no_single_one(tmp_path):
    get_peft_model(make("ast"), METHODS["ipet"]()).save_pretrained(tmp_path)
    write_card(tmp_path, results={"map": 0.5}, metadata={"datasets": ["me/a", "me/b"]})
    (result,) = read(tmp_path).eval_results
    assert (result.dataset_name, result.metric_type, result.metric_name) == (
        "unknown",
        "mean_average_precision",
        "map",
    )


def test_a_damaged_model_index_does_not_stop_saving(tmp_path):
    model = get_peft_model(make("ast"), METHODS["ipet"]())
    (tmp_path / "README.md").write_text("---\nmodel-index: {nope: 1}\nlicense: mit\n---\nMine.\n")
    model.save_pretrained(tmp_path)
    assert "Mine." in ModelCard.load(tmp_path / "README.md").text
    write_card(tmp_path, results=RESULTS)
    assert read(tmp_path).eval_results == expected("audio-classification", "unknown")
