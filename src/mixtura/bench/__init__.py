"""Measurements of a model: what quantisation costs it in quality, and what it can do."""

from mixtura.bench.quality import Quality, QualityRow, Wanted, bench_quality

__all__ = ["Quality", "QualityRow", "Wanted", "bench_quality"]
