"""How Sphinx builds the site: ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src"), str(HERE.parent)]

import mathml  # noqa: E402
import matplotlib as mpl  # noqa: E402

import ellzero  # noqa: E402

mpl.use("Agg")
# A script that is shown ends with a message of the plot, not with a warning of the backend.
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "ellzero"
author = "The ellzero developers"
copyright = author
release = version = ellzero.__version__
language = "en"

extensions = [
    "mathml",
    "ellzero_docs",
    "sphinx.ext.autodoc",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_ext", "papers/results", "gallery/**/*.ipynb"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
nitpicky = True
default_role = "name"
primary_domain = "py"
add_module_names = False
templates_path = []

autodoc_typehints = "none"
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_use_plots = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

html_math_renderer = "mathml"
mathml.check()


def style_of_figures(gallery_conf, script):
    """Give every script of the gallery the same look."""
    import matplotlib.pyplot as plt

    plt.style.use(HERE / "style.mplstyle")


sphinx_gallery_conf = {
    "examples_dirs": [str(HERE.parent / "examples" / "gallery")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "gallery_order.Order",
    "reset_modules": (style_of_figures,),
    "thumbnail_size": (480, 300),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "capture_repr": (),
    "plot_gallery": "True",
    "only_warn_on_example_error": False,
    "nested_sections": False,
    "copyfile_regex": r".*\.rst",
}

html_theme = "pydata_sphinx_theme"
html_title = "ellzero"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["ellzero.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "ellzero"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "benchmarks": [], "changelog": [], "install": []}
suppress_warnings = ["config.cache"]
