"""Mean and standard deviation of a data set's spectrograms, to which AST's input is normalized."""

from collections.abc import Iterable

import numpy as np
from sklearn.preprocessing import StandardScaler


def spectrogram_statistics(spectrograms: Iterable[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation over all values of all spectrograms, in one pass and with memory for one of them.

    They are what `ASTFeatureExtractor` takes as `mean` and `std` (it divides by 2 std itself). Compute them over the
    training clips, with an extractor whose `do_normalize` is False; padding then counts, as in AST's recipe (which
    averages the standard deviations of batches, a little less than this one).

    Args:
        spectrograms: arrays (frames, mel bins) of any number of frames, e.g. from a generator.

    Raises:
        ValueError: there are none, or one is empty or has values that are not finite.
    """
    scaler = StandardScaler()  # adds up by the formula of Chan et al.
    for index, spectrogram in enumerate(spectrograms):
        values = np.asarray(spectrogram, dtype=np.float64).reshape(-1, 1)
        if values.size == 0 or not np.isfinite(values).all():
            problem = "is empty" if values.size == 0 else "has values that are not finite numbers"
            raise ValueError(f"Spectrogram {index} (from 0) {problem}: leave it out.")
        scaler.partial_fit(values)
    if not hasattr(scaler, "var_"):
        raise ValueError("There are no spectrograms to compute statistics of (a generator can be read once only).")
    return float(scaler.mean_[0]), float(np.sqrt(scaler.var_[0]))
