"""Wrong input of every kind: the error says what is wrong and what to do, and files and models stay as they were."""

import builtins
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from ssast import SMALL, make_ssast
from tiny import METHODS, make, make_inputs, randomize
from torch import nn
from transformers import ASTFeatureExtractor, BertConfig, BertForSequenceClassification, Wav2Vec2FeatureExtractor

from peft_audio import (
    AutoPeftModelForAudioClassification,
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    EncoderSpec,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    TimeFreqConvAdapterConfig,
    ast_from_ssast,
    ast_from_vit,
    register_backbone,
    resize_ast,
    use_mean_token_pooling,
    use_statistics_pooling,
    write_card,
)
from peft_audio.backbones import BACKBONES


CONFIG, WEIGHTS, PICKLE, CARD = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"
NAN, INFINITY = float("nan"), float("inf")


class Refusal(NamedTuple):
    """What is raised: the type, a regular expression for the text, and why it is not so yet."""

    error: Union[type[Exception], tuple[type[Exception], ...]]
    message: str
    not_yet: str = ""


class Row(NamedTuple):
    what: str
    act: Callable
    refusal: Refusal


def row(what, act, error, message, not_yet=""):
    return Row(what, act, Refusal(error, message, not_yet))


def param(name, refusal, *values):
    marks = [pytest.mark.xfail(strict=True, reason=refusal.not_yet)] if refusal.not_yet else []
    return pytest.param(*values, refusal, id=name, marks=marks)


def each_row(rows):
    return pytest.mark.parametrize("act, refusal", [param(row.what, row.refusal, row.act) for row in rows])


def refused(refusal):
    return pytest.raises(refusal.error, match=f"(?s){refusal.message}")


# ---- what must not change --------------------------------------------------------------------------------------------


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def state_of(model):
    modules = list(model.named_modules())
    return {
        "classes": [(name, type(module)) for name, module in modules],
        "hooks": [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules],
        "modes": [module.training for _, module in modules],
        "tensors": {name: bytes_of(tensor) for name, tensor in model.state_dict().items()},
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "adapters": {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()},
        "configuration": model.config.to_dict() if hasattr(model, "config") else None,
    }


def bytes_of(tensor):
    return tensor.detach().numpy().tobytes()


@contextmanager
def left_alone(*, model=None, folder=None, but=()):
    """Within, the files in the folder stay as they are, and the model does, but for some of what `state_of` tells."""
    state = None if model is None else state_of(model)
    files = None if folder is None else files_in(folder)
    yield
    if folder is not None:
        assert files_in(folder) == files
    if model is not None:
        after = state_of(model)
        assert [name for name in state if after[name] != state[name] and name not in but] == []


@torch.no_grad()
def logits(model, backbone="ast", **inputs):
    return model(**(inputs or make_inputs(backbone))).logits


# ---- configurations --------------------------------------------------------------------------------------------------


def field(config_cls, rule, **options):
    """A field with a value that breaks the rule. (tests/test_config.py has the plainer ones.)"""
    ((name, value),) = options.items()
    message = f"`{name}` must be .*{rule}.*, got "
    return row(f"{config_cls.__name__}-{name}={value!s:.20}", partial(config_cls, **options), ValueError, message)


CONFIG_CLASSES = (
    EmbeddingPromptConfig,
    ParallelMLPAdapterConfig,
    IPETConfig,
    TimeFreqConvAdapterConfig,
    BottleneckAdapterConfig,
    InputPromptConfig,
)
CONFIGURATIONS = [
    row(f"{cls.__name__}-unknown field", partial(cls, loudness=3), TypeError, f"{cls.__name__}.*'loudness'")
    for cls in CONFIG_CLASSES
] + [
    row(f"{cls.__name__}-task", partial(cls, task_type="AUDIO"), ValueError, "task type: 'AUDIO'.*one of")
    for cls in CONFIG_CLASSES
]
CONFIGURATIONS += [
    field(EmbeddingPromptConfig, "a positive integer", num_virtual_tokens=-1),
    field(EmbeddingPromptConfig, "a positive integer", num_virtual_tokens=np.int64(3)),
    field(EmbeddingPromptConfig, r"in \[0, 1\)", prompt_dropout=NAN),
    field(EmbeddingPromptConfig, "one of 'xavier_uniform'", prompt_init=np.array([1, 2])),
    field(EmbeddingPromptConfig, "different integers", layers_to_transform=range(2)),
    field(EmbeddingPromptConfig, "different integers", layers_to_transform=[[0]]),
    field(EmbeddingPromptConfig, "different integers", layers_to_transform=[NAN]),
    field(ParallelMLPAdapterConfig, "at least 1", reduction_factor=NAN),
    field(ParallelMLPAdapterConfig, "at least 1", reduction_factor=-4),
    field(ParallelMLPAdapterConfig, "finite number", scaling=10**400),
    field(ParallelMLPAdapterConfig, "finite number", scaling=1e39),
    field(ParallelMLPAdapterConfig, "finite number", scaling=-INFINITY),
    field(ParallelMLPAdapterConfig, "finite number", scaling=1j),
    field(ParallelMLPAdapterConfig, r"in \[0, 1\)", dropout=NAN),
    field(ParallelMLPAdapterConfig, "one of .*gelu", activation=["gelu"]),
    field(ParallelMLPAdapterConfig, "'normalized', 'residual'", adapter_input=np.array([1, 2])),
    field(IPETConfig, "list of module names", modules_to_save=[["classifier"]]),
    field(IPETConfig, "list of module names", modules_to_save={"classifier"}),
    field(IPETConfig, "a positive integer", spatial_bottleneck_dim=NAN),
    field(TimeFreqConvAdapterConfig, "odd positive", attention_kernel=(-1, 3)),
    field(TimeFreqConvAdapterConfig, "odd positive", attention_kernel=(True, 3)),
    field(TimeFreqConvAdapterConfig, "pair of odd", mlp_kernel=()),
    field(TimeFreqConvAdapterConfig, "pair of odd", mlp_kernel=np.array([1, 3])),
    field(TimeFreqConvAdapterConfig, "pair of odd", mlp_kernel=[[1, 3]]),
    field(BottleneckAdapterConfig, "'mlp', 'attention' or both", sites=[["mlp"]]),
    field(BottleneckAdapterConfig, "'mlp', 'attention' or both", sites=[{}]),
    field(BottleneckAdapterConfig, "'mlp', 'attention' or both", sites={"mlp"}),
    field(BottleneckAdapterConfig, "'bottleneck', 'conformer'", block=np.array([1, 2])),
    field(BottleneckAdapterConfig, "a positive integer", conv_kernel=-1),
    field(BottleneckAdapterConfig, "True or False", residual=0),
    field(InputPromptConfig, "a positive integer", prompt_size=-3),
    field(InputPromptConfig, "a positive integer", prompt_size=np.array([1, 2])),
]


