"""Measurements of a model: what quantisation costs it in quality."""

from mixtura.bench.quality import Quality, QualityRow, Wanted, bench_quality

__all__ = ["Quality", "QualityRow", "Wanted", "bench_quality"]
