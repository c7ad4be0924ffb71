"""Inference: sampling, generation with the key-value cache, conversations.

Import from the modules: `generate.generate`, `conversation.Conversation`, `sampling.Sampling`. The
last needs no torch, so that a command can refuse a bad option before it loads any.
"""
