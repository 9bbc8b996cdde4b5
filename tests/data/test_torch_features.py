"""Features computed with torch are those of transformers' feature extractors, whatever the settings and the clips."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypotheses import examples, hypothesis, some
from sounds import tone
from transformers import (
    ASTFeatureExtractor,
    BatchFeature,
    ClapFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from peft_audio.data import AudioCollator, FeatureCache, TorchFeatures, model_inputs, torch_features


ALL = (ASTFeatureExtractor, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor)
SIZES = {ASTFeatureExtractor: {"max_length": 40}, WhisperFeatureExtractor: {"chunk_length": 1}}
RATE = 16000


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What was said of settings that are not covered."""
    told = set()
    monkeypatch.setattr(torch_features, "told", told)
    return told


def make_extractor(kind, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty mel filters
        return kind(**{**SIZES.get(kind, {}), **settings})


def outcome(extract, *args, **kwargs):
    """What is returned, or the error."""
    torch.manual_seed(0)  # dither
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of means of no frames
        try:
            return extract(*args, **kwargs)
        except (ValueError, IndexError, TypeError, OverflowError, RuntimeError) as error:
            return error


def assert_same(ours, theirs):
    """Same keys, containers, dtypes, shapes, and numbers to 1e-4; or errors both."""
    if isinstance(theirs, Exception):
        assert isinstance(ours, type(theirs)), (ours, theirs)
        return
    assert isinstance(ours, BatchFeature) and list(ours) == list(theirs), ours
    for name, expected in theirs.items():
        found = ours[name]
        assert type(found) is type(expected), name
        # Clips of several lengths are in a list, or in an array of arrays.
        is_ragged = isinstance(expected, list) or expected.dtype == object
        assert len(found) == len(expected)
        for one, other in zip(found, expected) if is_ragged else [(found, expected)]:
            assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape, name
            np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), rtol=1e-5, atol=1e-4)