@each_row(CONFIGURATIONS)
def test_a_wrong_configuration_is_refused(act, refusal):
    with refused(refusal):
        act()


# ---- configurations that meet a model --------------------------------------------------------------------------------


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=30, **sizes))


def put_on(base, config_cls=IPETConfig, name="default", **options):
    def act():
        model = make(base) if isinstance(base, str) else base()
        return model, lambda: get_peft_model(model, config_cls(**options), adapter_name=name)

    return act


BAD_NAMES = {
    "": "",
    "a.b": "",
    "train": "",
    "weight": "",
    "bias": "",
    "layernorm": "",
}
NAME_RULE = "`adapter_name` must .*got '{}'.*Choose another name"
MISFITS = [
    row(
        "no width", put_on("ast", reduction_factor=INFINITY), ValueError, r"`reduction_factor` .*size \(32\), got inf"
    ),
    row("far layer", put_on("ast", layers_to_transform=10**30), ValueError, "must be between -3 and 2 .*got \\[1000"),
    row("same layer twice", put_on("ast", layers_to_transform=[0, -3]), ValueError, r"name one layer, got \[0, -3\]"),
    row(
        "part of a name",
        put_on("ast", modules_to_save=["lassifier"]),
        ValueError,
        "`modules_to_save` .*ASTFor.* none called 'lassifier'. Its head: 'classifier'",
    ),
    *(
        row(f"trains {names}", put_on("ast", modules_to_save=names), ValueError, "`modules_to_save` must ")
        for names in (
            ["0"],
            ["layers"],
            ["attention"],
            ["audio_spectrogram_transformer"],
            ["classifier", "classifier.dense"],
        )
    ),
    row(
        "task",
        put_on("ast", task_type="SEQ_CLS"),
        ValueError,
        "`task_type` must be None",
    ),
    *(row(f"name {name!r}", put_on("ast", name=name), ValueError, NAME_RULE.format(name)) for name in BAD_NAMES),
    row("number for a name", put_on("ast", name=3), TypeError, "string"),
    row("BERT", put_on(bert), ValueError, "BertFor.*'bert'.* not a supported.*wav2vec2.*register_backbone"),
    row("no transformer", put_on(lambda: nn.Linear(2, 2)), ValueError, "Linear has .*None.*register_backbone"),
    row(
        "head of a model without",
        put_on(partial(make, "ast", bare=True), modules_to_save=["classifier"]),
        ValueError,
        "ASTModel, which has none called 'classifier'. Its head: none",
    ),
    row(
        "frequencies of a waveform",
        put_on("wav2vec2", TimeFreqConvAdapterConfig, attention_kernel=(3, 3)),
        ValueError,
        r"`attention_kernel` must be \(1, time\) on wav2vec2.*got \(3, 3\)",
    ),
    row(
        "border wider than the input",
        put_on("ast", InputPromptConfig, prompt_size=10**30),
        ValueError,
        r"`prompt_size` must be at most half of .*\(46, 36\).*got 1000",
    ),
]


@each_row(MISFITS)
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_what_does_not_fit_leaves_the_model_alone(act, refusal):
    model, adapt = act()
    with left_alone(model=model), refused(refusal):
        adapt()


# ---- adapters by name ------------------------------------------------------------------------------------------------


def two_adapters(config=None, **options):
    config = config or METHODS["ipet"]
    model = get_peft_model(make("ast"), config(**options), adapter_name="a")
    model.add_adapter("b", config(**options))
    return randomize(model).eval()


def both_active(**options):
    model = two_adapters(partial(BottleneckAdapterConfig, bottleneck_dim=4, modules_to_save=[]), **options)
    model.base_model.set_adapter(["a", "b"])
    return model


def plain_model():
    model = make("ast")
    model.add_adapter(METHODS["ipet"](), "a")
    return model


def batch(names):
    return lambda model: model(**make_inputs("ast"), adapter_names=names)


