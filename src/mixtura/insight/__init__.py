"""The analysis of a run: the routing of its model, and one self-contained page that shows it.

    write_report(Path("demo_out/moe"), Path("report.html"), subject=open_subject)

The analysis is separate from the page: `curves` and `load_history` read a run's logs, `sample`
runs the decoder over held-out text and collects each layer's routing as arrays, `specialisation`
counts the experts that a domain and a token go to.
"""

from mixtura.insight.report import report_data, write_report
from mixtura.insight.texts import Subject

__all__ = ["Subject", "report_data", "write_report"]