@some.composite
def clips(draw):
    """A clip of any kind: silence, noise, tones, steps, quiet or loud, shorter than a window or some windows long."""
    samples = draw(some.one_of(some.integers(1, 700), some.integers(240, 9000)))
    rng = np.random.default_rng(draw(some.integers(0, 99)))
    wave = {
        "silence": lambda: np.zeros(samples),
        "noise": lambda: rng.normal(size=samples) * 0.2,
        "tone": lambda: np.sin(np.arange(samples) * rng.uniform(0.01, 3)) + 1e-3 * rng.normal(size=samples),
        "offset": lambda: 0.5 + 0.01 * rng.normal(size=samples),
        "half silence": lambda: rng.normal(size=samples) * (np.arange(samples) < samples // 2),
        "clicks": lambda: (rng.random(samples) < 0.01).astype(float),
    }[draw(some.sampled_from(["silence", "noise", "tone", "offset", "half silence", "clicks"]))]()
    wave = wave * draw(some.sampled_from([1e-3, 1.0, 30.0]))
    if draw(some.booleans()):
        return wave.astype(draw(some.sampled_from([np.float32, np.float64])))
    return np.clip(wave * 2**14, -(2**15), 2**15 - 1).astype(np.int16)


@some.composite
def inputs(draw):
    """A clip, a list of clips, an array of clips, or a list of numbers."""
    waveforms = draw(some.lists(clips(), min_size=1, max_size=3))
    form = draw(some.sampled_from(["one", "one", "list", "list", "array", "numbers"]))
    if form == "array":
        shortest = min(map(len, waveforms))
        return np.stack([waveform[:shortest] for waveform in waveforms])
    return {"one": waveforms[0], "list": waveforms, "numbers": waveforms[0].tolist()}[form]


def some_of(**values):
    """Settings, each left out or one of its values."""
    return some.fixed_dictionaries({}, optional={name: some.sampled_from(choices) for name, choices in values.items()})


FILLING = {
    "padding": [True, False, "longest", "max_length", "do_not_pad"],
    "max_length": [20, 1001, 9000],
    "truncation": [True, False],
    "pad_to_multiple_of": [None, 2, 7],
    "return_attention_mask": [True, False],
}
COMMON = {"padding_value": [0.0, 1.5, -1], "padding_side": ["left", "right"], "return_attention_mask": [True, False]}
SETTINGS = {
    ASTFeatureExtractor: {
        "num_mel_bins": [10, 80, 128],
        "max_length": [0, 1, 30, 200],
        "do_normalize": [True, False],
        "mean": [0.0, -4.5],
        "std": [1.0, 4, 0.3],
        "sampling_rate": [16000, 8000],
    },
    SeamlessM4TFeatureExtractor: {
        **COMMON,
        "num_mel_bins": [20, 80],
        "stride": [1, 2, 3],
        "sampling_rate": [16000, 22050],
    },
    Wav2Vec2FeatureExtractor: {**COMMON, "do_normalize": [True, False]},
    WhisperFeatureExtractor: {
        **COMMON,
        "feature_size": [12, 80, 128],
        "hop_length": [160, 200],
        "n_fft": [400, 512, 201],
        "dither": [0.0, 1e-3],
    },
}
OPTIONS = {
    ASTFeatureExtractor: {"padding": [True]},  # it takes anything, and does nothing with it
    SeamlessM4TFeatureExtractor: {**FILLING, "do_normalize_per_mel_bins": [True, False]},
    Wav2Vec2FeatureExtractor: FILLING,
    WhisperFeatureExtractor: {**FILLING, "do_normalize": [True, False]},
}
RETURNS = some.sampled_from([None, "np", "pt"])


@pytest.mark.parametrize("kind", ALL)
@examples(250)
@hypothesis.given(data=some.data())
def test_features_are_the_extractors(kind, data):
    extractor = make_extractor(kind, **data.draw(some_of(**SETTINGS[kind])))
    waveforms, options = data.draw(inputs()), data.draw(some_of(**OPTIONS[kind]))
    call = {"sampling_rate": extractor.sampling_rate, "return_tensors": data.draw(RETURNS), **options}
    before = copy.deepcopy(waveforms)
    ours = outcome(TorchFeatures(extractor), waveforms, **call)
    assert_same(ours, outcome(extractor, copy.deepcopy(before), **call))
    for found, given in zip(waveforms, before):
        np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize("kind", ALL)
def test_what_training_scripts_ask_for_is_covered(kind, told):
    extractor = make_extractor(kind)
    noise = np.random.default_rng(0).normal(size=(32000,)).astype(np.float32)
    waveforms = [
        tone(label, seconds) + noise[: round(seconds * RATE)] for label, seconds in (("low", 0.5), ("high", 2.0))
    ]
    for waveform in waveforms:
        assert_same(
            TorchFeatures(extractor)(waveform, sampling_rate=RATE, return_tensors="np"),
            extractor(waveform, sampling_rate=RATE, return_tensors="np"),
        )
    AudioCollator(extractor)([{"waveform": waveform, "labels": 0} for waveform in waveforms])
    assert not told and torch_features.computed_by(extractor)


def test_silence_is_covered_and_a_spectrum_that_hardly_changes_is_the_extractors(told):
    extractor = make_extractor(SeamlessM4TFeatureExtractor)
    still = np.zeros(4000, np.float32)
    steady = np.sin(np.arange(8000) * 2 * np.pi * 400 / RATE).astype(np.float32)  # four periods in each step
    for waveform, count in ((still, 0), (steady, 1)):
        call = {"sampling_rate": RATE, "return_tensors": "np"}
        assert_same(TorchFeatures(extractor)(waveform, **call), extractor(waveform, **call))
        assert len(told) == count


def test_tensors_are_waveforms_too():
    waveforms = [tone("low", 0.5), tone("high", 0.4)]
    for kind in ALL:
        extract = TorchFeatures(make_extractor(kind))
        for given, expected in (
            (torch.from_numpy(waveforms[0]), waveforms[0]),
            (torch.from_numpy(waveforms[0])[None].double(), waveforms[:1]),
            ([torch.from_numpy(waveform).requires_grad_() for waveform in waveforms], waveforms),
        ):
            options = (
                {"sampling_rate": RATE, "padding": True} if "Whisper" not in kind.__name__ else {"sampling_rate": RATE}
            )
            assert_same(extract(given, **options), extract(expected, **options))


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda extractor: setattr(extractor, "window", np.ones(320)), "window=an array (320,)"),
        (lambda extractor: setattr(extractor, "mel_filters", np.ones((257, 3))), "mel_filters=an array (257, 3)"),
        (lambda extractor: setattr(extractor, "mean", np.float64(1.5)), "mean=np.float64(1.5)"),
    ],
)
def test_a_setting_that_is_not_covered_is_named_once(change, expected, caplog):
    extractor = make_extractor(ASTFeatureExtractor)
    change(extractor)
    extract = TorchFeatures(extractor)
    for _ in range(2):
        assert_same(
            outcome(extract, tone("low"), RATE, return_tensors="np"),
            outcome(extractor, tone("low"), RATE, return_tensors="np"),
        )
    assert torch_features.computed_by(extractor) is None
    told = [record.getMessage() for record in caplog.records if "TorchFeatures" in record.getMessage()]
    assert told in (
        [],
        [f"ASTFeatureExtractor: {expected} is not covered by TorchFeatures; the extractor itself makes features."],
    )
    assert told or isinstance(outcome(extractor, tone("low"), RATE), ValueError)


