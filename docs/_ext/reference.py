"""Sphinx extension: writes the pages that are made from the code.

They are below docs/reference/, which is no part of the repository: commands,
configurations, the Python API, notebooks, and Markdown files of other folders.
Docstrings are plain text: see `prose`.
"""

import ast
import inspect
import json
import pathlib
import textwrap
from typing import Any

import api
import commands
import configurations
import links
import prose
from docutils import nodes
from sphinx.domains import python as domain
from sphinx.ext import napoleon


def setup(app: Any) -> dict[str, Any]:
  """Register the extension."""
  app.add_config_value("source_url", "", "env", str)
  app.connect("builder-inited", _write)
  app.connect("source-read", _rewrite)
  app.connect("autodoc-process-docstring", _docstring, priority=100)
  app.connect("autodoc-process-signature", _signature)
  app.connect("autodoc-process-docstring", _property, priority=900)
  app.connect("doctree-read", _dashes)
  for field in domain.PyObject.doc_field_types:
    if field.name == "variable":
      field.label = "Attributes"
  return {"parallel_read_safe": True, "version": "1"}


def _write(app: Any) -> None:
  """Write all pages; an unchanged one keeps its time."""
  url = app.config.source_url
  found: dict[str, str] = {"commands.myst": commands.overview()}
  for name, text in commands.pages():
    found[f"commands/{name}.myst"] = text
  for name, text in [*api.pages(), *configurations.pages()]:
    found[name] = text
  for path in links.repository_files():
    target = links.DOCS / str(links.page(path))[1:]
    text = links.rewrite(
      path.read_text(encoding="utf-8"), path.parent, target.parent, url
    )
    text = f"---\norphan: true\n---\n\n{text}"
    found[str(target.relative_to(links.GENERATED))] = text
  found |= _notebooks(url)
  for name, text in found.items():
    path = links.GENERATED / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
      path.write_text(text, encoding="utf-8")
  for path in links.GENERATED.rglob("*"):
    if path.is_file() and path.relative_to(links.GENERATED).as_posix() not in (
      found
    ):
      path.unlink()


def _notebooks(url: str) -> dict[str, str]:
  """Return copies of the notebooks, and the page that lists them."""
  found = {}
  for path in sorted((links.ROOT / "notebooks").glob("*.ipynb")):
    document = json.loads(path.read_text(encoding="utf-8"))
    for cell in document["cells"]:
      if cell["cell_type"] == "markdown":
        text = "".join(cell["source"])
        folder = links.GENERATED / "notebooks"
        cell["source"] = links.rewrite(text, path.parent, folder, url)
    found[f"notebooks/{path.name}"] = json.dumps(document, indent=1)
  found["notebooks.myst"] = (
    "# Notebooks\n\nFiles of the folder `notebooks`, with their outputs.\n\n"
    "```{toctree}\n:glob:\n:titlesonly:\n\nnotebooks/*\n```\n"
  )
  return found


def _rewrite(app: Any, docname: str, source: list[str]) -> None:
  """Rewrite the links of a page of `docs` that lead out of it."""
  path = pathlib.Path(app.env.doc2path(docname))
  if path.suffix == ".md":
    folder = path.parent
    source[0] = links.rewrite(source[0], folder, folder, app.config.source_url)


def _docstring(
  app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  """Convert a docstring to reST, before napoleon reads its sections."""
  del app, name, options
  text = "\n".join(lines)
  if what == "module":
    text = prose.to_rest(text)
  else:
    text = prose.escape_rest(text)
  lines[:] = [*text.splitlines(), ""]


def _property(
  app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  """Convert the docstring of a property as that of a function.

  Napoleon takes the text before a colon for a type.
  """
  if what == "property":
    text = prose.escape_rest(inspect.getdoc(obj) or "")
    found = napoleon.GoogleDocstring(
      text, app.config, app, "function", name, obj, options
    )
    lines[:] = [*found.lines(), ""]


def _dashes(app: Any, doctree: nodes.document) -> None:
  """Write the dash between an argument and its description as one."""
  del app
  for text in list(doctree.findall(nodes.Text)):
    if text == " -- ":
      text.parent.replace(text, nodes.Text(" \u2013 "))


class _Shortened(ast.NodeTransformer):
  """Removes the names of the package's modules from annotations.

  Args:
    names: global variables of the module.
  """

  def __init__(self, names: dict[str, Any]) -> None:
    self._names = names

  def visit_Attribute(self, node: ast.Attribute) -> Any:
    """Replace `detector_lib.Detector` by `Detector`."""
    root = node.value
    module = self._names.get(root.id) if isinstance(root, ast.Name) else None
    if inspect.ismodule(module) and module.__name__.startswith("zsad_jax"):
      return ast.Name(node.attr)
    return node

  def annotation(self, node: ast.expr | None) -> Any:
    """Return an annotation, of which a forward reference is not quoted."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      return ast.Name(node.value)
    return node and self.visit(node)


def _signature(
  app: Any,
  what: str,
  name: str,
  obj: Any,
  options: Any,
  signature: str,
  returns: str,
) -> tuple[str, str | None] | None:
  """Return a signature as it is written in the source.

  Shapes such as Float[Array, "b h w"] are classes at run time, whose names are
  not readable.
  """
  del app, name, options, signature, returns
  if getattr(obj, "_is_protocol", False):
    return "", None
  if what not in ("function", "method"):
    return None
  try:
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    node: Any = ast.parse(text).body[0]
  except (OSError, TypeError, SyntaxError, IndexError):
    return None
  if not isinstance(node, ast.FunctionDef):
    return None
  given = node.args
  positional = [*given.posonlyargs, *given.args]
  if what == "method" and positional and positional[0].arg in ("self", "cls"):
    (given.posonlyargs or given.args).pop(0)
  shortened = _Shortened(getattr(inspect.unwrap(obj), "__globals__", {}))
  for each in ast.walk(given):
    if isinstance(each, ast.arg):
      each.annotation = shortened.annotation(each.annotation)
  result = shortened.annotation(node.returns)
  return f"({ast.unparse(given)})", result and ast.unparse(result)
