"""The auto classes of the tasks: each brings its base model to what the adapter needs, and refuses the others'."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tasks import AUTO, CASES, VOCABULARY, base_folder, each_task, inputs_of, load
from tiny import METHODS, make_inputs, randomize

import peft_audio


ALL = (*AUTO.values(), "AutoPeftModelForAudioClassification", "AutoPeftModelForSpeechSeq2Seq")


def save(backbone, task, folder, **options):
    model = randomize(get_peft_model(load(backbone, task, **options), METHODS["ipet"]()), std=0.02).eval()
    model.save_pretrained(folder)
    return model


def same(model, other, inputs):
    with torch.no_grad():
        actual, expected = model(**inputs), other(**inputs)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key])


@each_task
def test_an_adapter_of_a_task_loads_in_one_line(backbone, task, tmp_path):
    model = save(backbone, task, tmp_path)
    loaded = getattr(peft_audio, AUTO[task]).from_pretrained(tmp_path)
    assert type(loaded.get_base_model()) is type(model.get_base_model()) and not loaded.training
    same(loaded, model, inputs_of(backbone, task))


@pytest.mark.parametrize("backbone", ["wav2vec2", "wav2vec2-bert", "wavlm"])
def test_convolutions_behind_the_encoder_come_back(backbone, tmp_path):
    model = save(backbone, "ForCTC", tmp_path, add_adapter=True, num_adapter_layers=1)
    loaded = peft_audio.AutoPeftModelForCTC.from_pretrained(tmp_path)
    assert loaded.config.add_adapter and loaded.config.vocab_size == VOCABULARY
    same(loaded, model, inputs_of(backbone, "ForCTC"))


@pytest.mark.parametrize("backbone, task", [case for case in CASES if case[0] == "wavlm"])
def test_transformers_auto_class_loads_it_too(backbone, task, tmp_path):
    model = save(backbone, task, tmp_path)
    auto = getattr(transformers, AUTO[task].replace("Peft", ""))
    same(auto.from_pretrained(tmp_path), model, inputs_of(backbone, task))


@pytest.mark.parametrize("task", AUTO)
def test_an_adapter_of_another_task_is_refused_with_the_right_class(task, tmp_path):
    save("wav2vec2", task, tmp_path)
    for name in set(ALL) - {AUTO[task]}:
        with pytest.raises(
            ValueError, match=f"trained for another task .*Use peft_audio.{AUTO[task]}.from_pretrained"
        ):
            getattr(peft_audio, name).from_pretrained(tmp_path)


def seq2seq():
    torch.manual_seed(0)
    return transformers.AutoModelForSpeechSeq2Seq.from_pretrained(base_folder("whisper"))


@pytest.mark.parametrize("method", ["ipet", "parallel_mlp", "input_prompt"])
def test_whisper_with_its_decoder_loads_and_generates(method, tmp_path):
    model = randomize(get_peft_model(seq2seq(), METHODS[method]()), std=0.3).eval()
    model.save_pretrained(tmp_path)
    loaded = peft_audio.AutoPeftModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    inputs = {**make_inputs("whisper"), "decoder_input_ids": torch.tensor([[1, 3], [1, 4]])}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
        assert not torch.allclose(model(**inputs).logits, seq2seq()(**inputs).logits)
    with pytest.raises(ValueError, match="Use peft_audio.AutoPeftModelForSpeechSeq2Seq.from_pretrained"):
        peft_audio.AutoPeftModelForAudioClassification.from_pretrained(tmp_path)


def test_a_recognizer_and_the_processor_that_the_trainer_saves_are_found_in_the_folder(tmp_path):
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdef"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), word_delimiter_token="|")
    extractor, folder = transformers.Wav2Vec2FeatureExtractor(), str(tmp_path / "adapter")
    model = randomize(get_peft_model(load("hubert", "ForCTC"), METHODS["ipet"]()), std=0.02).eval()
    arguments = transformers.TrainingArguments(folder, report_to=[], use_cpu=True)
    processor = transformers.Wav2Vec2Processor(extractor, tokenizer)
    transformers.Trainer(model, arguments, processing_class=processor).save_model(folder)
    clip = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    with torch.no_grad():
        ids = model(**extractor(clip, sampling_rate=16000, return_tensors="pt")).logits.argmax(-1)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    (expected,) = processor.batch_decode(ids)
    loaded = peft_audio.AutoPeftModelForCTC.from_pretrained(folder)
    by_model = {"model": loaded, "tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    by_folder = {"model": folder, "tokenizer": folder, "feature_extractor": folder}
    for options in (by_model, by_folder):
        recognize = transformers.pipeline("automatic-speech-recognition", **options)
        assert recognize(clip)["text"] == expected != ""


def test_another_blank_is_refused(tmp_path):
    save("wav2vec2", "ForCTC", tmp_path)
    base = load("wav2vec2", "ForCTC")
    base.config.pad_token_id = 3
    with pytest.raises(ValueError, match="trained with pad_token_id=0, but this Wav2Vec2ForCTC has pad_token_id=3"):
        PeftModel.from_pretrained(base, tmp_path)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("vocab_size", 10**12, "`base_settings` must be such that head is"),
        ("vocab_size", 10**6, r"lm_head.weight is \(11, 32\), but `base_settings` make it \(1000000, 32\)"),
        ("tdnn_dim", [10**6] * 3, r"projector.weight is \(16, 32\), but `base_settings` make it \(1000000, 32\)"),
    ],
)
def test_heads_from_strangers_are_compared_with_the_weights_before_they_get_memory(field, value, message, tmp_path):
    task = "ForXVector" if field == "tdnn_dim" else "ForCTC"
    save("wav2vec2", task, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_settings"]["head"][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        getattr(peft_audio, AUTO[task]).from_pretrained(tmp_path)


@pytest.mark.parametrize("task", AUTO)
def test_the_card_shows_the_class_of_the_task(task, tmp_path):
    save("wav2vec2", task, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"model = peft_audio.{AUTO[task]}.from_pretrained(" in card and "AudioClassification.from" not in card
    assert ("pipeline_tag: automatic-speech-recognition" in card) == (task == "ForCTC")
    assert "pipeline_tag: audio-classification" not in card
