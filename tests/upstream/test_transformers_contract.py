"""What the package relies on inside transformers: arguments of loading, methods of models, layouts, the Trainer."""

import dataclasses
import inspect

import pytest
import torch
import transformers
from tiny import NUM_LABELS, WITH_PADDING, make, make_padded_inputs
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.modeling_utils import LoadStateDictConfig
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

from peft_audio.upstream import trainer_checkpoints, transformers_loading, transformers_models


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_the_loading_configuration_says_where_files_are():
    """Else an Auto class loads an adapter from another revision or folder than it was asked to."""
    assert "download_kwargs" in {field.name for field in dataclasses.fields(LoadStateDictConfig)}
    config = LoadStateDictConfig(download_kwargs={"revision": "v1", "subfolder": "deep", "token": None})
    arguments = {"load_config": config, "adapter_kwargs": {"revision": "v2"}, "local_files_only": True}
    location = transformers_loading.adapter_location(arguments)
    assert location == {"revision": "v2", "subfolder": "deep", "local_files_only": True}
    assert transformers_loading.is_called_by_from_pretrained(arguments)
    assert not transformers_loading.is_called_by_from_pretrained({"kwargs": {"download_kwargs": {"revision": "v1"}}})


def test_download_arguments_have_transformers_names():
    """Else `load_adapter` ignores where on the Hub an adapter is."""
    names = set(transformers.utils.hub.DownloadKwargs.__annotations__)
    assert set(transformers_loading.LOCATION) <= names


def test_loading_reports_the_tensors_left_random(tmp_path):
    """Else `AutoPeftModelForAudioClassification` does not see that a base model's file lacks tensors."""
    make("ast").save_pretrained(tmp_path)
    cls = type(make("ast"))
    _, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert transformers_loading.keys_left_random(info) == ([], [])
    options = {"num_labels": 2, "ignore_mismatched_sizes": True}
    _, info = cls.from_pretrained(tmp_path, **options, output_loading_info=True)
    missing, mismatched = transformers_loading.keys_left_random(info)
    assert mismatched == ["classifier.dense.bias", "classifier.dense.weight"] and set(missing) <= set(mismatched)
    _, info = cls.from_pretrained(tmp_path, num_hidden_layers=4, output_loading_info=True)
    missing, mismatched = transformers_loading.keys_left_random(info)
    assert any(".3." in key for key in missing) and mismatched == []


def test_parameters_that_were_in_no_checkpoint_are_known(tmp_path):
    """Else new convolutions behind an encoder stay random, and nothing says that a new head is not saved."""
    make("wav2vec2", bare=True).save_pretrained(tmp_path)
    cls = transformers.Wav2Vec2ForCTC
    model, info = cls.from_pretrained(tmp_path, add_adapter=True, vocab_size=9, output_loading_info=True)
    assert transformers_models.was_loaded(model) and info["missing_keys"]
    assert set(transformers_models.new_parameters(model)) == set(info["missing_keys"])
    assert not transformers_models.was_loaded(make("wav2vec2"))
    assert not transformers_models.new_parameters(make("wav2vec2"))


def test_pipelines_accept_peft_models_by_name():
    """Else `pipeline("audio-classification", model=peft_model)` warns that the model is not supported."""
    assert all(isinstance(names, list) for names in SUPPORTED_PEFT_TASKS.values())
    assert "PeftModel" in SUPPORTED_PEFT_TASKS["audio-classification"]
    source = inspect.getsource(transformers.Pipeline.check_model_type)
    assert "SUPPORTED_PEFT_TASKS[self.task]" in source


# ---- models ----------------------------------------------------------------------------------------------------------


def test_models_initialize_modules_of_their_own_kind():
    """Else a head of another size, made while an adapter is loaded, keeps uninitialized memory."""
    model = make("wav2vec2", initializer_range=0.5)
    linear = nn.Linear(100, 100)
    with torch.no_grad():
        linear.weight.fill_(float("nan"))
        linear.bias.fill_(float("nan"))
    transformers_models.initialize_weights(model, linear)
    assert linear.weight.std().item() == pytest.approx(0.5, rel=0.1) and not linear.bias.any()


@pytest.mark.parametrize("backbone", [name for name in WITH_PADDING if not name.startswith("wav2vec2-bert")])
def test_the_frame_mask_counts_the_frames_of_the_clip_alone(backbone):
    """Else statistics pooling averages over padding."""
    batch, (_, short) = make_padded_inputs(backbone)
    encoder = make(backbone, bare=True)
    with torch.no_grad():
        num_frames = encoder(**batch).last_hidden_state.shape[1]
        alone = encoder(input_values=short["input_values"]).last_hidden_state.shape[1]
    mask = transformers_models.frame_mask(make(backbone), num_frames, batch["attention_mask"])
    assert mask.shape == (2, num_frames) and mask.sum(dim=1).tolist() == [num_frames, alone]


@pytest.mark.parametrize("backbone", WITH_PADDING)
def test_the_attention_mask_is_the_second_argument(backbone):
    """Else statistics pooling takes another positional argument for the mask."""
    names = list(inspect.signature(type(make(backbone)).forward).parameters)
    assert names[:3][-1] == "attention_mask" and names[0] == "self"


def test_a_configuration_names_the_attention_function():
    """Else states that `cache_frozen` computed with one attention function are used with another."""
    model = make("wav2vec2")
    assert transformers_models.attention_implementation(model.config) == "sdpa"
    model.set_attn_implementation("eager")
    assert transformers_models.attention_implementation(model.config) == "eager"


def test_layers_know_whether_they_are_checkpointed():
    """Else reentrant checkpointing of the first layer on cached states gives adapters no gradient."""
    model = make("wav2vec2").train()
    layer = model.base_model.encoder.layers[1]
    assert not transformers_models.is_checkpointed(layer)
    model.gradient_checkpointing_enable()
    assert transformers_models.is_checkpointed(layer)
    is_outside = type(layer).__call__ is not nn.Module.__call__
    assert transformers_models.is_checkpointed_outside(layer) == is_outside
    with torch.no_grad():
        assert not transformers_models.is_checkpointed(layer)
    assert not transformers_models.is_checkpointed(layer.eval())


# ---- Audio Spectrogram Transformers ----------------------------------------------------------------------------------


def test_an_ast_has_the_modules_that_resizing_changes():
    """Else `resize_ast` refuses every model, or changes what the model does not use."""
    model = make("ast")
    embeddings = model.base_model.embeddings
    assert embeddings.config.max_length == 46 and isinstance(embeddings.position_embeddings, nn.Parameter)
    assert tuple(embeddings.patch_embeddings.projection.stride) == (
        model.config.frequency_stride,
        model.config.time_stride,
    )


def test_an_ast_pools_its_two_special_tokens_and_returns_that_second():
    """Else mean-token pooling (SSAST) replaces another output, or includes special tokens."""
    model = make("ast", bare=True)
    clips = torch.randn(2, 46, 36)
    with torch.no_grad():
        output, as_tuple = model(clips), model(clips, return_dict=False)
    assert torch.equal(output.pooler_output, (output[0][:, 0] + output[0][:, 1]) / 2)
    assert torch.equal(as_tuple[0], output.last_hidden_state) and torch.equal(as_tuple[1], output.pooler_output)
    assert isinstance(make("ast").classifier.layernorm, nn.LayerNorm)


@pytest.mark.parametrize("image", ["vit", "deit"])
def test_image_models_have_the_encoder_of_an_ast(image):
    """Else `ast_from_vit` cannot copy the encoder."""
    ast, model = make("ast").base_model.state_dict(), make(image).base_model.state_dict()
    encoder = {name: tensor.shape for name, tensor in model.items() if name.startswith(("layers.", "layernorm."))}
    assert encoder == {name: tensor.shape for name, tensor in ast.items() if not name.startswith("embeddings.")}
    embeddings = {"cls_token", "position_embeddings", "patch_embeddings.projection.weight"}
    assert {f"embeddings.{name}" for name in embeddings} <= model.keys() & ast.keys()
    assert make(image).base_model.embeddings.patch_embeddings.patch_size == (8, 8)


# ---- the Trainer -----------------------------------------------------------------------------------------------------


class Noise(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"input_values": torch.randn(46, 36), "labels": index % NUM_LABELS}


def test_the_trainer_writes_its_state_last(tmp_path, monkeypatch):
    """Else `last_complete_checkpoint` returns checkpoints that were cut short."""
    written = []
    original = TrainerState.save_to_json

    def save_to_json(self, path):
        folder = tmp_path / "checkpoint-2"
        written.append({file.name for file in folder.iterdir()})
        original(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", save_to_json)
    options = {"per_device_train_batch_size": 1, "save_steps": 2, "max_steps": 2, "report_to": "none", "use_cpu": True}
    Trainer(make("ast"), TrainingArguments(tmp_path, **options), train_dataset=Noise()).train()
    folder = tmp_path / f"{trainer_checkpoints.FOLDER_PREFIX}-2"
    after = {file.name for file in folder.iterdir()}
    assert written[0] and after - written[0] == {trainer_checkpoints.STATE_NAME}
    assert trainer_checkpoints.step_of_state(folder) == 2


def test_the_name_of_the_state_is_the_trainers():
    """Else `last_complete_checkpoint` finds no checkpoint."""
    assert trainer_checkpoints.STATE_NAME == transformers.trainer.TRAINER_STATE_NAME


def test_a_state_that_cannot_be_read_has_no_step(tmp_path):
    assert trainer_checkpoints.step_of_state(tmp_path) is None
    (tmp_path / trainer_checkpoints.STATE_NAME).write_text('{"global_step": ')
    assert trainer_checkpoints.step_of_state(tmp_path) is None


@torch.no_grad()
def test_wavlm_makes_the_bias_of_relative_positions_for_any_length():
    """Else prompts on WavLM get wrong positions: their part of the bias is made by the first attention module."""
    attention = make("wavlm").wavlm.encoder.layers[0].attention
    bias = transformers_models.wavlm_position_bias(attention, 7, 7)
    assert bias.shape == (4, 7, 7)
    # A bias depends on the distance alone, so a shorter one is a part of a longer one.
    torch.testing.assert_close(transformers_models.wavlm_position_bias(attention, 5, 3), bias[:, 2:, 2:5])
