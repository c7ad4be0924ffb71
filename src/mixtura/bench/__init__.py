"""Measurements of a model: the loss of quality by quantisation, and results on tasks."""

from mixtura.bench.quality import Quality, QualityOptions, QualityRow, bench_quality

__all__ = ["Quality", "QualityOptions", "QualityRow", "bench_quality"]
