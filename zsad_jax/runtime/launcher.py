"""The `zsad` program: `zsad train ...` runs `python -m zsad_jax.train ...`.

A command is a module of the package's root that runs as a script, or a folder
with a `__main__.py`. They are found by listing and imported only when run.
"""

import ast
import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence

import zsad_jax
from zsad_jax.runtime import stopping

_PACKAGE = pathlib.Path(zsad_jax.__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
  """Run a command; its arguments follow its name.

  Args:
    argv: arguments without the program's name; None for those of the process.

  Returns:
    The exit status where no command was run; a command exits by itself.
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    print(usage())
    return 0
  if arguments[0] == "--version":
    print(f"zsad_jax {zsad_jax.__version__}")
    return 0
  name, found = arguments[0], commands()
  if name not in found:
    near = difflib.get_close_matches(name, found, 1)
    hint = f"did you mean {near[0]!r}?" if near else "see zsad --help."
    print(f"error: There is no command {name!r}; {hint}", file=sys.stderr)
    return 1
  sys.argv = [f"zsad {name}", *arguments[1:]]
  stopping.exit_on_signal()
  runpy.run_module(f"zsad_jax.{name}", run_name="__main__", alter_sys=True)
  return 0


def usage() -> str:
  """Return the help text: all commands with a line of description."""
  found = commands()
  width = max(map(len, found))
  lines = [f"  {name:{width}}  {line}" for name, line in found.items()]
  title = (zsad_jax.__doc__ or "").partition("\n")[0]
  return "\n".join(
    [
      f"zsad_jax {zsad_jax.__version__}: {title}",
      "",
      "usage: zsad COMMAND [ARGUMENTS]",
      "",
      *lines,
      "",
      "zsad COMMAND --help lists the arguments; zsad --version, the version.",
    ]
  )


def commands() -> dict[str, str]:
  """Return the first line of the docstring of each command, by name."""
  paths = {path.stem: path for path in _PACKAGE.glob("[a-z]*.py")}
  paths |= {path.parent.name: path for path in _PACKAGE.glob("*/__main__.py")}
  found = {}
  for name, path in sorted(paths.items()):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(_runs_as_script(node) for node in tree.body):
      found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
  return found


def _runs_as_script(node: ast.stmt) -> bool:
  """Return whether a statement is `if __name__ == "__main__"`."""
  return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
