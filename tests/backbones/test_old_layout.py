"""One checkpoint for two layouts of the same model: AST as it is now, and with the module names of older releases."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny import METHODS, NUM_LAYERS, count_hooks, each_method, make_ast, make_inputs, randomize, same, trainable
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import (
    ASTEmbeddings,
    ASTMLPHead,
    ASTPreTrainedModel,
)

from peft_audio.backbones.table import resolve


LABELS = torch.tensor([0, 3])
OLD_NAMES = {
    "transformer.layers.": "transformer.encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


class Scores(nn.Module):
    """The inner attention module: one tensor in, no mask, a tuple out."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, hidden_states):
        q, k, v = (
            linear(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights


class Projection(nn.Module):
    """What follows attention; it is given attention's input, too, and leaves it to the layer to add it."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, input_tensor):
        assert hidden_states.shape == input_tensor.shape
        return self.dense(hidden_states)


class Attention(nn.Module):
    """The wrapper of both. It returned a tuple in the oldest releases, later a tensor."""

    def __init__(self, config):
        super().__init__()
        self.attention, self.output = Scores(config), Projection(config)
        self.returns_tuple = config.attention_returns_tuple

    def forward(self, hidden_states):
        context, weights = self.attention(hidden_states)
        output = self.output(context, hidden_states)
        return (output, weights) if self.returns_tuple else output


class Widening(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states):
        return nn.functional.gelu(self.dense(hidden_states))


class Narrowing(nn.Module):
    """The end of the feed-forward block, which adds the residual stream itself."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states, input_tensor):
        return self.dense(hidden_states) + input_tensor


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.intermediate, self.output = Attention(config), Widening(config), Narrowing(config)
        self.layernorm_before, self.layernorm_after = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2)
        )

    def forward(self, hidden_states):
        attended = self.attention(self.layernorm_before(hidden_states))
        hidden_states = hidden_states + (attended[0] if isinstance(attended, tuple) else attended)
        return self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states)


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states):
        for layer in self.layer:
            hidden_states = layer(hidden_states)
        return hidden_states


class OldASTModel(ASTPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embeddings, self.encoder = ASTEmbeddings(config), Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_values):
        states = self.layernorm(self.encoder(self.embeddings(input_values)))
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, :2].mean(dim=1))


class OldAST(ASTPreTrainedModel):
    """A stand-in for `ASTForAudioClassification` up to transformers 5.0: the module names, and what calls what."""

    def __init__(self, config):
        super().__init__(config)
        self.audio_spectrogram_transformer, self.classifier = OldASTModel(config), ASTMLPHead(config)
        self.post_init()

    def forward(self, input_values, labels=None):
        logits = self.classifier(self.audio_spectrogram_transformer(input_values).pooler_output)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def old_name(name):
    for new, old in OLD_NAMES.items():
        name = name.replace(new, old)
    return name


def make_old(returns_tuple=False):
    """The tiny AST of the other tests in the old layout, with the same weights."""
    new = make_ast()
    new.config.attention_returns_tuple = returns_tuple
    old = OldAST(new.config).eval()
    old.load_state_dict({old_name(name): tensor for name, tensor in new.state_dict().items()})
    return old


LAYOUTS = {"new": make_ast, "old": make_old, "oldest": lambda: make_old(returns_tuple=True)}
each_old_layout = pytest.mark.parametrize("layout", ["old", "oldest"])


def adapted(layout, method):
    return randomize(get_peft_model(LAYOUTS[layout](), METHODS[method]())).eval()


def logits(model):
    with torch.no_grad():
        return model(**make_inputs("ast")).logits


@each_old_layout
def test_the_stand_in_computes_what_the_model_does(layout):
    old = LAYOUTS[layout]()
    assert same(logits(old), logits(make_ast()))
    assert old.config.model_type == "audio-spectrogram-transformer"
    assert resolve(old).layer_names == tuple(
        f"audio_spectrogram_transformer.encoder.layer.{index}" for index in range(NUM_LAYERS)
    )


@each_method
def test_the_keys_of_a_checkpoint_are_the_same(method):
    new, old = (get_peft_model_state_dict(adapted(layout, method)) for layout in ("new", "old"))
    assert {key: tensor.shape for key, tensor in new.items()} == {key: tensor.shape for key, tensor in old.items()}


@each_method
@pytest.mark.parametrize("saved_on, loaded_on", [("new", "old"), ("new", "oldest"), ("old", "new"), ("oldest", "new")])
def test_an_adapter_saved_on_one_layout_loads_on_the_other(method, saved_on, loaded_on, tmp_path):
    model = adapted(saved_on, method)
    expected = logits(model)
    assert not torch.allclose(expected, logits(make_ast()), atol=1e-3)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(LAYOUTS[loaded_on](), tmp_path)
    assert same(logits(again), expected)


def gradients(model):
    """The gradient of every trainable parameter, under its key in the checkpoint."""
    model(**make_inputs("ast"), labels=LABELS).loss.backward()
    return get_peft_model_state_dict(model, {name: value.grad for name, value in trainable(model).items()})


@each_method
@each_old_layout
def test_the_gradients_are_the_same(method, layout):
    new, old = adapted("new", method), adapted(layout, method)
    set_peft_model_state_dict(old, get_peft_model_state_dict(new))
    expected = gradients(new)
    assert len(expected) == len(trainable(new))
    torch.testing.assert_close(gradients(old), expected, atol=1e-5, rtol=1e-4)


@each_method
@each_old_layout
def test_the_old_layout_gets_its_own_logits_back(method, layout):
    model = adapted(layout, method)
    start = logits(LAYOUTS[layout]())
    changed = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)
    plain = get_peft_model(LAYOUTS[layout](), METHODS[method]()).unload()
    assert torch.equal(logits(plain), start)
    assert count_hooks(plain) == 0
    assert plain.state_dict().keys() == LAYOUTS[layout]().state_dict().keys()
