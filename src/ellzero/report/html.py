"""One self-contained page: no network, readable without JavaScript, on paper and in the dark."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from ellzero.report.sections import build
from ellzero.report.words import typeset

if TYPE_CHECKING:
    from jinja2 import Template


def _file(name: str) -> str:
    return (resources.files("ellzero.report") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> Template:
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({"report.html.jinja": _file("report.html.jinja")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def to_html(summary: Mapping[str, Any]) -> str:
    r"""Return the report as one HTML page.

    Parameters
    ----------
    summary : mapping
        The summary, see `ellzero.report.schema.Summary`. All keys are optional.

    Returns
    -------
    str
        The page. It asks for nothing from a network; its policy forbids it to.

    Raises
    ------
    InvalidParameterError
        If `summary` is not a mapping, its `schema_version` is not known, or it asks for a figure
        of an unknown kind.

    See Also
    --------
    to_markdown : The same content as Markdown.
    print_summary : The same content on a terminal.

    Examples
    --------
    >>> from ellzero.report import to_html
    >>> page = to_html({"title": "Iris", "path": [{"n_nonzero": 5, "value": 0.3082}]})
    >>> "5 parameters, train loss 0.3082" in page
    True
    """
    from markupsafe import Markup

    script = _file("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The files of the package and the finished figures are the only text that is not escaped.
    return _template().render(
        report=build(summary),
        style=Markup(_file("report.css")),
        script=Markup(script),
        script_hash=digest,
        markup=Markup,
        typeset=typeset,
    )
