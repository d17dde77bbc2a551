"""Settings of the documentation site; see CONTRIBUTING.md for the command."""

import os
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

_package = (HERE.parent / "zsad_jax" / "__init__.py").read_text("utf-8")
project = "zsad_jax"
author = "The zsad_jax authors"
copyright = author
release = version = re.findall('__version__ = "(.+)"', _package)[0]

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "reference",
]
source_suffix = {
  ".rst": "restructuredtext",
  ".md": "myst-nb",
  ".myst": "myst-nb",
  ".ipynb": "myst-nb",
}
exclude_patterns = ["README.md", "_ext", "Thumbs.db", ".DS_Store"]

# The repository's address, for links to files that are no pages.
_clone = os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")
_commit = os.environ.get("READTHEDOCS_GIT_COMMIT_HASH", "main")
source_url = f"{_clone}/blob/{_commit}" if _clone.startswith("https://") else ""

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # Signatures have them.
python_maximum_signature_line_length = 72
default_role = "code"
add_module_names = False

smartquotes = False  # They change the two hyphens of flags.
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = f"zsad_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
  "use_download_button": False,
  "use_fullscreen_button": False,
  "navbar_persistent": [],
  "show_navbar_depth": 1,
  "show_toc_level": 2,
  "home_page_in_toc": True,
}
