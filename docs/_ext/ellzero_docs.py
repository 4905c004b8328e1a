"""What Sphinx does for this site: write the generated pages, and find the names in docstrings."""

from __future__ import annotations

import importlib
import re
from typing import Any

import benchmark_pages
import command_pages
import paper_pages
import reference_pages
from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

# Names of other packages: shown as code, since nothing is fetched when the site is built.
ELSEWHERE = ("torch", "numpy", "scipy", "sklearn", "pandas", "collections", "typing", "matplotlib")


def write_pages(app: Sphinx) -> None:
    """Write everything that is generated, before Sphinx reads the sources."""
    out = app.srcdir / "generated"
    for pages in (reference_pages, command_pages, benchmark_pages, paper_pages):
        pages.write(out)


def name_role(
    role: str, rawtext: str, text: str, lineno: int, inliner: Inliner, options: Any = None, content: Any = None,
) -> tuple[list[nodes.Node], list[nodes.Node]]:  # fmt: skip
    """Make a link of text in single backticks where it is a public name, else code."""
    env = inliner.document.settings.env
    node = addnodes.pending_xref(
        rawtext, refdomain="py", reftype="obj", reftarget=text, refexplicit=False, ellzero_soft=True,
        refwarn=False,
    )  # fmt: skip
    node["refdoc"] = env.docname
    node["py:module"] = env.ref_context.get("py:module")
    node["py:class"] = env.ref_context.get("py:class")
    node += nodes.literal(text, text)
    return [node], []


def _known(objects: dict[str, Any], target: str) -> str | None:
    """Return the one documented object that a short name means."""
    if target in objects:
        return target
    ends = [name for name in objects if name.endswith("." + target)]
    ends.sort(key=lambda name: (name.count("."), name))
    # `ellzero.RVSM` does not exist: solvers come before the torch facade of the same name.
    return ends[0] if ends else None


def _exists(target: str) -> bool:
    """Return whether a dotted name can be imported: internal, or of the standard library."""
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def find_reference(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Find what a short name means; a name that exists nowhere stays a warning."""
    if node.get("refdomain") != "py":
        # Docstrings that estimators inherit refer to pages of scikit-learn's site.
        inherited = str(node.get("refdoc", "")).startswith("generated/api/")
        return contnode if inherited and node.get("reftype") == "ref" else None
    domain = env.get_domain("py")
    target = node["reftarget"].lstrip(".~")
    words = target.removesuffix("()")
    name = _known(domain.objects, words) if words.isidentifier() or "." in words else None
    if name is not None:
        entry = domain.objects[name]
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name
        )
    if node.get("ellzero_soft"):
        return contnode
    if words.split(".")[0] in ELSEWHERE or _exists(words):
        return contnode
    return None


def escape_formulas(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep bars and subscripts of formulas in plain words from being read as markup."""
    inside_math = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if inside_math is not None and line.strip() and indent <= inside_math:
            inside_math = None
        if line.lstrip().startswith(".. math::"):
            inside_math = indent
        if inside_math is not None or line.lstrip().startswith((">>>", "...", "+-", "| ")):
            continue
        parts = re.split(r"(`+[^`]*`+_{0,2})", line)
        parts[::2] = [
            re.sub(r"(?<!\\)\||(?<=[\w)])_(?![\w`])", r"\\\g<0>", part) for part in parts[::2]
        ]
        lines[i] = "".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect it all."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_pages, priority=100)
    # After numpydoc, whose sections need the lines as they are.
    app.connect("autodoc-process-docstring", escape_formulas, priority=900)
    app.connect("missing-reference", find_reference)
    app.add_role("name", name_role)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
