"""What tests of properties share: examples that hypothesis draws, the same in every run."""

import pytest
import torch


hypothesis = pytest.importorskip("hypothesis", reason="the examples are drawn by hypothesis")
some = hypothesis.strategies


def examples(number):
    """The same examples in every run."""
    return hypothesis.settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],  # looking for a smaller example that fails takes minutes
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits
