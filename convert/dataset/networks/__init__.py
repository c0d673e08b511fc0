"""Depth networks: those of `transformers` and exported files. Only this package imports torch."""
