"""Training from what the frozen part of a model computes, which is computed once and kept on disk."""

from .dataset import CachedStates, cache_frozen


__all__ = ["CachedStates", "cache_frozen"]