def test_other_classes_are_called_themselves(told):
    class Own(ASTFeatureExtractor):
        def normalize(self, input_values):
            return input_values * 0

    extractor = make_extractor(Own, max_length=8)
    assert not model_inputs(tone("low"), extractor)["input_values"].any()
    assert told == {(Own, "its class")}
    clap = TorchFeatures(ClapFeatureExtractor(sampling_rate=RATE))
    assert "input_features" in clap(tone("low"), sampling_rate=RATE, return_tensors="np")
    assert (ClapFeatureExtractor, "its class") in told
    assert torch_features.computed_by(extractor) is None


def test_arguments_that_are_not_covered_are_the_extractors(told):
    extractor = make_extractor(WhisperFeatureExtractor)
    expected = extractor(tone("low"), sampling_rate=RATE, device=torch.device("cpu"))
    assert_same(TorchFeatures(extractor)(tone("low"), sampling_rate=RATE, device=torch.device("cpu")), expected)
    assert told == {(WhisperFeatureExtractor, "device=device(type='cpu')")}
    with pytest.raises(ValueError, match="sampling rate of 16000"):
        TorchFeatures(extractor)(tone("low"), sampling_rate=8000)
    with pytest.raises(ValueError, match="at least 240 samples for a spectrogram, got 239"):
        TorchFeatures(make_extractor(ASTFeatureExtractor))(np.ones(239), RATE)


def test_it_stands_for_its_extractor():
    extractor = make_extractor(ASTFeatureExtractor)
    extract = TorchFeatures(TorchFeatures(extractor))
    assert extract.feature_extractor is extractor and extract.to_dict() == extractor.to_dict()
    extract.max_length = 17
    assert extractor.max_length == 17
    for twin in (copy.deepcopy(extract), pickle.loads(pickle.dumps(extract))):
        assert twin.device == torch.device("cpu")
        assert_same(twin(tone("low"), RATE), extractor(tone("low"), RATE))
    with pytest.raises(AttributeError, match="nothing"):
        extract.nothing  # noqa: B018


def test_without_a_rate_that_of_the_extractor_is_assumed(caplog):
    TorchFeatures(make_extractor(ASTFeatureExtractor))(tone("low"))
    assert "No sampling_rate was given with waveforms; 16000 Hz is assumed." in caplog.text


