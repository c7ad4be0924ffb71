"""Looking inside a run: what its routers did, and one self-contained page that shows it.

    write_report(Path("demo_out/moe"), Path("report.html"), subject=open_subject)

The analysis stands apart from the page: `curves` and `load_history` read a run's logs, `sample`
reads held-out text with the decoder and collects each layer's routing as arrays, `specialisation`
counts which experts a domain and a token go to.
"""

from mixtura.insight.report import report_data, write_report
from mixtura.insight.texts import Subject

__all__ = ["Subject", "report_data", "write_report"]
