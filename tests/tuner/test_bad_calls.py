"""Wrong inputs of models and functions: the error says what to do, and models stay as they were."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from refusals import CARD, NAN, Intruder, bert, each_row, left_alone, logits, refused, row, two_adapters
from ssast import SMALL, make_ssast
from tiny import METHODS, make, make_inputs, randomize
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from peft_audio import (
    EncoderSpec,
    ast_from_ssast,
    ast_from_vit,
    register_backbone,
    resize_ast,
    use_mean_token_pooling,
    use_statistics_pooling,
    write_card,
)
from peft_audio.backbones.table import BACKBONES


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
    ),
    row(
        "an empty waveform",
        (2, 0),
        (ValueError, RuntimeError),
        r"\(2, 0\)|size per channel: \(0\)",
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
    ),
    row("statistics of nothing", (nowhere, use_statistics_pooling), ValueError, "NoneType.* not a supported backbone"),
    row("statistics of BERT", (bert, use_statistics_pooling), ValueError, "'bert'.* not a supported backbone"),
    row(
        "statistics of an adapted",
        (lambda: get_peft_model(make("wav2vec2"), METHODS["ipet"]()), use_statistics_pooling),
        ValueError,
        "before adapters .*PeftModel",
    ),
    row(
        "statistics of a base with adapters",
        (partial(adapted_base, "wav2vec2"), use_statistics_pooling),
        ValueError,
        "before adapters",
    ),
    row("mean tokens of BERT", (bert, use_mean_token_pooling), TypeError, "takes an ASTFor.*got BertFor"),
    row("mean tokens of nothing", (nowhere, use_mean_token_pooling), TypeError, "got NoneType"),
    row(
        "mean tokens of a base with adapters",
        (adapted_base, use_mean_token_pooling),
        TypeError,
        "without adapters.*Call it first",
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
    ),
    row(
        "scores without names",
        lambda places: write_card(places / "adapter", results=[0.5]),
        ValueError,
        r"`results` .*\[0.5\]",
    ),
    row(
        "training of numbers",
        lambda places: write_card(places / "adapter", training=40),
        ValueError,
        "`training` .*40",
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
