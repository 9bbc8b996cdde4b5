"""Every pass has its own state: recomputed layers, threads, passes within passes, and what comes after an interrupt."""

import contextlib
import copy
import functools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import get_peft_model
from tiny import METHODS, make, make_inputs, randomize, trainable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

from peft_audio import EmbeddingPromptConfig, use_padding_mask, use_statistics_pooling
from peft_audio.tuner.encoder_layer import EncoderTunerLayer


CONVOLUTIONS = ["time_freq_conv", "aat_ms", "joint"]


def modules_of(model):
    """The modules that a pass runs, with their paths."""
    paths, ran = {module: path for path, module in model.named_modules()}, {}

    def keep(module, *_):
        ran[paths[module]] = module

    handles = [module.register_forward_hook(keep) for module in paths]
    model(**make_inputs_of(model))
    for handle in handles:
        handle.remove()
    return ran


def make_inputs_of(model, **options):
    return make_inputs(model.config.model_type.replace("audio-spectrogram-transformer", "ast"), **options)


# ---- recomputed layers ------------------------------------------------------------------------------------------------


def gradients_of_two_sizes(model, first=(24, 24), second=(16, 48)):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 3, *size, generator=generator) for size in (first, second)]
    model.zero_grad()
    logits = [model(pixel_values=each, interpolate_pos_encoding=True).logits for each in images]
    (logits[0] - logits[1]).square().sum().backward()
    return [parameter.grad.clone() for parameter in trainable(model).values()]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("method", CONVOLUTIONS)
@pytest.mark.parametrize("backbone", ["vit", "deit"])
def test_two_passes_of_different_sizes_before_one_backward_pass(backbone, method, use_reentrant):
    model = randomize(get_peft_model(make(backbone), METHODS[method]())).train()
    expected = gradients_of_two_sizes(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients_of_two_sizes(model), expected)


@pytest.mark.parametrize("implementation", CheckpointImpl)
@pytest.mark.parametrize("is_inside", [True, False])
def test_layers_that_others_checkpoint(is_inside, implementation):
    model = randomize(get_peft_model(make("vit"), METHODS["time_freq_conv"]())).train()
    # Reentrant checkpointing gives no gradient where no input asks for one.
    model.get_base_model().vit.embeddings.register_forward_hook(lambda *given: given[-1].requires_grad_())
    sizes = ((24, 24), (24, 48))
    expected = gradients_of_two_sizes(model, *sizes)
    layers = model.get_base_model().vit.layers
    for index, layer in enumerate(layers):
        if is_inside:
            layer.base_layer = checkpoint_wrapper(layer.base_layer, checkpoint_impl=implementation)
        else:
            layers[index] = checkpoint_wrapper(layer, checkpoint_impl=implementation)
    torch.testing.assert_close(gradients_of_two_sizes(model, *sizes), expected)
    turned = ((16, 48), (48, 16))  # as many tokens, on another grid
    if is_inside:
        wrapped = gradients_of_two_sizes(model, *turned)
        for layer in layers:
            layer.base_layer = layer.base_layer._checkpoint_wrapped_module
        torch.testing.assert_close(gradients_of_two_sizes(model, *turned), wrapped)
    else:
        with pytest.raises(RuntimeError, match="13 tokens form is not known; passes with as many .* 2 x 6 and 6 x 2"):
            gradients_of_two_sizes(model, *turned)


def test_a_layer_on_its_own_has_no_grid():
    model = get_peft_model(make("ast"), METHODS["time_freq_conv"]()).eval()
    layer = next(module for module in model.modules() if isinstance(module, EncoderTunerLayer))
    with pytest.raises(RuntimeError, match="passes with as many tokens had none"):
        layer(torch.randn(1, 14, 32))
    model(**make_inputs("ast"))
    assert layer(torch.randn(1, 14, 32))[0].isfinite().all()


# ---- threads ---------------------------------------------------------------------------------------------------------


