"""The sizes of ESC-10's rows: that they fill the picture, and that rows compared are about as large."""

import copy

import esc10
import pytest
from esc10_rows import OPTIONS, ROWS, SIZES, method_of, size_name
from tiny import trainable

from peft_audio import head_modules, load_classifier
from peft_audio.trainer import apply_method, parameter_counts


@pytest.fixture(scope="module")
def shares():
    """Trainable parameters beside the head, as a share of the bundled backbone's, by name."""
    base, found = load_classifier(str(esc10.BUNDLED_BACKBONE), list("abcdefghij")), {}
    head = sum(p.numel() for part in head_modules(base) for p in base.get_submodule(part).parameters())
    backbone = sum(p.numel() for p in base.parameters()) - head
    for name, options in OPTIONS.items():
        model = apply_method(copy.deepcopy(base), method_of(name), **options)
        found[name] = (sum(p.numel() for p in trainable(model).values()) - head) / backbone
        counted = esc10.without_head({**parameter_counts(model), "head_parameters": head})
        assert counted["share_of_backbone"] == pytest.approx(found[name], rel=1e-9), name
    return found


def test_all_sizes_lie_on_the_picture_and_grow_along_their_curve(shares):
    assert (shares["linear_probe"], shares["full"]) == (0, 1)
    drawn = {name: share for name, share in shares.items() if name not in ("linear_probe", "full")}
    assert {name: share for name, share in drawn.items() if not 0.001 <= share <= 0.1} == {}
    for row, sizes in SIZES.items():
        curve = [shares[size_name(row, size)] for size in sizes]
        assert curve == sorted(set(curve)), row
        assert curve[0] < shares[row] < curve[-1], row
        assert shares[row] not in curve, row
        assert curve[-1] / curve[0] > 10, row


def test_rows_compared_have_comparable_sizes(shares):
    convolutions = [row for row in ROWS if method_of(row) == "time_freq_conv"]
    assert len(convolutions) == 4
    assert {shares[row] for row in convolutions} == {shares[convolutions[0]]}
    for row in ("lora", "bottleneck", "conformer", "parallel_mlp", *convolutions):
        assert shares[row] == pytest.approx(shares["ipet"], rel=0.15), row
    assert 0.01 <= shares["ipet"] <= 0.05
    assert shares["ipet"] == pytest.approx(shares["embedding_prompt"] + shares["parallel_mlp"])
    assert shares["aat_m"] < shares["aat_ms"] < shares["joint"]


# The picture
