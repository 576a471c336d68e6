"""The report that a person looks at: one HTML file that opens from disk and asks the network for nothing.

`record.py` reads a run's folder, `summary.py` puts it into sentences, `tables.py` into rows, `charts.py` into
pictures (`svg.py` fits them into a page), `page.py` puts one run on a page and `compare.py` several.
Names and reasons come from other machines: the templates escape every text.
"""

from sscxr.report.compare import write as write_comparison
from sscxr.report.page import write
from sscxr.report.record import Record, SiteScore, read

__all__ = ["Record", "SiteScore", "read", "write", "write_comparison"]