ADAPTERS = [
    row("set", (two_adapters, lambda m: m.set_adapter("c")), ValueError, "Adapter c not found"),
    row("delete", (two_adapters, lambda m: m.delete_adapter("c")), ValueError, "Adapter c does not exist"),
    row(
        "add twice", (two_adapters, lambda m: m.add_adapter("a", METHODS["ipet"]())), ValueError, "'a' already exists"
    ),
    row(
        "add another type",
        (two_adapters, lambda m: m.add_adapter("c", METHODS["embedding_prompt"]())),
        ValueError,
        "IPET and .*EMBEDDING_PROMPT",
    ),
    row(
        "add a misfit",
        (two_adapters, lambda m: m.add_adapter("c", METHODS["ipet"](layers_to_transform=7))),
        ValueError,
        r"`layers_to_transform` must be between -3 and 2 .*got \[7\]",
    ),
    row(
        "add no configuration",
        (two_adapters, lambda m: m.add_adapter("c", {"peft_type": "IPET"})),
        AttributeError,
        "'dict'.*'peft_type'",
    ),
    *(
        row(
            f"add {name!r}",
            (two_adapters, lambda m, name=name: m.add_adapter(name, METHODS["ipet"]())),
            ValueError,
            NAME_RULE.format(name),
        )
        for name in BAD_NAMES
    ),
    row("merge", (two_adapters, lambda m: m.merge_and_unload()), ValueError, "cannot be merged.*unload"),
    row("merge in place", (two_adapters, lambda m: m.merge_adapter()), ValueError, "cannot be merged.*unload"),
    row("two heads", (two_adapters, lambda m: m.base_model.set_adapter(["a", "b"])), ValueError, "Only one adapter"),
    row(
        "two replacements",
        (partial(both_active, placement="sequential", residual=False), lambda m: logits(m)),
        ValueError,
        r"'a' takes the place .*residual.*got \['a', 'b'\]. Activate one",
    ),
    row(
        "two norms",
        (partial(both_active, train_layer_norms=True), lambda m: logits(m)),
        ValueError,
        r"Only one active adapter can bring layer norms.*got \['a', 'b'\]. Activate one",
    ),
    row(
        "batch of strangers", (two_adapters, batch(["a", "c"])), ValueError, "`adapter_names` .*'c'.*'a', 'b'; '__base"
    ),
    row("batch of a name", (two_adapters, batch("default")), ValueError, "`adapter_names` .*'d', 'e', 'f'"),
    row("batch of too many", (two_adapters, batch(["a"] * 3)), ValueError, "got 3 names for a batch of 2 samples"),
    row(
        "batch of numbers",
        (two_adapters, batch([1, "c"])),
        ValueError,
        "`adapter_names` .*1",
        "names of several types are compared with each other",
    ),
    row("plain: set", (plain_model, lambda m: m.set_adapter("c")), ValueError, "name c not found.*'a'"),
    row("plain: delete", (plain_model, lambda m: m.delete_adapter("c")), ValueError, "not present.*: c"),
    row("plain: add twice", (plain_model, lambda m: m.add_adapter(METHODS["ipet"](), "a")), ValueError, "a already"),
    row("plain: add a dictionary", (plain_model, lambda m: m.add_adapter({}, "b")), TypeError, "PeftConfig.*dict"),
    row("plain: load nothing", (plain_model, lambda m: m.load_adapter(adapter_name="b")), ValueError, "either pass"),
    row(
        "plain: load no tensors",
        (plain_model, lambda m: m.load_adapter(peft_config=METHODS["ipet"](), adapter_name="b")),
        ValueError,
        "adapter_state_dict",
        "the missing argument is looked up by its name",
    ),
]


@each_row(ADAPTERS)
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_wrong_adapters_leave_the_model_alone(act, refusal):
    prepare, use = act
    model = prepare()
    with left_alone(model=model), refused(refusal):
        use(model)


# ---- folders ---------------------------------------------------------------------------------------------------------


def trained(backbone, folder):
    make(backbone).save_pretrained(folder / "base")
    base = type(make(backbone)).from_pretrained(folder / "base")
    randomize(get_peft_model(base, METHODS["ipet"]())).eval().save_pretrained(folder / "adapter")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in ("ast", "wav2vec2")}
    for backbone, folder in folders.items():
        trained(backbone, folder)
    return folders


@pytest.fixture
def places(originals, tmp_path):
    """A folder with a base model and an adapter for it, which tests may damage."""
    shutil.copytree(originals["ast"], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


def edit(folder, **fields):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, **fields}))


def editing(**fields):
    return lambda folder: edit(folder, **fields)


def dropping(name):
    def damage(folder):
        settings = json.loads((folder / CONFIG).read_text())
        del settings[name]
        (folder / CONFIG).write_text(json.dumps(settings))

    return damage


