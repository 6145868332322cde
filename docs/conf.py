"""The documentation site: `make docs`. Its pages are plain Markdown, readable in the repository too."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_site"))

import gallery
import reference

project = "wgflow"
author = copyright = "wgflow authors"
release = importlib.metadata.version("wgflow")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax and its fonts stand beside the pages: no network is asked
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "gallery",  # this one and the next two are in docs/_site
    "links",
    "reference",
]
exclude_patterns = ["_build", "_site", "pictures", "snippets"]
suppress_warnings = [
    "config.cache",  # settings of the gallery and of autosummary are functions
    "autosummary.import_cycle",  # summaries give full names, since many are offered by `wgflow` itself
]

myst_enable_extensions = ["dollarmath", "amsmath"]  # $...$ as the repository's pages show it
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "wgflow"
html_static_path = ["_site/static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7fb8f0", "color-brand-content": "#7fb8f0"},
}

default_role = "py:obj"  # `name` in a docstring: a link where it is documented, code otherwise
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
templates_path = ["_site/templates"]
autosummary_ignore_module_all = False  # the page of a package has the names that it exports
autosummary_context = {
    "has_snippet": reference.has_snippet,
    "offered": reference.offered,
    "submodules": reference.submodules,
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(?!run_policy_onnx)[^/]*\.py$",  # that one wants a file
    "within_subsection_order": gallery.ReadingOrder,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "capture_repr": (),  # what an example prints, not what its last line returns
    "min_reported_time": 1,
    "write_computation_times": False,
}
