"""Which model types are supported, and where each of them keeps its encoder layers, attention, norms and head."""
