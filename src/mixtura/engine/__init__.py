"""Inference: steps over a cache of many sequences, sampling, generation, conversations.

Import from the modules: `generate.generate`, `conversation.Conversation`,
`continuous_batch.ContinuousBatch`, `runner.Runner`, `sampling.Sampling`. The module `sampling`
imports no torch, so that a command can refuse a bad option before it loads torch.
"""
