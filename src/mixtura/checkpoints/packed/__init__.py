"""Packed folders, as a source of weights and as what weights are packed into."""
