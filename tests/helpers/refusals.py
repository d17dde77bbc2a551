"""Table of every refusal, read from the code: `docs/refusals.md`.

python -m tests.helpers.refusals > docs/refusals.md
"""

import ast
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
_ERRORS = ("ValueError", "OSError", "FileNotFoundError", "FileExistsError")
# Markdown takes <name> for HTML, and *name* and __name__ for emphasis.
_MARKUP = re.compile(r"[<*\\]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])")
_HEAD = """\
# Refusals

Every input that the package refuses, by the part that checks it. A command
prints the message in one line, `error: ...`, and ends with a status that is not
0; in Python it is the text of a `ValueError` or an `OSError`. `<...>` is the
code that fills in a file, a field or a number.

The page is made from the code: `python -m tests.helpers.refusals >
docs/refusals.md`.
"""


def _text(node: ast.expr) -> str:
  """Return a message with the code of its variable parts in <>."""
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return "".join(map(_text, node.values))
  if isinstance(node, ast.FormattedValue):
    return f"<{ast.unparse(node.value)}>"
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return _text(node.left) + _text(node.right)
  return f"<{ast.unparse(node)}>"


def _own_errors(trees: list[ast.Module]) -> set[str]:
  """Return the names of the package's exceptions that derive from these."""
  return {
    node.name
    for tree in trees
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
    and any(ast.unparse(base) in _ERRORS for base in node.bases)
  }


def messages() -> Iterator[tuple[str, str]]:
  """Yield module and message of each refusal in the order of the code."""
  paths = sorted((ROOT / "zsad_jax").rglob("*.py"))
  trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
  errors = {*_ERRORS, *_own_errors(trees)}
  for path, tree in zip(paths, trees):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    raised = [
      node.exc
      for node in ast.walk(tree)
      if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    for call in sorted(raised, key=lambda call: call.lineno):
      if ast.unparse(call.func) in errors and call.args:
        yield module.removesuffix(".__init__"), _text(call.args[-1])


def markdown() -> str:
  """Return the page."""
  lines, last = [_HEAD], None
  for module, message in messages():
    if module != last:
      lines.append(f"\n## {module}\n")
      last = module
    text = " ".join(message.split()).replace("`", "'")
    lines.append("- " + re.sub(_MARKUP, r"\\\g<0>", text))
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  print(markdown(), end="")
