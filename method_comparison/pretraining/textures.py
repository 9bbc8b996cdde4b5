"""Texture statistics: what a spectrogram is like on average, as a target of pretraining."""

import torch

from .clips import Clips


def texture_statistics(features: torch.Tensor) -> torch.Tensor:
    """Summary statistics over time (batch, 424) of log-mel features (batch, 512, 64).

    Mean and deviation of each mel band; for sixteen groups of bands the skewness, the power in eight octaves of
    modulation from 0.2 to 50 Hz, the roughness along time and frequency, and the correlations between groups.
    """
    groups = features.unflatten(2, (16, 4)).mean(3)
    centered = groups - groups.mean(1, keepdim=True)
    deviation = centered.square().mean(1, keepdim=True).sqrt() + 0.1
    standard = centered / deviation
    spectrum = torch.fft.rfft(centered, dim=1).abs().square() / groups.shape[1]
    octaves = [spectrum[:, 2**i : 2 ** (i + 1)].mean(1) for i in range(8)]
    correlations = standard.transpose(1, 2) @ standard / groups.shape[1]
    rows, columns = torch.triu_indices(16, 16, offset=1)
    return torch.cat(
        [
            features.mean(1),
            features.std(1),
            standard.pow(3).mean(1).clamp(-5, 5),
            torch.log(torch.stack(octaves, 2) + 0.01).flatten(1),
            groups.diff(dim=1).abs().mean(1),
            features.diff(dim=2).abs().mean(1).unflatten(1, (-1, 7)).mean(2),
            correlations[:, rows, columns],
        ],
        dim=1,
    )


def texture_targets(clips: Clips, size: int) -> torch.Tensor:
    """Leading principal components (n, size) of the clips' texture statistics, with their variances drawn together."""
    statistics = torch.cat([texture_statistics(part.float()) for part in clips.features.split(64)])
    statistics = (statistics - statistics.mean(0)) / (statistics.std(0) + 1e-3)
    variances, directions = torch.linalg.eigh(statistics.T @ statistics / len(statistics))
    variances, directions = variances.flip(0)[:size], directions.flip(1)[:, :size]
    return statistics @ directions / (variances.mean() * variances) ** 0.25
