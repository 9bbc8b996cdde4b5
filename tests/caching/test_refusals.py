"""What cannot be cached, or not any more: refused, with the reason and the way out."""

import pytest
import torch
from cached import SETUPS, Samples, batch_of, cache, frozen_head, logits, unwrapped, with_lora
from peft import LoraConfig, get_peft_model
from refusals import bert, left_alone
from tiny import METHODS, NUM_LABELS, make, randomize

from peft_audio.caching import cache_frozen


class Noisy(Samples):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, self.main: sample[self.main] + torch.rand(1)}


class NoisyInBetween(Samples):
    """Whose first, last and middle samples are always the same."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, self.main: sample[self.main] + torch.rand(1) * (index == 1)}


class OneShorter(Samples):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, self.main: sample[self.main][: 700 if index == 3 else 800]}


class Renamed(Samples):
    def __getitem__(self, index):
        return {"waveform": self.inputs[index]}


def unfrozen(model, path):
    model.get_parameter(path).requires_grad_(True)
    return model


def probe(**options):
    return get_peft_model(make("wav2vec2", **options), METHODS["linear_probe"]())


def adapted(method, **options):
    return get_peft_model(make("wav2vec2", **options), METHODS[method]())


def upper_with_frozen_layer_weights():
    config = METHODS["ipet"](layers_to_transform=[1, 2], modules_to_save=["classifier"])
    return get_peft_model(make("wav2vec2", use_weighted_layer_sum=True), config)


MODELS = {
    "dropout": (lambda: probe(hidden_dropout=0.1), r"training mode.*hidden_dropout=0.1.*Dropout.*deterministic=True"),
    "functional dropout": (lambda: probe(attention_dropout=0.1), "attention_dropout=0.1"),
    "SpecAugment": (lambda: probe(mask_time_prob=0.5, mask_time_length=2), "mask_time_prob=0.5"),
    "layerdrop": (lambda: frozen_head("wav2vec2", layerdrop=0.9), "layerdrop=0.9"),
    "batch norm": (lambda: frozen_head("wav2vec2-conformer-rotary"), r"training mode.*batch_norm \(BatchNorm1d\)"),
    "layer weights": (lambda: adapted("ipet", use_weighted_layer_sum=True), "hidden states of all encoder layers"),
    "plain layer weights": (
        lambda: unfrozen(frozen_head("wav2vec2", use_weighted_layer_sum=True), "layer_weights"),
        "hidden states of all encoder layers",
    ),
    "frozen layer weights": (upper_with_frozen_layer_weights, "does not give the logits.*use_weighted_layer_sum"),
    "input prompts": (lambda: adapted("input_prompt"), "feature_extractor.*before the first encoder layer"),
    "feature encoder": (
        lambda: unfrozen(frozen_head("wav2vec2"), "wav2vec2.feature_projection.projection.weight"),
        r"feature_projection.projection' .*before the first encoder layer",
    ),
    "everything": (lambda: make("wav2vec2"), "before the first encoder layer"),
    "a parameter of the encoder": (
        lambda: unfrozen(frozen_head("wav2vec2", mask_time_prob=0.1), "wav2vec2.masked_spec_embed"),
        "wav2vec2.masked_spec_embed.*belongs to no module",
    ),
    "hidden states": (lambda: probe(output_hidden_states=True), "`output_hidden_states=True` asks"),
    "rare layerdrop": (lambda: frozen_head("wav2vec2", layerdrop=1e-9), "layerdrop=1e-09"),
    "nothing": (lambda: make("wav2vec2").requires_grad_(False), "Nothing trains"),
    "another type": (bert, "not a supported backbone"),
}


@pytest.mark.parametrize("make_model, message", MODELS.values(), ids=MODELS)
def test_such_a_model_is_refused_and_left_alone(make_model, message, tmp_path):
    model, samples = make_model(), Samples("wav2vec2")
    if model.config.model_type != "bert":
        logits(model, batch_of(samples))  # transformers adds hooks of its own the first time
    model.train()
    with left_alone(model=model, folder=tmp_path), pytest.raises(ValueError, match=f"(?s){message}"):
        cache_frozen(model, samples, tmp_path / "states")


DATA = {
    "augmentation": (Noisy, "other values each time"),
    "lengths": (OneShorter, r"same shape.*sample 0 has input_values \(800,\).*sample 3 .*\(700,\).*max_length"),
    "other columns": (Renamed, "'input_values', got 'waveform'"),
    "no samples": (lambda backbone: Samples(backbone, num_clips=0), "at least one sample"),
}


@pytest.mark.parametrize("make_samples, message", DATA.values(), ids=DATA)
def test_such_a_data_set_is_refused_before_anything_is_written(make_samples, message, tmp_path):
    model = probe()
    logits(model, batch_of(Samples("wav2vec2")))
    with left_alone(model=model, folder=tmp_path), pytest.raises(ValueError, match=f"(?s){message}"):
        cache_frozen(model, make_samples("wav2vec2"), tmp_path / "states")


def test_augmentation_of_any_sample_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="Sample 1 .*other values each time"):
        cache_frozen(probe(), NoisyInBetween("wav2vec2"), tmp_path)


@pytest.mark.parametrize("options", [{"hidden_dropout": 0.9}, {"mask_time_prob": 0.5, "mask_time_length": 2}])
def test_a_random_frozen_part_can_be_accepted_as_it_is_in_evaluation(options, tmp_path):
    model, samples = probe(**options), Samples("wav2vec2")
    cached = cache_frozen(model, samples, tmp_path, deterministic=True)
    expected = logits(model.eval(), batch_of(samples))
    torch.testing.assert_close(logits(model.train(), batch_of(cached)), expected)


# ---- later -----------------------------------------------------------------------------------------------------------


def change_weight(model):
    with torch.no_grad():
        unwrapped(model).wav2vec2.encoder.layers[0].feed_forward.output_dense.weight.mul_(1.01)


def unfreeze_lower_layer(model):
    unwrapped(model).wav2vec2.encoder.layers[0].requires_grad_(True)


def adapt_lower_layer(model):
    model.add_adapter("lower", METHODS["ipet"](layers_to_transform=[0], modules_to_save=[]))
    model.base_model.set_adapter(["default", "lower"])


def lora_in_lower_layer(model):
    model.add_adapter("lower", LoraConfig(target_modules=["q_proj"], layers_to_transform=[0]))
    model.set_adapter("lower")


LATER = {
    "weights": ("upper_ipet", change_weight, "Weights or buffers of the frozen part.*have changed"),
    "training": ("upper_ipet", unfreeze_lower_layer, r"layers.0.* trains now.*cache_frozen again"),
    "adapter": ("upper_ipet", adapt_lower_layer, r"layers.0' trains now, or has an active adapter"),
    "lora": ("upper_lora", lora_in_lower_layer, r"layers.0.attention.q_proj.* trains now"),
}


@pytest.mark.parametrize("setup, change, message", LATER.values(), ids=LATER)
def test_states_are_refused_when_what_is_before_them_changes(setup, change, message, tmp_path):
    model, samples = SETUPS[setup]("wav2vec2"), Samples("wav2vec2")
    batch = batch_of(cache(model, samples, tmp_path))
    logits(model, batch)
    change(model)
    with pytest.raises(RuntimeError, match=message):
        model(**batch)
    again = batch_of(samples) if change is unfreeze_lower_layer else batch_of(cache(model, samples, tmp_path))
    torch.testing.assert_close(logits(model.eval(), again), logits(model, batch_of(samples)))


BATCHES = {
    "states of another split point": (
        lambda batch: {**batch, "input_values": batch["input_values"][:, :9]},
        "not of this",
    ),
    "another type": (lambda batch: {**batch, "input_values": batch["input_values"].double()}, "float64.*not of this"),
    "no mask": (lambda batch: {k: v for k, v in batch.items() if k != "attention_mask"}, "attention_mask"),
    "hidden states": (lambda batch: {**batch, "output_hidden_states": True}, "`output_hidden_states=True`"),
    "attentions": (lambda batch: {**batch, "output_attentions": True}, "`output_attentions=True`"),
    "mixed adapters": (lambda batch: {**batch, "adapter_names": ["default", "__base__"] * 2}, "`adapter_names`"),
}


@pytest.mark.parametrize("change, message", BATCHES.values(), ids=BATCHES)
def test_such_a_batch_of_states_is_refused(change, message, tmp_path):
    model, samples = SETUPS["upper_ipet"]("wav2vec2").eval(), Samples("wav2vec2", padded=True)
    batch = batch_of(cache(model, samples, tmp_path))
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        model(**change(batch))
    torch.testing.assert_close(logits(model, batch), logits(model, batch_of(samples)))


def test_a_mask_that_the_states_were_computed_without_is_refused(tmp_path):
    model = probe()
    batch = batch_of(cache(model, Samples("wav2vec2"), tmp_path))
    with pytest.raises(RuntimeError, match=r"with \{'attention_mask': \(38,\)\}"):
        model(**batch, attention_mask=torch.ones(4, 38, dtype=torch.long))


def test_a_data_set_for_an_earlier_split_point_is_refused(tmp_path):
    model, samples = randomize(SETUPS["upper_ipet"]("wav2vec2")), Samples("wav2vec2")
    earlier = cache(model, samples, tmp_path)
    model.add_adapter("top", METHODS["ipet"](layers_to_transform=[2]))
    model.set_adapter("top")
    later = cache(model, samples, tmp_path)
    with pytest.raises(RuntimeError, match="cache_frozen was called again"):
        earlier[0]
    torch.testing.assert_close(logits(model.eval(), batch_of(later)), logits(model, batch_of(samples)))


def test_a_layer_that_is_left_out_at_random_is_not_passed_over(tmp_path):
    model = with_lora("wav2vec2", layerdrop=0.99).train()
    cached = cache_frozen(model, Samples("wav2vec2"), tmp_path, deterministic=True)
    with pytest.raises(RuntimeError, match="did not run.*layerdrop"):
        model(**batch_of(cached))
    assert logits(model.eval(), batch_of(cached)).shape == (4, NUM_LABELS)


# ---- weights that are sharded over processes -------------------------------------------------------------------------


@pytest.fixture
def one_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded_by_fsdp(model):
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    encoder = unwrapped(model).wav2vec2.encoder
    for module in (*encoder.layers, encoder):
        torch.distributed.fsdp.fully_shard(module, mesh=mesh)


def sharded_by_zero(model):
    """As DeepSpeed leaves a parameter outside of its module's forward pass, but for its size."""
    weight = unwrapped(model).wav2vec2.encoder.layers[0].feed_forward.output_dense.weight
    weight.data, weight.ds_id = weight.data.clone(), 0


@pytest.mark.parametrize("shard", [sharded_by_fsdp, sharded_by_zero])
def test_a_frozen_part_that_is_sharded_over_processes_is_refused(shard, one_process_group, tmp_path):
    model, samples = SETUPS["upper_ipet"]("wav2vec2"), Samples("wav2vec2")
    batch = batch_of(cache(model, samples, tmp_path / "before"))
    shard(model)
    with pytest.raises(RuntimeError, match="sharded over several processes.*torchrun"):
        model(**batch)
    with pytest.raises(RuntimeError, match="sharded over several processes.*torchrun"):
        cache(model, samples, tmp_path / "after")
    assert not (tmp_path / "after").exists()
    assert logits(model, batch_of(samples)).isfinite().all()
