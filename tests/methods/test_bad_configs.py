"""Wrong configurations, names and models: the error says what to do, and models stay as they were."""

from functools import partial

import numpy as np
import pytest
from peft import PeftModel, get_peft_model
from refusals import (
    INFINITY,
    NAN,
    bert,
    each_row,
    left_alone,
    logits,
    param,
    refused,
    row,
    two_adapters,
)
from tiny import METHODS, make, make_inputs
from torch import nn

from peft_audio import (
    BottleneckAdapterConfig,
    EmbeddingPromptConfig,
    InputPromptConfig,
    IPETConfig,
    ParallelMLPAdapterConfig,
    TimeFreqConvAdapterConfig,
    use_mean_token_pooling,
    use_statistics_pooling,
)


# ---- configurations --------------------------------------------------------------------------------------------------


def field(config_cls, rule, **options):
    """A field with a value that breaks the rule. (test_config.py has the plainer ones.)"""
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
        "batch of strangers",
        (two_adapters, batch(["a", "c"])),
        ValueError,
        "non-existing .*: c. `adapter_names` .*'a', 'b'; '__base",
    ),
    row(
        "batch of a name", (two_adapters, batch("default")), ValueError, "non-existing .*: d, e, f, .*`adapter_names` "
    ),
    row("batch of too many", (two_adapters, batch(["a"] * 3)), ValueError, "got 3 names for a batch of 2 samples"),
    row(
        "batch of numbers",
        (two_adapters, batch([1, "c"])),
        ValueError,
        "non-existing .*: 1, c. `adapter_names` ",
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
    ),
]


@each_row(ADAPTERS)
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_wrong_adapters_leave_the_model_alone(act, refusal):
    prepare, use = act
    model = prepare()
    with left_alone(model=model), refused(refusal):
        use(model)


# ---- other models ----------------------------------------------------------------------------------------------------


TRAINED = "The adapter was trained with .*{}.*, but this {}For.* has .*{}"
OTHERS = [
    row(
        "AST",
        ("wav2vec2", partial(make, "ast")),
        ValueError,
        "The adapter was trained .*, but this ASTFor",
    ),
    row("wav2vec2", ("ast", partial(make, "wav2vec2")), ValueError, "audio-spectrogram-transformer.*wav2vec2"),
    row("HuBERT", ("wav2vec2", partial(make, "hubert")), ValueError, "wav2vec2.*hubert"),
    row("Whisper", ("wav2vec2", partial(make, "whisper")), ValueError, "wav2vec2.*whisper"),
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
    row("deeper", {"num_hidden_layers": 4}, ValueError, r"missing: .*3\..*another base model"),
    row("less deep", {"num_hidden_layers": 2}, ValueError, r"not of this adapter: .*2\..*another base"),
    row("wider", {"hidden_size": 48}, ValueError, r"wrong shape: .*\(3, 32\), the model needs \(3, 48\)"),
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
