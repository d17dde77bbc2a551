"""Tables of the registered data sets."""

from zsad_jax.datasets import registry
from zsad_jax.datasets.entries import Counts, Entry
from zsad_jax.runtime import copies

_HEADER = (
  "name",
  "data set",
  "train normal / test normal / test anomalous",
  "licence",
  "layouts as downloaded",
  "source",
  "used by",
)


def text(data_root: str) -> str:
  """Return a table with title, counts, licence and folder of each data set.

  Args:
    data_root: the folder that is searched for them.
  """
  lines = []
  for name, entry in _on_disk():
    root = registry.find(name, data_root)
    where = (
      copies.origin(root)
      if root
      else f"not in {data_root}/" + "|".join(entry.folders)
    )
    counts = _counts(entry.counts)
    lines.append((name, entry.title, counts, entry.licence, where))
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join(
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
    for line in lines
  )


def markdown() -> str:
  """Return the table of `data/README.md`."""
  rows = [_HEADER, ("---",) * len(_HEADER)]
  rows += [_row(name, entry) for name, entry in _on_disk()]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, entry: Entry) -> tuple[str, ...]:
  title = entry.title
  if entry.categories:
    title += f", {len(entry.categories)} categories"
  if not entry.has_masks:
    title += ", no masks"
  counts = [_counts(entry.counts)]
  counts += [f"{_counts(c)}: {who}" for who, c in entry.other_counts.items()]
  layouts = ", or ".join(f"`{raw.shows}`" for raw in entry.raw)
  return (
    f"`{name}`",
    title,
    "; ".join(counts),
    entry.licence,
    layouts or "MVTec AD's or plain",
    entry.source,
    entry.used_by,
  )


def _counts(counts: Counts | None) -> str:
  if counts is None:
    return "not published"
  return "/".join("?" if count is None else str(count) for count in counts)


def _on_disk() -> list[tuple[str, Entry]]:
  """Return the data sets with a folder; the embedded ones have none."""
  return [(n, e) for n, e in registry.ENTRIES.items() if e.folders]