def prompts_of(*numbers, base=None):
    """A model with an adapter for each number of prompts."""
    model = None
    for index, number in enumerate(numbers):
        config = EmbeddingPromptConfig(num_virtual_tokens=number)
        if model is None:
            model = get_peft_model(base or make("wav2vec2"), config, adapter_name=f"number{index}")
        else:
            model.add_adapter(f"number{index}", config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "number" in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


MIXED = {
    "one pass": lambda: prompts_of(3, 3, 3),
    "a pass each": lambda: prompts_of(1, 3, 4),
    "weighted layers": lambda: prompts_of(2, 2, 2, base=make("wav2vec2", use_weighted_layer_sum=True)),
    "statistics pooling": lambda: prompts_of(3, 3, 3, base=use_statistics_pooling(make("wav2vec2"))),
    "grid": lambda: prompts_of(3, 3, 1, base=make("ast")),
}


@pytest.mark.parametrize("case", MIXED)
def test_threads_with_adapter_names_get_what_they_get_alone(case):
    """Plain calls beside them do too, and afterwards the model is the one that it was."""
    model, rng = MIXED[case](), random.Random(0)
    names = ["__base__", *model.peft_config]
    calls = []
    for seed in range(24):
        size = rng.randint(1, 4)
        inputs = make_inputs_of(model, batch_size=size, seed=seed)
        calls.append((inputs, rng.choices(names, k=size) if seed % 4 else None))

    @torch.no_grad()
    def run(call):
        inputs, names = call
        return model(**inputs, **({} if names is None else {"adapter_names": names})).logits

    expected = [run(call) for call in calls]
    repeats = [index for _ in range(10) for index in rng.sample(range(len(calls)), len(calls))]
    with ThreadPoolExecutor(4) as pool:
        received = list(pool.map(lambda index: run(calls[index]), repeats))
    for index, logits in zip(repeats, received, strict=True):
        torch.testing.assert_close(logits, expected[index], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close([run(call) for call in calls], expected)
    model.unload()


# ---- passes within passes --------------------------------------------------------------------------------------------


NESTED = {
    "conv on a grid": lambda: get_peft_model(make("vit"), METHODS["time_freq_conv"]()),
    "joint on a grid": lambda: get_peft_model(make("ast"), METHODS["joint"]()),
    "padding": lambda: get_peft_model(use_statistics_pooling(make("wav2vec2")), METHODS["time_freq_conv"]()),
    "input prompt": lambda: get_peft_model(make("wav2vec2"), METHODS["input_prompt"]()),
    "weighted layers": lambda: get_peft_model(make("wav2vec2-stable", use_weighted_layer_sum=True), METHODS["ipet"]()),
    "whisper": lambda: get_peft_model(use_padding_mask(make("whisper")), METHODS["ipet"]()),
    "whole layers": lambda: get_peft_model(make("wavlm"), METHODS["bottleneck_sequential"]()),
}


def two_batches(model):
    """Two batches, of different sizes where the model takes them."""
    first, second = make_inputs_of(model), make_inputs_of(model, batch_size=3, seed=5)
    ((name, value),) = second.items()
    if model.config.model_type == "vit":
        options = {"interpolate_pos_encoding": True}
        return {**first, **options}, {name: torch.cat([value, value], dim=2), **options}
    if name == "input_values" and value.dim() == 2:
        masks = [torch.ones(len(each), 800, dtype=torch.long) for each in (first[name], value)]
        for mask, real in zip(masks, (500, 640)):
            mask[1:, real:] = 0
        return {**first, "attention_mask": masks[0]}, {name: value, "attention_mask": masks[1]}
    if name == "input_features":
        value[1:, :, 20:] = 0
        first[name][1:, :, 16:] = 0
    return first, second


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("whole", [True, False], ids=["model", "trunk"])
@pytest.mark.parametrize("case", NESTED)
@torch.no_grad()
def test_a_hook_may_run_the_model_on_another_batch(case, whole, when):
    model = randomize(NESTED[case](), std=0.3).eval()
    base = model.get_base_model()
    inner_model = model if whole else base.base_model if base.base_model is not base else base.encoder
    outer, inner = two_batches(model)
    expected = model(**outer).logits, inner_model(**inner)[0]
    assert not torch.allclose(expected[0], model(**make_inputs_of(model, seed=9)).logits, atol=1e-3)
    for path, module in modules_of(base).items():
        received, is_inside = [], []

        def run(*_, received=received, is_inside=is_inside):
            if not is_inside:
                is_inside.append(True)
                received.append(inner_model(**inner)[0])
                is_inside.pop()

        handle = module.register_forward_pre_hook(run) if when == "before" else module.register_forward_hook(run)
        logits = model(**outer).logits
        handle.remove()
        torch.testing.assert_close(logits, expected[0], msg=lambda text, path=path: f"{path}: {text}")
        for each in received:
            torch.testing.assert_close(each, expected[1], msg=lambda text, path=path: f"within {path}: {text}")
        assert received


@torch.no_grad()
def test_a_mixed_batch_and_a_plain_one_within_each_other():
    model = prompts_of(1, 3, 3)
    outer, inner = make_inputs("wav2vec2"), make_inputs("wav2vec2", batch_size=3, seed=5)
    outer_names, inner_names = ["number0", "number1"], ["number2", "__base__", "number0"]
    plain = functools.partial(model, **inner)
    base = functools.partial(model.get_base_model(), **outer)
    calls = {
        "mixed, the base model within": (functools.partial(model, **outer, adapter_names=outer_names), base),
        "mixed": (functools.partial(model, **outer, adapter_names=outer_names), plain),
        "plain": (functools.partial(model, **outer), functools.partial(model, **inner, adapter_names=inner_names)),
        "both": (
            functools.partial(model, **outer, adapter_names=["number1", "number2"]),
            functools.partial(model, **inner, adapter_names=inner_names),
        ),
    }
    num_runs = 0
    for around, within in calls.values():
        expected, expected_within = around().logits, within().logits
        for module in modules_of(model.get_base_model()).values():
            received, is_inside = [], []

            def run(*_, within=within, received=received, is_inside=is_inside):
                if not is_inside:
                    is_inside.append(True)
                    received.append(within().logits)
                    is_inside.pop()

            handle = module.register_forward_pre_hook(run)
            torch.testing.assert_close(around().logits, expected)
            handle.remove()
            for logits in received:
                torch.testing.assert_close(logits, expected_within)
            num_runs += len(received)
    assert num_runs > 200


def test_the_encoder_within_a_mixed_batch_needs_a_batch_of_its_size():
    model = prompts_of(3, 3)
    trunk = model.get_base_model().wav2vec2
    is_inside = []

    def run(*_):
        if not is_inside:
            is_inside.append(True)
            trunk(**make_inputs("wav2vec2", batch_size=3))

    trunk.encoder.layers[0].register_forward_pre_hook(run)
    with pytest.raises(ValueError, match="got 2 names for a batch of 3 samples"):
        model(**make_inputs("wav2vec2"), adapter_names=["number0", "number1"])


# ---- interrupts ------------------------------------------------------------------------------------------------------


def interrupt_everywhere(model, run):
    """Interrupt a call in front of and behind every module that runs; yields after each."""
    for path, module in modules_of(model.get_base_model()).items():
        for register in (module.register_forward_pre_hook, module.register_forward_hook):

            def stop(*_):
                raise KeyboardInterrupt

            handle = register(stop)
            with pytest.raises(KeyboardInterrupt):
                run()
            handle.remove()
            yield path


def check_whole(model, run, expected):
    """The model is as before: in this thread and another, on its own and as a copy."""
    torch.testing.assert_close(run(model), expected)
    with ThreadPoolExecutor(1) as pool:
        torch.testing.assert_close(pool.submit(run, model).result(60), expected)


@pytest.mark.parametrize("case", [*NESTED, *(f"mixed, {case}" for case in MIXED)])
def test_after_an_interrupt_anywhere_nothing_has_happened(case, tmp_path):
    is_mixed = case.startswith("mixed, ")
    model = MIXED[case.removeprefix("mixed, ")]() if is_mixed else randomize(NESTED[case](), std=0.3).eval()
    outer, inner = two_batches(model)
    names = {"adapter_names": list(model.peft_config)[:2]} if is_mixed else {}

    @torch.no_grad()
    def run(model):
        trunk = model.get_base_model().base_model
        called_alone = trunk(**inner)[0] if trunk is not model.get_base_model() else torch.zeros(1)
        return [model(**outer, **names).logits, model(**inner).logits, called_alone]

    expected, before = run(model), {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    for number, _ in enumerate(interrupt_everywhere(model, lambda: model(**outer, **names))):
        if number % 7 == 0:  # a copy in between, before the next whole pass
            torch.testing.assert_close(run(copy.deepcopy(model)), expected)
        assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
        check_whole(model, run, expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    handle = model.get_base_model().register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(**outer, **names)
    handle.remove()
    unloaded = copy.deepcopy(model).unload()
    assert not any("forward" in vars(module) for module in unloaded.modules())
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in unloaded.parameters())
    weights = getattr(unloaded, "layer_weights", None)
    assert weights is None or weights is dict(unloaded.named_parameters())["layer_weights"]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_after_an_interrupted_backward_pass(use_reentrant):
    model = randomize(get_peft_model(make("ast"), METHODS["joint"]())).train()
    inputs = make_inputs("ast")

    def gradients():
        model.zero_grad()
        model(**inputs).logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in trainable(model).values()]

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    layer = model.get_base_model().base_model.layers[1].base_layer
    num_interrupts = 0
    for module in layer.modules():
        calls = []

        def stop(*_, calls=calls):
            calls.append(1)
            if len(calls) == 2:  # the first is the forward pass
                raise KeyboardInterrupt

        handle = module.register_forward_pre_hook(stop)
        # From within autograd's engine it may come as another error.
        with contextlib.suppress(KeyboardInterrupt, RuntimeError):
            gradients()
        handle.remove()
        num_interrupts += len(calls) > 1
        torch.testing.assert_close(gradients(), expected)
    assert num_interrupts > 5


def test_interrupts_in_one_thread_do_not_reach_another():
    model, stopped = randomize(get_peft_model(make("ast"), METHODS["joint"]()), std=0.3).eval(), threading.Event()
    inputs = make_inputs("ast")
    with torch.no_grad():
        expected = model(**inputs).logits
    main = threading.get_ident()

    def stop(*_):
        if threading.get_ident() == main:
            raise KeyboardInterrupt

    handles = [module.register_forward_pre_hook(stop) for module in modules_of(model.get_base_model()).values()]

    def others():
        received = []
        with torch.no_grad():
            while not stopped.is_set() or len(received) < 50:
                received.append(model(**inputs).logits)
        return received

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(others) for _ in range(2)]
        for _ in range(200):
            with pytest.raises(KeyboardInterrupt):
                model(**inputs)
        stopped.set()
        for logits in (each for future in futures for each in future.result(60)):
            torch.testing.assert_close(logits, expected)
    for handle in handles:
        handle.remove()
