"""Rows of the table verify themselves: those that hold pass, those that do not are refused with what was seen."""

import dataclasses

from refusals import state_of
from tiny import BACKBONES, WITH_PADDING, each_backbone, make_inputs

from peft_audio.backbones.table import resolve
from peft_audio.tuner.made_up_inputs import Runnable, made_up_inputs
from peft_audio.tuner.row_check import RowCheck


# Types whose own convolutions or pooling let padding through.
LEAK_PADDING = ("data2vec-audio", "sew", "sew-d", "wav2vec2-conformer-relative", "wav2vec2-conformer-rotary")
HIDE_PADDING = [name for name in WITH_PADDING if name not in LEAK_PADDING]


def problems_of(model, inputs=None, **claims):
    backbone = resolve(model)
    backbone = dataclasses.replace(backbone, spec=dataclasses.replace(backbone.spec, **claims))
    runnable = made_up_inputs(model, backbone) if inputs is None else Runnable(model, inputs)
    assert runnable is not None
    return RowCheck(model, backbone, runnable).problems()


@each_backbone
def test_every_row_of_ours_holds_on_made_up_inputs(backbone):
    model = BACKBONES[backbone]()
    model(**make_inputs(backbone))  # transformers puts hooks of its own on at the first call
    before = state_of(model)
    assert problems_of(model) == []
    assert state_of(model) == before


@each_backbone
def test_every_row_of_ours_holds_on_inputs_that_are_given(backbone):
    assert problems_of(BACKBONES[backbone](), make_inputs(backbone)) == []