def writing(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def removing(name):
    return lambda folder: (folder / name).unlink()


def making_a_folder_of(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def flipping(position):
    def damage(folder):
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[position] ^= 0xFF
        (folder / WEIGHTS).write_bytes(content)

    return damage


def tensors(part, change):
    """Damage that changes the first tensor whose name ends with `part`."""

    def damage(folder):
        weights = load_file(folder / WEIGHTS)
        name = next(name for name in weights if name.endswith(part))
        weights[name] = change(weights[name])
        save_file(weights, folder / WEIGHTS)

    return damage


def with_one(value):
    def change(tensor):
        tensor = tensor.double() if abs(value) < INFINITY else tensor
        tensor.view(-1)[3] = value
        return tensor

    return change


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return create, (str(self.file),)


def create(name):
    with open(name, "w"):
        pass


def pickled(make_content, dump=torch.save):
    def damage(folder):
        (folder / WEIGHTS).unlink()
        with open(folder / PICKLE, "wb") as stream:
            dump(make_content(folder), stream)

    return damage


WAYS = {
    "peft": lambda folder: (make("ast"), lambda model: PeftModel.from_pretrained(model, folder)),
    "beside": lambda folder: (two_adapters(), lambda model: model.load_adapter(folder, "second")),
    "plain": lambda folder: (make("ast"), lambda model: model.load_adapter(folder)),
    "auto": lambda folder: (None, lambda _: AutoPeftModelForAudioClassification.from_pretrained(folder)),
}
each_way = pytest.mark.parametrize("way", WAYS)


class Damage(NamedTuple):
    """What is done to an adapter's folder, and what is raised on loading: by this package, and else by PEFT."""

    what: str
    damage: Callable
    ours: Refusal
    peft: Optional[Refusal] = None
    plain: Optional[Refusal] = None

    def cases(self):
        peft = self.peft or self.ours
        by_way = {"peft": peft, "beside": peft, "plain": self.plain or peft, "auto": self.ours}
        return [param(f"{self.what}-{way}", refusal, self.damage, way) for way, refusal in by_way.items()]


def each_damage(damages):
    return pytest.mark.parametrize("damage, way, refusal", [case for damage in damages for case in damage.cases()])


def unreadable_config(what, damage, error, message, plain=None):
    ours = Refusal(ValueError, f"configuration .*{CONFIG}.*cannot be read", "PEFT's error, which names no file")
    return Damage(what, damage, ours, Refusal(error, message), plain)


def refused_config(what, damage, error, message):
    return Damage(what, damage, Refusal(error, message))


NO_MAPPING = Refusal(TypeError, "'list' object is not a mapping")
NO_TYPE = Refusal(TypeError, "missing required keys.*peft_type")
NO_CONFIG = Refusal(ValueError, "adapter model file not found in .*adapter")
DAMAGED_CONFIGS = [
    unreadable_config("empty", writing(CONFIG, b""), json.JSONDecodeError, "Expecting value"),
    unreadable_config("no JSON", writing(CONFIG, b"peft_type = IPET"), json.JSONDecodeError, "Expecting value"),
    unreadable_config("cut", writing(CONFIG, b'{"peft_type": "IPET", "bott'), json.JSONDecodeError, "Unterminated"),
    unreadable_config("binary", writing(CONFIG, b"\xff\xfe\x00\x80"), UnicodeDecodeError, "invalid start byte"),
    unreadable_config("a list", writing(CONFIG, b"[1]"), TypeError, "list indices", NO_MAPPING),
    unreadable_config("null", writing(CONFIG, b"null"), TypeError, "'NoneType' is not iterable"),
    unreadable_config("no type", dropping("peft_type"), KeyError, "peft_type", NO_TYPE),
    unreadable_config("unknown type", editing(peft_type="MAGIC"), KeyError, "MAGIC"),
    Damage("missing", removing(CONFIG), Refusal(ValueError, f"'{CONFIG}' at '.*adapter"), plain=NO_CONFIG),
    Damage("a folder", making_a_folder_of(CONFIG), Refusal(ValueError, f"'{CONFIG}' at '.*adapter"), plain=NO_CONFIG),
    refused_config("range", editing(bottleneck_dim=-1), ValueError, "`bottleneck_dim` must be a positive .*got -1"),
    refused_config("type", editing(bottleneck_dim="8"), ValueError, "`bottleneck_dim` must be a positive .*got '8'"),
    refused_config("choice", editing(prompt_init="zeros"), ValueError, "`prompt_init` must be one of .*got 'zeros'"),
    refused_config("settings", editing(base_settings=[1]), ValueError, r"`base_settings` must be .*dict.*got \[1\]"),
    refused_config("layers", editing(layers_to_transform=[9]), ValueError, r"between -3 and 2 .*3 layers, got \[9\]"),
    refused_config(
        "module", editing(modules_to_save=["ears"]), ValueError, "none called 'ears'. Its head: 'classifier"
    ),
    refused_config(
        "two fields", editing(spatial_bottleneck_dim=4), ValueError, "without `spatial_adapter=True`, got 4"
    ),
    Damage(
        "labels",
        editing(base_settings={"id2label": {"first": "rain"}}),
        Refusal(ValueError, "`base_settings` must ", "the first index that is no number is all that is named"),
        Refusal(ValueError, "`base_settings` must |trained with .*max_length=None.*max_length=46"),
    ),
]


@each_damage(DAMAGED_CONFIGS)
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_a_damaged_configuration_is_refused_before_anything_changes(damage, way, refusal, places):
    damage(places / "adapter")
    model, load = WAYS[way](places / "adapter")
    with left_alone(model=model, folder=places), refused(refusal):
        load(model)


PLAIN_WRAPS = "transformers' load_adapter: what is taken off again leaves tuner layers and hooks"


def unreadable(what, damage, error, message):
    """Weights that cannot be read: PEFT's and other libraries' errors, which this package's loaders explain."""
    explained = "weights of adapter '.*adapter' cannot be read .*copy or download it again"
    ours, plain = Refusal(ValueError, explained), Refusal(ValueError, explained)
    return Damage(what, damage, ours, Refusal(error, message), plain)


def misfit(what, damage, problem, plain="", ours=None):
    message = f"does not fit adapter.*{problem}.*Was it "
    plain_refusal = Refusal(ValueError, message, plain)
    return Damage(what, damage, ours or Refusal(ValueError, message), Refusal(ValueError, message), plain_refusal)


UNSAFE = "Weights only load failed"
HEAD = "classifier.dense.weight"
LACKING = Refusal(ValueError, "adapter '.*adapter' lacks .*classifier.* cut short")
DAMAGED_WEIGHTS = [
    unreadable("empty", writing(WEIGHTS, b""), SafetensorError, "header too small"),
    unreadable("garbage", writing(WEIGHTS, b"garbage " * 9), SafetensorError, "header"),
    unreadable("cut", lambda f: writing(WEIGHTS, (f / WEIGHTS).read_bytes()[:-1])(f), SafetensorError, "incomplete"),
    unreadable("flipped size", flipping(7), SafetensorError, "header too large"),
    unreadable("flipped name", flipping(20), SafetensorError, "invalid UTF-8 in header"),
    unreadable("missing", removing(WEIGHTS), ValueError, "adapter"),
    unreadable("a folder", making_a_folder_of(WEIGHTS), OSError, "device|directory"),
    unreadable("pickled garbage", pickled(lambda f: b"garbage", lambda b, s: s.write(b)), Exception, UNSAFE),
    unreadable("code", pickled(lambda f: {"a": Intruder(f / "ran")}), pickle.UnpicklingError, UNSAFE),
    unreadable("bare code", pickled(lambda f: Intruder(f / "ran"), pickle.dump), pickle.UnpicklingError, UNSAFE),
    misfit("NaN", tensors("down.weight", with_one(NAN)), r"not finite: .*0\..*down.weight has .*NaN"),
    misfit("infinity", tensors("embeddings", with_one(-INFINITY)), r"not finite: .*0\..*embeddings.*infinite"),
    misfit("NaN in the head", tensors(HEAD, with_one(NAN)), "not finite: classifier.*dense.weight"),
    misfit("too large", tensors("down.weight", with_one(1e300)), "not finite: .*infinite in torch.float32"),
    misfit("integers", tensors("down.weight", torch.Tensor.int), "wrong type: .*down.weight is torch.int32.*float32"),
    misfit("booleans", tensors("up.bias", torch.Tensor.bool), "wrong type: .*up.bias is torch.bool.*float32"),
    misfit("complex", tensors("up.bias", lambda t: t.to(torch.complex64)), "wrong type: .*torch.complex64.*float32"),
    misfit(
        "transposed",
        tensors("down.weight", lambda t: t.T.contiguous()),
        r"wrong shape: .*\(32, 8\), .*\(8, 32\)",
        PLAIN_WRAPS,
    ),
    misfit("another width", editing(bottleneck_dim=16), r"wrong shape: .*\(8, 32\), .*\(16, 32\)", PLAIN_WRAPS),
    misfit("fewer layers", editing(layers_to_transform=[0, 1]), r"not of this adapter: .*2\..*prompt", PLAIN_WRAPS),
    misfit("more parts", editing(spatial_adapter=True), "missing: .*attention_adapter", PLAIN_WRAPS),
    misfit("no head wanted", editing(modules_to_save=[]), "not of this adapter: .*classifier"),
    Damage(
        "pickled nothing",
        pickled(lambda f: {}),
        LACKING,
        Refusal(KeyError, "classifier"),
        Refusal(ValueError, "missing: ", PLAIN_WRAPS),
    ),
]


@each_damage(DAMAGED_WEIGHTS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_weights_are_refused(damage, way, refusal, places):
    damage(places / "adapter")
    model, load = WAYS[way](places / "adapter")
    expected = None if model is None else logits(model)
    # PEFT has put the adapter on the model before it reads the weights: there, what was in the model stays.
    by_peft = way in ("peft", "beside")
    values = {
        id(tensor): bytes_of(tensor) for tensor in (model.state_dict(keep_vars=True).values() if by_peft else ())
    }
    with left_alone(model=None if by_peft else model, folder=places), refused(refusal):
        load(model)
    after = {id(tensor): bytes_of(tensor) for tensor in (model.state_dict(keep_vars=True).values() if by_peft else ())}
    assert values.items() <= after.items()
    if way in ("beside", "plain"):
        assert torch.equal(logits(model), expected)
    assert not (places / "adapter" / "ran").exists()


def test_the_code_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Intruder(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@each_way
def test_a_configuration_of_a_later_version_loads_with_a_warning(way, places):
    expected = logits(PeftModel.from_pretrained(make("ast"), places / "adapter"))
    edit(places / "adapter", gate="sigmoid")
    model, load = WAYS[way](places / "adapter")
    with pytest.warns(UserWarning, match=r"\['gate'\] for class IPETConfig, these are ignored"):
        loaded = load(model)
    if way == "beside":
        model.set_adapter("second")
    torch.testing.assert_close(logits(loaded if way == "auto" else model), expected)


@each_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_precision_load(way, dtype, places):
    file = places / "adapter" / WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    model, load = WAYS[way](places / "adapter")
    loaded = load(model) if way == "auto" else (load(model), model)[1]
    wanted = {tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert wanted == {torch.float32} and logits(loaded).isfinite().all()


# ---- other models ----------------------------------------------------------------------------------------------------


TYPES = "the model type of an adapter is neither kept nor compared"
TRAINED = "The adapter was trained with .*{}.*, but this {}For.* has .*{}"
OTHERS = [
    row(
        "AST",
        ("wav2vec2", partial(make, "ast")),
        ValueError,
        "The adapter was trained .*, but this ASTFor",
    ),
    row("wav2vec2", ("ast", partial(make, "wav2vec2")), ValueError, "audio-spectrogram-transformer.*wav2vec2", TYPES),
    row("HuBERT", ("wav2vec2", partial(make, "hubert")), ValueError, "wav2vec2.*hubert", TYPES),
    row("Whisper", ("wav2vec2", partial(make, "whisper")), ValueError, "wav2vec2.*whisper", TYPES),
    row("ViT", ("ast", partial(make, "vit")), ValueError, "The adapter was trained .*, but this ViTFor"),
    row("BERT", ("ast", bert), ValueError, "'bert'.* not a supported backbone.*register_backbone"),
    row("no head", ("ast", partial(make, "ast", bare=True)), ValueError, "ASTModel.* none called 'classifier'"),
    row("labels", ("ast", partial(make, "ast", num_labels=2)), ValueError, "num_labels=5.*num_labels=2.*AutoPeft"),
    row(
        "length",
        ("ast", partial(make, "ast", max_length=66)),
        ValueError,
        TRAINED.format("max_length=46", "AST", "max_length=66.*resize_ast"),
    ),
    row(
        "bins",
        ("ast", partial(make, "ast", num_mel_bins=52)),
        ValueError,
        TRAINED.format("num_mel_bins=36", "AST", "num_mel_bins=52"),
    ),
    row(
        "pooled otherwise",
        ("ast", lambda: use_mean_token_pooling(make("ast"))),
        ValueError,
        TRAINED.format("mean_token_pooling=False", "AST", "mean_token_pooling=True"),
    ),
    row(
        "pooled with statistics",
        ("wav2vec2", lambda: use_statistics_pooling(make("wav2vec2"))),
        ValueError,
        TRAINED.format("statistics_pooling=False", "Wav2Vec2", "statistics_pooling=True"),
    ),
    row(
        "all layers weighted",
        ("wav2vec2", partial(make, "wav2vec2", use_weighted_layer_sum=True)),
        ValueError,
        TRAINED.format("use_weighted_layer_sum=False", "Wav2Vec2", "use_weighted_layer_sum=True"),
    ),
]
# Those that only the tensors tell.
SIZES = [
    row("deeper", {"num_hidden_layers": 4}, ValueError, r"missing: .*3\..*another base model", PLAIN_WRAPS),
    row("less deep", {"num_hidden_layers": 2}, ValueError, r"not of this adapter: .*2\..*another base", PLAIN_WRAPS),
    row("wider", {"hidden_size": 48}, ValueError, r"wrong shape: .*\(3, 32\), the model needs \(3, 48\)", PLAIN_WRAPS),
]


@each_row(OTHERS)
def test_another_model_is_refused_before_it_is_touched(act, refusal, originals):
    trained_on, make_other = act
    folder = originals[trained_on] / "adapter"
    loaders = [PeftModel.from_pretrained, lambda model, folder: model.load_adapter(folder)]
    # transformers' wav2vec2 has a load_adapter of its own, for languages.
    for load in loaders[: 1 if "Wav2Vec2" in type(make_other()).__name__ else 2]:
        model = make_other()
        with left_alone(model=model, folder=folder), refused(refusal):
            load(model, folder)


@pytest.mark.parametrize("options, refusal", [param(each.what, each.refusal, each.act) for each in SIZES])
def test_a_plain_model_of_another_size_is_left_alone(options, refusal, originals):
    model = make("ast", **options)
    with left_alone(model=model), refused(refusal):
        model.load_adapter(originals["ast"] / "adapter")


@pytest.mark.parametrize("options, refusal", [pytest.param(each.act, each.refusal, id=each.what) for each in SIZES])
def test_a_model_of_another_size_is_refused(options, refusal, originals):
    with refused(refusal):
        PeftModel.from_pretrained(make("ast", **options), originals["ast"] / "adapter")


# ---- AutoPeftModelForAudioClassification -----------------------------------------------------------------------------


def auto(places, **options):
    return AutoPeftModelForAudioClassification.from_pretrained(places / "adapter", **options)


def with_base(make_base):
    def act(places):
        shutil.rmtree(places / "base")
        make_base().save_pretrained(places / "base")
        return auto(places)

    return act


def with_fields(**fields):
    def act(places):
        edit(places / "adapter", **fields)
        return auto(places)

    return act


def without_base(places):
    shutil.rmtree(places / "base")
    return auto(places)


NO_SUCH_FOLDER = "huggingface_hub's error about the form of ids, where no folder of that name exists"
LOADING = [
    row("no base named", with_fields(base_model_name_or_path=None), ValueError, "names no base model. Load the base"),
    row("base gone", without_base, OSError, "base"),
    row("base is a file", with_fields(base_model_name_or_path=__file__), (ValueError, OSError), "test_bad_input"),
    row("base of text", with_base(bert), ValueError, "BertConfig"),
    row("deeper base", with_base(partial(make, "ast", num_hidden_layers=4)), ValueError, r"missing: .*layers\.3"),
    row("wider base", with_base(partial(make, "ast", hidden_size=48)), ValueError, "wrong shape: .*the model needs"),
    row("longer base", with_base(partial(make, "ast", max_length=66)), ValueError, "max_length=46.*max_length=66"),
    row("another type", with_base(partial(make, "wav2vec2")), ValueError, "audio-spectrogram.*wav2vec2", TYPES),
    row("clashing name", partial(auto, adapter_name="layers"), ValueError, "`adapter_name` .*'layers'.*another name"),
    row("no subfolder", partial(auto, subfolder="deep"), ValueError, f"'{CONFIG}'.*adapter"),
    row(
        "missing folder",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained(places / "gone"),
        ValueError,
        f"Can't find '{CONFIG}' at '.*gone'.*Check the name",
        NO_SUCH_FOLDER,
    ),
    row(
        "a file",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained(places / "adapter" / WEIGHTS),
        ValueError,
        f"Can't find '{CONFIG}' at '.*{WEIGHTS}'.*Check the name",
        NO_SUCH_FOLDER,
    ),
    row(
        "unknown id",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained("nobody/nothing"),
        ValueError,
        f"Can't find '{CONFIG}' at 'nobody/nothing'.*Check the name",
    ),
    row(
        "no name",
        lambda places: AutoPeftModelForAudioClassification.from_pretrained(None),
        TypeError,
        "os.PathLike object, not NoneType",
    ),
    row(
        "resizes",
        with_fields(base_settings={"ast_resizes": [{"max_length": -5}]}),
        ValueError,
        "`max_length` must be a positive integer, got -5",
    ),
]


@each_row(LOADING)
def test_a_wrong_folder_is_refused(act, refusal, places):
    with refused(refusal):
        act(places)
    assert not [path for path in places.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["gone", f"adapter/{WEIGHTS}", "."])
@pytest.mark.parametrize("way", ["peft", "beside", "plain"])
def test_where_no_adapter_is_the_model_stays(place, way, places):
    model, load = WAYS[way](places / place)
    with left_alone(model=model, folder=places), refused(Refusal((ValueError, OSError), "not found|Can't find|form")):
        load(model)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def spectrogram(change):
    return "ast", lambda: {"input_values": change(make_inputs("ast")["input_values"])}


def waveform(change=lambda values: values, **others):
    return "wav2vec2", lambda: {"input_values": change(make_inputs("wav2vec2")["input_values"]), **others}


def mask(*shape):
    return torch.ones(*shape, dtype=torch.long)


SCORES = (RuntimeError, IndexError, ValueError)
INPUTS = [
    row("a spectrogram alone", spectrogram(lambda x: x[0]), SCORES, "Dimension|shape"),
    row("a dimension more", spectrogram(lambda x: x[None]), SCORES, r"4D \(batched\) input|shape"),
    row("frames missing", spectrogram(lambda x: x[:, :26]), SCORES, "size of tensor|shape"),
    row("frames too many", spectrogram(lambda x: x.repeat(1, 2, 1)), SCORES, "size of tensor|shape"),
    row("bins missing", spectrogram(lambda x: x[:, :, :20]), SCORES, "size of tensor|shape"),
    row("integers", spectrogram(torch.Tensor.long), RuntimeError, "long"),
    row("complex", spectrogram(lambda x: x.to(torch.complex64)), RuntimeError, "complex"),
    row("double", spectrogram(torch.Tensor.double), RuntimeError, "double"),
    row("no clip", spectrogram(lambda x: x[:0]), RuntimeError, "0 elements"),
    row("nothing", spectrogram(lambda x: None), AttributeError, "'NoneType'"),
    row("a list", spectrogram(torch.Tensor.tolist), AttributeError, "'list'"),
    row("a dimension more in time", waveform(lambda x: x[None]), RuntimeError, "1, 2, 800"),
    row("shorter than a frame", waveform(lambda x: x[:, :9]), RuntimeError, r"\(9\). Kernel size: \(10\)"),
    row("integer samples", waveform(torch.Tensor.long), RuntimeError, "Long"),
    row("complex samples", waveform(lambda x: x.to(torch.complex64)), RuntimeError, "Complex"),
    row("double samples", waveform(torch.Tensor.double), RuntimeError, "Double"),
    row("no waveform", waveform(lambda x: x[:0]), RuntimeError, "0 elements"),
    row("mask of one clip", waveform(attention_mask=mask(1, 800)), IndexError, r"mask \[1, "),
    row("mask of no batch", waveform(attention_mask=mask(800)), IndexError, "dimension|Dimension"),
    row("unknown label", waveform(labels=torch.tensor([0, 9])), IndexError, "9 is out of bounds"),
]


@each_row(INPUTS)
@pytest.mark.parametrize("method", ["joint", "time_freq_conv", "conformer", "input_prompt"])
def test_a_wrong_input_is_refused_and_the_next_pass_is_right(act, refusal, method):
    backbone, inputs = act
    model = randomize(get_peft_model(make(backbone), METHODS[method]())).eval()
    expected = logits(model, backbone)
    with left_alone(model=model), refused(refusal):
        logits(model, **inputs())
    assert torch.equal(logits(model, backbone), expected)


PROMPTED = [
    row(
        "a waveform alone",
        (800,),
        ValueError,
        r"input prompt was made for .*\(batch, .*got \(800,\)",
        "fails on unpacking",
    ),
    row(
        "an empty waveform",
        (2, 0),
        (ValueError, RuntimeError),
        r"\(2, 0\)|size per channel: \(0\)",
        "fails on indexing",
    ),
]


@each_row(PROMPTED)
def test_an_input_prompt_is_not_what_a_wrong_waveform_fails_on(act, refusal):
    model = get_peft_model(make("wav2vec2"), METHODS["input_prompt"]()).eval()
    logits(model, "wav2vec2")  # transformers puts hooks of its own on a model in the first pass
    with left_alone(model=model), refused(refusal):
        logits(model, input_values=torch.randn(act))


@pytest.mark.parametrize("backbone", ["ast", "wav2vec2"])
@pytest.mark.parametrize("method", ["joint", "time_freq_conv", "conformer", "input_prompt"])
def test_a_clip_of_nan_spoils_no_other_clip(backbone, method):
    model = randomize(get_peft_model(make(backbone), METHODS[method]())).eval()
    ((name, values),) = make_inputs(backbone).items()
    broken = values.clone()
    broken[0] = NAN
    found = logits(model, **{name: broken})
    assert found[0].isnan().all() and logits(make(backbone), **{name: broken})[0].isnan().all()
    torch.testing.assert_close(found[1], logits(model, **{name: values})[1])


# Modules of a layer, one within attention, one at its end, and one in the feed-forward block.
MIDWAY = [("ast", part) for part in ("k_proj", "o_proj", "fc1")]
MIDWAY += [("wav2vec2", part) for part in ("k_proj", "out_proj", "intermediate_dense")]


@pytest.mark.parametrize("backbone, part", MIDWAY)
@pytest.mark.parametrize("method", ["joint", "time_freq_conv", "bottleneck_parallel", "input_prompt"])
def test_a_pass_that_fails_midway_leaves_nothing_to_the_next(backbone, part, method):
    model = randomize(get_peft_model(make(backbone), METHODS[method]())).eval()
    _, second, _ = (module for name, module in model.named_modules() if name.rpartition(".")[2] == part)
    expected = logits(model, backbone)

    def interrupt(module, args, output):
        raise InterruptedError

    handle = second.register_forward_hook(interrupt)
    with left_alone(model=model), pytest.raises(InterruptedError):
        logits(model, **make_inputs(backbone, batch_size=5))
    handle.remove()
    assert torch.equal(logits(model, backbone), expected)


EXTRACTORS = [
    row("rate of an AST", (ASTFeatureExtractor, np.zeros(16000), 8000), ValueError, "sampling rate of 16000.*8000"),
    row("rate of wav2vec2", (Wav2Vec2FeatureExtractor, np.zeros(16000), 8000), ValueError, "rate of 16000.*8000"),
    row("channels of an AST", (ASTFeatureExtractor, np.zeros((3, 2, 16000)), 16000), ValueError, "Only mono-channel"),
    row("channels", (Wav2Vec2FeatureExtractor, np.zeros((3, 2, 16000)), 16000), ValueError, "Only mono-channel"),
]


@each_row(EXTRACTORS)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_feature_extractors_refuse_other_recordings(act, refusal):
    extractor, samples, rate = act
    with refused(refusal):
        extractor()(samples.astype("float32"), sampling_rate=rate)


# ---- functions -------------------------------------------------------------------------------------------------------


def adapted_base(backbone="ast"):
    return get_peft_model(make(backbone), METHODS["ipet"]()).get_base_model()


def adapted_vit():
    return get_peft_model(make("vit"), METHODS["ipet"]())


def nowhere():
    return None


AFTERWARDS = "only the wrapper of PeftModel is told from a model without adapters"
SPEC = EncoderSpec("layers", "attention", "layernorm_after", "mlp")
FUNCTIONS = [
    row("resize no AST", (partial(make, "whisper"), partial(resize_ast, max_length=64)), TypeError, "got WhisperFor"),
    row("resize nothing", (nowhere, partial(resize_ast, max_length=64)), TypeError, "AST.*got NoneType"),
    row(
        "resize to a bool", (partial(make, "ast"), partial(resize_ast, time_stride=True)), ValueError, "`time_stride` "
    ),
    row(
        "resize to NaN", (partial(make, "ast"), partial(resize_ast, max_length=NAN)), ValueError, "`max_length` .*nan"
    ),
    row(
        "resize an adapted", (two_adapters, partial(resize_ast, max_length=64)), TypeError, "PeftModel. Resize .*first"
    ),
    row(
        "resize a base with adapters",
        (adapted_base, partial(resize_ast, max_length=64)),
        TypeError,
        "without adapters.*Resize the model first",
        AFTERWARDS,
    ),
    row("statistics of nothing", (nowhere, use_statistics_pooling), ValueError, "NoneType.* not a supported backbone"),
    row("statistics of BERT", (bert, use_statistics_pooling), ValueError, "'bert'.* not a supported backbone"),
    row(
        "statistics of an adapted",
        (lambda: get_peft_model(make("wav2vec2"), METHODS["ipet"]()), use_statistics_pooling),
        ValueError,
        "before adapters .*PeftModel",
        AFTERWARDS,
    ),
    row(
        "statistics of a base with adapters",
        (partial(adapted_base, "wav2vec2"), use_statistics_pooling),
        ValueError,
        "before adapters",
        AFTERWARDS,
    ),
    row("mean tokens of BERT", (bert, use_mean_token_pooling), TypeError, "takes an ASTFor.*got BertFor"),
    row("mean tokens of nothing", (nowhere, use_mean_token_pooling), TypeError, "got NoneType"),
    row(
        "mean tokens of a base with adapters",
        (adapted_base, use_mean_token_pooling),
        TypeError,
        "without adapters.*Call it first",
        AFTERWARDS,
    ),
    row("AST from nothing", (nowhere, ast_from_vit), TypeError, "takes a ViT or DeiT.*got NoneType"),
    row("AST from an adapted", (adapted_vit, ast_from_vit), TypeError, "takes a ViT.*got PeftModel"),
    row(
        "AST from text",
        (partial(make, "vit"), partial(ast_from_vit, num_labels="2")),
        ValueError,
        "`num_labels` .*'2'",
    ),
    row("SSAST from a model", (partial(make, "ast"), ast_from_ssast), TypeError, "`checkpoint` must be .*ASTFor"),
    row("SSAST from nothing", (nowhere, lambda _: ast_from_ssast({})), ValueError, "lacks v.cls_token.* complete"),
    row(
        "SSAST of text",
        (nowhere, lambda _: ast_from_ssast(dict.fromkeys(make_ssast(), "text"), **SMALL)),
        TypeError,
        "`checkpoint` must ",
        "the values of a state dict are taken to be tensors",
    ),
    row("no type's name", (nowhere, lambda _: register_backbone(None, SPEC)), ValueError, "`model_type` .*got None"),
    row("row of a dictionary", (nowhere, lambda _: register_backbone("x", {})), ValueError, r"`spec` must .*got \{\}"),
    row("row without places", (nowhere, lambda _: EncoderSpec("layers")), TypeError, "missing .*'attention'"),
]


@each_row(FUNCTIONS)
def test_wrong_arguments_leave_the_model_and_the_table_alone(act, refusal):
    make_model, use = act
    model, table = make_model(), dict(BACKBONES)
    with left_alone(model=model), refused(refusal):
        use(model)
    assert table == BACKBONES


def test_a_pickled_ssast_runs_no_code(tmp_path):
    torch.save({"module.v.cls_token": Intruder(tmp_path / "ran")}, tmp_path / "ssast.pth")
    with left_alone(folder=tmp_path), pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        ast_from_ssast(tmp_path / "ssast.pth", **SMALL)


NO_CHECK = "arguments are used as they come"
CARDS = [
    row("no adapter", lambda places: write_card(places), FileNotFoundError, "no adapter of peft_audio .*comes first"),
    row("no folder", lambda places: write_card(places / "gone"), FileNotFoundError, "'.*gone'.*comes first"),
    row("a file", lambda places: write_card(places / "adapter" / CARD), FileNotFoundError, "README.md'.*comes first"),
    row("a base model", lambda places: write_card(places / "base"), FileNotFoundError, "'.*base'.*comes first"),
    row("nothing", lambda places: write_card(None), TypeError, "os.PathLike object, not NoneType"),
    row(
        "scores of text",
        lambda places: write_card(places / "adapter", results={"accuracy": "good"}),
        ValueError,
        "`results` .*'good'",
        NO_CHECK,
    ),
    row(
        "scores without names",
        lambda places: write_card(places / "adapter", results=[0.5]),
        ValueError,
        r"`results` .*\[0.5\]",
        NO_CHECK,
    ),
    row(
        "training of numbers",
        lambda places: write_card(places / "adapter", training=40),
        ValueError,
        "`training` .*40",
        NO_CHECK,
    ),
]


@each_row(CARDS)
def test_a_card_that_cannot_be_written_changes_no_file(act, refusal, places):
    with left_alone(folder=places), refused(refusal):
        act(places)


def test_an_adapter_of_peft_itself_gets_no_card_of_ours(tmp_path):
    get_peft_model(make("ast"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with left_alone(folder=tmp_path), pytest.raises(FileNotFoundError, match="no adapter of peft_audio"):
        write_card(tmp_path)


# ---- folders that cannot be written or read --------------------------------------------------------------------------


def deny(monkeypatch, module, name, folder, applies=lambda *args: True):
    """Let `module.name` say what it says where permissions are missing, which do not stop a superuser."""
    original = getattr(module, name)

    def denied(path, *args: Any, **kwargs: Any):
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(folder)) and applies(path, *args):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(module, name, denied)


def writes(path, mode="r", *others):
    return any(letter in mode for letter in "wax+")


SAVING = {
    "over an adapter": lambda model, places: model.save_pretrained(places / "adapter"),
    "to a new folder": lambda model, places: model.save_pretrained(places / "new"),
    "a configuration": lambda model, places: model.peft_config["default"].save_pretrained(places / "adapter"),
    "a plain model": lambda model, places: model.get_base_model().save_pretrained(places / "adapter"),
    "a card": lambda model, places: write_card(places / "adapter", training="Twice."),
}


@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("function", ["mkdir", "open"])
def test_a_folder_that_cannot_be_written_stays_as_it_is(saving, function, places, monkeypatch):
    model = randomize(get_peft_model(make("ast"), METHODS["ipet"]()), seed=9)
    module, applies = (os, lambda *args: True) if function == "mkdir" else (builtins, writes)
    # PEFT and transformers fill in what they write on their configurations before they write it.
    unchanged = left_alone(model=model, folder=places, but=("adapters", "configuration"))
    with monkeypatch.context() as context, unchanged:
        deny(context, module, function, places, applies)
        with pytest.raises(PermissionError, match=f"Permission denied: '{places}"):
            SAVING[saving](model, places)
    SAVING[saving](model, places)


@pytest.mark.parametrize("file", [CONFIG])
@each_way
def test_a_file_that_cannot_be_read_leaves_the_model_alone(file, way, places, monkeypatch):
    model, load = WAYS[way](places / "adapter")
    with monkeypatch.context() as context, left_alone(model=model, folder=places):
        deny(context, builtins, "open", places / "adapter" / file)
        with pytest.raises(PermissionError, match=f"Permission denied: '.*{file}"):
            load(model)


@pytest.mark.parametrize("what", ["model", "config"])
def test_a_file_where_the_folder_should_be_is_named(what, tmp_path):
    (tmp_path / "taken").write_text("mine")
    model = get_peft_model(make("ast"), METHODS["ipet"]())
    saved = model if what == "model" else model.peft_config["default"]
    with left_alone(model=model, folder=tmp_path), pytest.raises(ValueError, match="taken' is a file. Choose"):
        saved.save_pretrained(tmp_path / "taken")


@pytest.mark.parametrize("names", [["nobody"], ["default", "nobody"]])
def test_saving_an_unknown_adapter_writes_nothing(names, tmp_path):
    model = get_peft_model(make("ast"), METHODS["ipet"]())
    with (
        left_alone(model=model, folder=tmp_path),
        pytest.raises(ValueError, match=r"selected_adapters.*\['default'\]"),
    ):
        model.save_pretrained(tmp_path / "new", selected_adapters=names)
