"""Routing traces: Parquet files with the experts that tokens chose and that computed them.

This package does not import torch.
"""

from mixtura.trace.batch import ABSENT, LayerRows, TraceBatch
from mixtura.trace.meta import FORMAT, TracedLayer, TraceMeta
from mixtura.trace.reader import TraceReader
from mixtura.trace.writer import TraceWriter, write_trace

__all__ = [
    "ABSENT",
    "FORMAT",
    "LayerRows",
    "TraceBatch",
    "TraceMeta",
    "TraceReader",
    "TraceWriter",
    "TracedLayer",
    "write_trace",
]
