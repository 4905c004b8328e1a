r"""Formulas as MathML, written at build time: no script and no network where a page is read."""

from __future__ import annotations

import html
import re

from docutils import nodes
from latex2mathml.converter import convert


def check() -> None:
    """Fail early where the converter is not what is expected."""
    if "<math" not in convert("x_1"):
        raise RuntimeError("latex2mathml does not write MathML.")


def _formula(text: str, display: str) -> str:
    text = text.replace(r"\tfrac", r"\frac").replace(r"\mathrm{s.t.}", r"\text{s.t.}")
    if display == "block":
        text = re.sub(r"\\(min|max|sup|inf)_", r"\\\1\\limits_", text)
    # Alignment without an environment is what Sphinx calls a split formula.
    if "\\\\" in text and "\\begin" not in text:
        text = r"\begin{aligned}" + text + r"\end{aligned}"
    return convert(text, display=display)


def _inline(self, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{_formula(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def _block(self, node: nodes.math_block) -> None:
    self.body.append('<div class="math-block">')
    for part in node.astext().split("\n\n"):
        if part.strip():
            self.body.append(_formula(part, "block"))
    self.body.append(f"</div><!-- {html.escape(node.astext()).replace('--', '- -')} -->")
    raise nodes.SkipNode


def setup(app):
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
