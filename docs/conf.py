"""Sphinx configuration. `make docs` builds the site in docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import tagmask

project = "tagmask"
version = release = tagmask.__version__
html_title = f"tagmask {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "toctree_from_links", "mathml"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
default_role = "code"  # single backticks in docstrings mean code

myst_heading_anchors = 4  # headings get the anchors that GitHub gives them
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False  # "Returns: The mask [H, W]: 0 is background" names no type
