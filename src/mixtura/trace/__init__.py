"""Routing traces: which experts each token chose and had, in a Parquet file. No torch."""

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
