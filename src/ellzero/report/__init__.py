"""Reports: one summary as a page, as Markdown, as JSON and on a terminal."""

from ellzero.report.html import to_html
from ellzero.report.markdown import to_markdown
from ellzero.report.schema import SCHEMA_VERSION, Summary, to_json
from ellzero.report.tables import print_table
from ellzero.report.terminal import print_summary, summary_line

__all__ = [
    "SCHEMA_VERSION",
    "Summary",
    "print_summary",
    "print_table",
    "summary_line",
    "to_html",
    "to_json",
    "to_markdown",
]
