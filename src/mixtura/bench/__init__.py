"""Measures how much quality quantisation costs a model, and a model's results on tasks."""

from mixtura.bench.quality import Quality, QualityOptions, QualityRow, bench_quality

__all__ = ["Quality", "QualityOptions", "QualityRow", "bench_quality"]
