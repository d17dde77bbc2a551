"""Rules about imports: levels of folders, no circles."""

import ast
import pathlib
from collections.abc import Iterator, Mapping

# A module imports strictly lower levels, or its own folder without circles.
LEVELS = {
  "types": 0,
  "runtime": 0,
  "torch_io": 1,
  "losses": 1,
  "metrics": 1,
  "datasets": 1,
  "layers": 2,
  "backbones": 3,
  "methods": 3,
  "inference": 3,
  "runs": 4,
  "pretraining": 4,
  "evaluation": 5,
  "training": 6,
  "reporting": 6,
  "watch": 7,
  "commands": 8,  # The modules of the root that are named nowhere else.
  "parity": 8,
  "benchmark": 8,
  "serve": 8,
  "weights": 8,
  "export": 8,
  "push": 8,
  "demo": 8,
  "reproduce": 9,
}


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Return the files of a package by dotted name, without its `__init__`."""
  result = {}
  for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == "__init__":
      parts = parts[:-1]
    if parts:
      result[".".join(parts)] = path
  return result


def imported(path: pathlib.Path, known: Mapping[str, object]) -> Iterator[str]:
  """Yield the modules of the package that a file imports, at any level."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [node.module] + [f"{node.module}.{a.name}" for a in node.names]
    else:
      continue
    for name in names:
      if name.startswith("zsad_jax.") and name[9:] in known:
        yield name[9:]


def level(module: str) -> int:
  """Return the level of a module's folder."""
  return LEVELS.get(module.split(".")[0], LEVELS["commands"])


def violations(root: pathlib.Path) -> list[str]:
  """Return a sentence for each import of no lower level, and each circle."""
  files = modules(root)
  edges = {
    name: {*imported(path, files)} - {name} for name, path in files.items()
  }
  found = []
  for name, targets in edges.items():
    for target in sorted(targets):
      folders = name.split(".")[0], target.split(".")[0]
      if folders[0] != folders[1] and level(target) >= level(name):
        found.append(f"{name} imports {target}, which is no lower level.")
  return found + circles(edges)


def circles(edges: Mapping[str, set[str]]) -> list[str]:
  """Return a sentence for each circle of imports (Tarjan, 1972)."""
  index, low, stack, found = {}, {}, [], []

  def visit(name):
    index[name] = low[name] = len(index)
    stack.append(name)
    for target in sorted(edges[name]):
      if target not in index:
        visit(target)
        low[name] = min(low[name], low[target])
      elif target in stack:
        low[name] = min(low[name], index[target])
    if low[name] == index[name]:
      circle = stack[stack.index(name) :]
      del stack[stack.index(name) :]
      if len(circle) > 1:
        found.append(f"{', '.join(sorted(circle))} import one another.")

  for name in edges:
    if name not in index:
      visit(name)
  return found
