"""Inference: steps over a cache of many sequences, sampling, generation, conversations.

Import from the modules: `generate.generate`, `conversation.Conversation`, `batch.Batch`,
`runner.Runner`, `sampling.Sampling`. The last needs no torch, so that a command can refuse a bad
option before it loads any.
"""
