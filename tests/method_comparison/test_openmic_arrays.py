"""OpenMIC-2018's array file: what it may not hold."""

from pathlib import Path

import layouts
import numpy as np
import pytest
from data_sets import DATA_SETS
from layouts import refused


MIC_CSV = "openmic-2018-aggregated-labels.csv"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_npz_is_refused_unopened(tmp_path):
    layouts.openmic2018(tmp_path)
    layouts.write_openmic_npz(tmp_path, pickled=True)
    arrays = dict(np.load(tmp_path / "openmic-2018.npz", allow_pickle=True))
    arrays["sample_key"][0] = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "openmic-2018.npz", **arrays)
    refused(lambda: DATA_SETS["openmic2018"].read(tmp_path), "openmic-2018.npz", "Pickled arrays", MIC_CSV)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"Y_mask": np.zeros((3, 2), bool)}, ["(3, 3)", "(3, 2)"]),
        ({"sample_key": np.arange(3)}, ["must be texts", "int64"]),
        ({"Y_true": None}, ["cannot be read", "Y_true"]),
    ],
)
def test_an_npz_with_other_arrays_is_named(tmp_path, changed, expected):
    layouts.openmic2018(tmp_path)
    layouts.write_openmic_npz(tmp_path, pickled=False)
    arrays = {**np.load(tmp_path / "openmic-2018.npz"), **changed}
    np.savez(tmp_path / "openmic-2018.npz", **{name: value for name, value in arrays.items() if value is not None})
    refused(lambda: DATA_SETS["openmic2018"].read(tmp_path), "openmic-2018.npz", *expected)


def test_a_truncated_npz_is_named(tmp_path):
    layouts.openmic2018(tmp_path)
    layouts.write_openmic_npz(tmp_path, pickled=False)
    (tmp_path / "openmic-2018.npz").write_bytes((tmp_path / "openmic-2018.npz").read_bytes()[:500])
    refused(lambda: DATA_SETS["openmic2018"].read(tmp_path), "openmic-2018.npz", "cannot be read")
