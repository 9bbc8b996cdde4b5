"""Which layers a state dict has tensors of, by the names that models and checkpoints give them."""

import warnings

import pytest
from recognizers import recognizer
from tiny import METHODS, make

from peft_audio.backbones.table import resolve
from peft_audio.tuner.from_state_dict import take_layers


PART = "prompt.default.embeddings"


@pytest.mark.parametrize(
    "name", ["base_model.model.decoder.layers.{}.prompt.embeddings", f"decoder.blocks.{{}}.ipet_{PART}"]
)
def test_an_encoder_that_is_called_a_decoder_is_the_encoder(name):
    config = METHODS["ipet"](layers_to_transform=[0, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_layers(config, [name.format(index) for index in (0, 2)], resolve(make("wav2vec2")), "ipet_", ["prompt"])
    assert (config.stack, config.layers_to_transform) == ("encoder", [0, 2])


def test_other_layers_of_the_two_stacks_are_refused():
    names = [f"model.encoder.layers.0.ipet_{PART}", f"model.decoder.layers.1.ipet_{PART}"]
    config = METHODS["ipet"](stack="both")
    with pytest.raises(ValueError, match="the same layers of the encoder and the decoder"):
        take_layers(config, names, resolve(recognizer(decoder_layers=2)), "ipet_", ["prompt"])
    assert (config.stack, config.layers_to_transform) == ("both", None)
