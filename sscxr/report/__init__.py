"""The report: one HTML file that opens from disk and loads nothing from the network.

`record.py` reads a run's folder; `summary.py` turns it into sentences, `tables.py` into rows and `charts.py` into
pictures (which `svg.py` fits into a page); `page.py` writes a page about one run and `compare.py` about several.
Names and reasons come from other machines: the templates escape every text.
"""

from sscxr.report.compare import write as write_comparison
from sscxr.report.page import write
from sscxr.report.record import Record, SiteScore, read

__all__ = ["Record", "SiteScore", "read", "write", "write_comparison"]
