"""Records the routing of models and of texts in traces, and replays traces in a model."""