def test_reduced_precision_of_products_and_autocast_change_nothing():
    for kind in (ASTFeatureExtractor, WhisperFeatureExtractor):
        extractor = make_extractor(kind)
        expected = extractor(tone("low"), sampling_rate=RATE)
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            with torch.autocast("cpu", torch.bfloat16):
                ours = TorchFeatures(extractor)(tone("low"), sampling_rate=RATE)
        finally:
            torch.set_float32_matmul_precision(before)
        assert_same(ours, expected)


# Of batches, caches and devices


@pytest.mark.parametrize("settings", [{}, {"return_attention_mask": True}, {"padding_side": "left"}])
@pytest.mark.parametrize("seconds", [(0.5, 0.5), (0.5, 0.8)])
@pytest.mark.parametrize("kind", ALL)
def test_a_batch_of_waveforms_is_that_of_their_features(kind, seconds, settings):
    collate = AudioCollator(make_extractor(kind, **settings))
    waveforms = [tone("low", length, seed=index) for index, length in enumerate(seconds)]
    labels = np.array([1, 0])
    items = [{"waveform": waveform, "labels": label} for waveform, label in zip(waveforms, labels)]
    features = [{**model_inputs(item["waveform"], collate.extract), "labels": item["labels"]} for item in items]
    ours, theirs = collate(items), collate(features)
    assert ours.pop("labels").tolist() == theirs.pop("labels").tolist() == [1, 0]
    assert_same(BatchFeature(ours), BatchFeature(theirs))


def test_batches_of_an_extractor_that_is_not_covered(monkeypatch):
    monkeypatch.setattr(torch_features, "RECIPES", {})
    test_a_batch_of_waveforms_is_that_of_their_features(Wav2Vec2FeatureExtractor, (0.5, 0.8), {})


def test_a_cache_tells_how_features_were_computed(monkeypatch, tmp_path):
    extractor = make_extractor(ASTFeatureExtractor)
    ours = FeatureCache(tmp_path, extractor).settings()
    assert FeatureCache(tmp_path, TorchFeatures(extractor)).settings() == ours
    assert '"TorchFeatures 1 on cpu"' in ours
    monkeypatch.setattr(torch_features, "RECIPES", {})
    assert FeatureCache(tmp_path, extractor).settings() != ours


@pytest.mark.parametrize("num_mel_bins", [20, 100])
@pytest.mark.parametrize("first, end", [(0, 0), (0, 257), (5, 9), (250, 257)])
def test_filters_may_read_any_bins(first, end, num_mel_bins):
    extractor = make_extractor(SeamlessM4TFeatureExtractor, num_mel_bins=num_mel_bins)
    extractor.mel_filters[:, :40] = 0
    extractor.mel_filters[first:end, :40] = np.random.default_rng(0).uniform(size=(end - first, min(40, num_mel_bins)))
    options = {"sampling_rate": RATE, "return_tensors": "np", "do_normalize_per_mel_bins": False}
    waveform = tone("low", 0.5)
    assert_same(TorchFeatures(extractor)(waveform, **options), extractor(waveform, **options))


def test_a_device_without_64_bits_and_workers_with_a_device_are_refused(monkeypatch):
    extractor = make_extractor(ASTFeatureExtractor)
    with pytest.raises(ValueError, match="device must have 64-bit numbers, .* got 'mps'"):
        TorchFeatures(extractor, device="mps")
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="device must be the CPU in a worker of a DataLoader, got 'cuda'"):
        TorchFeatures(extractor, device="cuda")(tone("low"), RATE)
    TorchFeatures(extractor)(tone("low"), RATE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ALL)
def test_features_on_a_gpu_are_those_on_the_cpu(kind):
    extractor = make_extractor(kind)
    waveforms = [tone("low", 0.5), 30 * tone("high", 0.9), tone("low", 2.0, seed=1), tone("low", 0.03)]
    items = [{"waveform": waveform, "labels": 0} for waveform in waveforms]
    ours = AudioCollator(extractor, device="cuda")(items)
    assert {value.device.type for name, value in ours.items() if name != "labels"} == {"cuda"}
    assert_same(
        BatchFeature({name: value.cpu() for name, value in ours.items()}),
        BatchFeature(AudioCollator(extractor)(items)),
    )
