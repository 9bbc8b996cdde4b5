"""How the metrics of recipes are shown: the title of their axis and the factor of their values."""

AXES = {
    "accuracy": ("accuracy, %", 100),
    "map": ("mean average precision", 1),
    "equal_error_rate": ("equal error rate, %", 100),
    "min_dcf": ("minDCF", 1),
}


def axis_of(metric: str) -> tuple[str, float]:
    """The title of the axis of a metric, and what its values are multiplied by. Raises `ValueError` for others."""
    if metric not in AXES:
        raise ValueError(f"`metric` must be one of {', '.join(AXES)}, got {metric!r}.")
    return AXES[metric]
