"""The site: ``uv run sphinx-build docs docs/_build/html``. Nothing is fetched from a network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "distinf"
copyright = "the authors of distinf, Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "config_reference",
    "gallery",
    "mathml",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3  # GitHub's anchors, so that links work there, too

default_role = "py:obj"  # `name` in a docstring is a link where there is such a name
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the docstrings
napoleon_google_docstring = False

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "distinf"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"**": ["contents"]}  # all pages, by sections
html_theme_options = {
    "navbar_center": [],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
