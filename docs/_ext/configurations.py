"""Pages of the configurations: docstrings, variants and values."""

import importlib
import inspect
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import links
import prose

if str(links.ROOT) not in sys.path:
  sys.path.insert(0, str(links.ROOT))
_LEFT_OUT = "common"


def pages() -> Iterator[tuple[str, str]]:
  """Yield the path and the text of each page."""
  rows = []
  for path in sorted((links.ROOT / "configs").glob("[a-z]*.py")):
    module = importlib.import_module(f"configs.{path.stem}")
    text = inspect.cleandoc(module.__doc__ or "")
    if path.stem != _LEFT_OUT:
      first = prose.escape_markdown(text.partition("\n")[0])
      rows.append(f"[{path.stem}](configurations/{path.stem}.myst)\n: {first}")
      yield f"configurations/{path.stem}.myst", _page(path, module, text)
  yield "configurations.myst", _overview(rows)


def _overview(rows: list[str]) -> str:
  """Return the page that lists configurations and the common fields."""
  common: Any = importlib.import_module("configs.common")
  fields = inspect.cleandoc(common.get_config.__doc__)
  fields = fields.partition("Fields:\n")[2].partition("\nArgs:")[0]
  return "\n\n".join(
    [
      "# Configurations",
      "`zsad train --config=NAME:VARIANT,ABLATION` uses one of these; "
      "`--config.FIELD=VALUE` sets a field of it.",
      *rows,
      "## Fields of all configurations",
      *_definitions(fields),
      "```{toctree}\n:hidden:\n:glob:\n\nconfigurations/*\n```\n",
    ]
  )


def _definitions(text: str) -> Iterator[str]:
  """Yield the entries of a list `name: description` of a docstring."""
  entries: list[list[str]] = []
  for line in inspect.cleandoc(text).splitlines():
    if line.startswith(" "):
      entries[-1].append(line.strip())
    elif line:
      entries.append([line])
  for name, _, rest in (" ".join(x).partition(": ") for x in entries):
    names = ", ".join(f"`{each}`" for each in name.split(", "))
    yield f"{names}\n: {prose.escape_markdown(rest)}"


def _page(path: pathlib.Path, module: Any, text: str) -> str:
  """Return the page of a configuration."""
  parts = [f"# {path.stem}", prose.to_markdown(text)]
  ablations = sorted(getattr(module, "ABLATIONS", {}))
  if ablations:
    names = ", ".join(f"`{name}`" for name in ablations)
    parts.append(f"## Ablations\n\n{names}")
  for variant in ("embedded", "paper"):
    if not ablations and variant == "paper":
      break
    given = (variant,) if hasattr(module, "ABLATIONS") else ()
    values = str(module.get_config(*given)).strip()
    title = f"Values of `{variant}`" if given else "Values"
    parts.append(f"## {title}\n\n```yaml\n{values}\n```")
  return "\n\n".join(parts) + "\n"
