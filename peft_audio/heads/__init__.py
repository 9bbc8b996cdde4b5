"""Poolings and heads that a classifier gets before its adapters, and weighted layer sums that adapters train."""
