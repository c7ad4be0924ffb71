"""Analyses a run and the routing of its model, and writes one self-contained page about them.

    write_report(Path("demo_out/moe"), Path("report.html"), subject=open_subject)

The analysis is separate from the page. `curves` reads a run's logs, and `load_history` sums the
expert load in them. `sample` runs the decoder over held-out text, and collects each layer's routing
as arrays. `specialisation` counts the experts that the tokens of a domain choose.
"""

from mixtura.insight.report import report_data, write_report
from mixtura.insight.texts import Subject

__all__ = ["Subject", "report_data", "write_report"]
