"""Traces of routing: recorded from a model that runs, of texts, and replayed into a model."""
