"""Tables of results: a line per category, then the mean over categories.

A row maps the names in `METRICS` to fractions in [0, 1], and those in `COUNTS`
to numbers of test images. Missing values and nan are undefined; other names
are not shown. The mean is unweighted, over the categories where it is defined.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from zsad_jax import metrics
from zsad_jax.evaluation.results import COSTS
from zsad_jax.runtime import text_files

METRICS = tuple(m.name for m in metrics.METRICS.values() if m.in_tables)
# Image metrics of samples shown by several images; below a table.
SAMPLE_METRICS = tuple(
  m.name.replace("image_", "sample_")
  for m in metrics.at_level("image")
  if m.in_tables
)
COUNTS = ("num_normal", "num_anomalous")
UNDEFINED = "n/a"
_HEADER = ("category", *METRICS, *COUNTS)

Row = Mapping[str, float | int]
Rows = Mapping[str, Row]
Groups = Mapping[str, Sequence[Row]]
Printed = Mapping[str, Mapping[str, tuple[float, bool]]]
Columns = Mapping[str, str | int | float]


def mean_row(rows: Rows) -> tuple[dict[str, float], dict[str, int]]:
  """Average every metric over the categories where it is defined.

  Args:
    rows: a row per category.

  Returns:
    The mean of each metric, nan if it is defined nowhere, and the number of
    categories where it is defined.

  Raises:
    ValueError: there is no category.
  """
  if not rows:
    raise ValueError("A table needs at least one category, got none.")
  mean, defined = {}, {}
  for name in METRICS:
    values = [row.get(name, math.nan) for row in rows.values()]
    values = [value for value in values if not math.isnan(value)]
    mean[name] = math.fsum(values) / len(values) if values else math.nan
    defined[name] = len(values)
  return mean, defined


def to_text(rows: Rows, title: str) -> str:
  """Return aligned columns, metrics x 100; ends with a line break.

  A star marks a mean over fewer categories than the table has; the last line
  gives their number.

  Raises:
    ValueError: there is no category.
  """
  lines = _cells(rows)
  widths = [max(map(len, column)) for column in zip(*lines)]
  aligned = [_align(line, widths) for line in lines]
  rule = "-" * max(map(len, aligned))
  return (
    "\n".join(
      [
        title,
        rule,
        aligned[0],
        rule,
        *aligned[1:-1],
        rule,
        aligned[-1],
        *_footnote(rows),
      ]
    )
    + "\n"
  )


def to_markdown(rows: Rows, title: str) -> str:
  """Return the table of `to_text` as Markdown, under a heading.

  Raises:
    ValueError: there is no category.
  """
  header, *body = [
    "| " + " | ".join(_escape(cell.strip()) for cell in line) + " |"
    for line in _cells(rows)
  ]
  rule = "|---|" + "---:|" * (len(_HEADER) - 1)
  note = [line for text in _footnote(rows) for line in ("", _escape(text))]
  return "\n".join([f"### {title}", "", header, rule, *body, *note]) + "\n"


def to_csv(
  rows: Rows,
  columns: Columns = MappingProxyType({}),
  references: Callable[[str], str] | None = None,
) -> str:
  """Return comma-separated fractions with every digit, the mean last.

  An undefined value is an empty cell, which other programs read as missing.
  The line of the mean begins as in the other tables, as "mean (of 12)".

  Args:
    rows: a row per category.
    columns: facts about all rows, in further columns.
    references: returns the reference images of a category; None: no column.

  Raises:
    ValueError: there is no category.
  """
  mean, _ = mean_row(rows)
  text = io.StringIO()
  writer = text_files.CsvWriter(text)
  last = ["references"] if references else []
  writer.writerow([*_HEADER, *columns, *last])
  for name, row in (*rows.items(), (_mean_label(rows), mean)):
    values = [row.get(column, math.nan) for column in _HEADER[1:]]
    cells = ["" if math.isnan(v) else v for v in values]
    if references:
      last = [references(name) if name in rows else ""]
    writer.writerow([name, *cells, *columns.values(), *last])
  return text.getvalue()


def summary_to_text(
  groups: Groups, title: str, printed: Printed = MappingProxyType({})
) -> str:
  """Return a line per group of repetitions: mean and deviation x 100.

  Args:
    groups: rows of metrics and `COSTS`, one for each repetition, by the name of
      the group.
    title: the first lines.
    printed: published fractions by group and metric, and whether each is
      reliable; two more lines for groups with published values.
  """
  lines = _summary_cells(groups, printed)
  widths = [max(map(len, column)) for column in zip(*lines)]
  aligned = [_align(line, widths) for line in lines]
  rule = "-" * max(map(len, aligned))
  return "\n".join([title, rule, aligned[0], rule, *aligned[1:]]) + "\n"


def summary_to_markdown(
  groups: Groups, title: str, printed: Printed = MappingProxyType({})
) -> str:
  """Return the table of `summary_to_text` as Markdown."""
  header, *body = [
    "| " + " | ".join(_escape(cell) for cell in line) + " |"
    for line in _summary_cells(groups, printed)
  ]
  rule = "|---|" + "---:|" * (len(header.split(" | ")) - 1)
  return "\n".join([title, "", header, rule, *body]) + "\n"


def summary_to_csv(
  groups: Groups,
  printed: Printed = MappingProxyType({}),
  columns: Mapping[str, Columns] = MappingProxyType({}),
) -> str:
  """Return a line per group: mean, deviation, published value as fractions.

  Published values that are not reliable are left out.

  Args:
    groups: see `summary_to_text`.
    printed: see `summary_to_text`.
    columns: facts about each group, in further columns.
  """
  text = io.StringIO()
  writer = text_files.CsvWriter(text)
  writer.writerow(
    [
      "group",
      "repetitions",
      *(f"{metric}{part}" for metric in METRICS for part in ("", "_std")),
      *COSTS,
      *(f"{metric}_published" for metric in METRICS),
      *dict.fromkeys(name for facts in columns.values() for name in facts),
    ]
  )
  for name, rows in groups.items():
    numbers = [x for metric in METRICS for x in spread(rows, metric)]
    numbers += [spread(rows, each)[0] for each in COSTS]
    found = printed.get(name, {})
    cells = [found.get(metric, (math.nan, False)) for metric in METRICS]
    numbers += [value if sure else math.nan for value, sure in cells]
    cells = ["" if math.isnan(x) else x for x in numbers]
    further = columns.get(name, {}).values()
    writer.writerow([name, len(rows), *cells, *further])
  return text.getvalue()


def summary_to_json(
  groups: Groups,
  printed: Printed,
  environment: Mapping[str, object],
  columns: Mapping[str, Columns] = MappingProxyType({}),
) -> str:
  """Return the table of `summary_to_csv` as JSON; null for undefined.

  Args:
    groups: see `summary_to_text`.
    printed: see `summary_to_text`.
    environment: further keys of the document.
    columns: facts about each group.
  """
  defined = lambda x: None if math.isnan(x) else x
  document = {
    name: {
      **columns.get(name, {}),
      "repetitions": len(rows),
      **{m: [*map(defined, spread(rows, m))] for m in METRICS},
      **{c: defined(spread(rows, c)[0]) for c in COSTS},
      "published": {
        m: cell[0] for m, cell in printed.get(name, {}).items() if cell[1]
      },
    }
    for name, rows in groups.items()
  }
  return json.dumps({**environment, "groups": document}, indent=1) + "\n"


def spread(rows: Sequence[Row], metric: str) -> tuple[float, float]:
  """Return mean and sample standard deviation of a metric over repetitions.

  The deviation has n - 1 degrees of freedom, as AdaptCLIP's authors report it,
  and is 0 for one repetition. Both are nan where a value is missing.
  """
  values = [row.get(metric, math.nan) for row in rows]
  mean = math.fsum(values) / len(values)
  square = math.fsum((value - mean) ** 2 for value in values)
  return mean, math.sqrt(square / max(len(values) - 1, 1))


def with_deviation(rows: Sequence[Row], metric: str) -> str:
  """Format the mean x 100 of a metric, and its deviation if repeated."""
  mean, std = spread(rows, metric)
  alone = len(rows) == 1 or math.isnan(mean)
  return _percent(mean) + ("" if alone else f" ± {100 * std:.1f}")


def cost(value: float) -> str:
  """Format a cost without decimals."""
  return UNDEFINED if math.isnan(value) else f"{value:,.0f}"


def _summary_cells(groups, printed):
  body = []
  for name, rows in groups.items():
    cells = [with_deviation(rows, metric) for metric in METRICS]
    costs = [cost(spread(rows, each)[0]) for each in COSTS]
    body.append([name, str(len(rows)), *cells, *costs])
    if found := printed.get(name):
      blank = ["" for _ in COSTS]
      values = [_as_printed(found.get(metric)) for metric in METRICS]
      body.append(["  as published", "", *values, *blank])
      body.append(
        [
          "  difference",
          "",
          *(_difference(rows, metric, found.get(metric)) for metric in METRICS),
          *blank,
        ]
      )
  return [["method", "repetitions", *METRICS, *COSTS], *body]


def _as_printed(cell):
  if cell is None or math.isnan(cell[0]):
    return ""
  return _percent(cell[0]) + ("" if cell[1] else "?")


def _difference(rows, metric, cell):
  if cell is None or not cell[1]:
    return ""
  return f"{100 * (spread(rows, metric)[0] - cell[0]):+.1f}"


def _cells(rows):
  """Return the lines of a table: header, categories, mean."""
  mean, defined = mean_row(rows)
  # A star follows the digits; elsewhere a blank keeps the alignment.
  star = {m: "*" if 0 < defined[m] < len(rows) else " " for m in METRICS}
  body = [
    [
      name,
      *(_percent(row.get(m, math.nan)) + " " for m in METRICS),
      *(_count(row.get(c, math.nan)) for c in COUNTS),
    ]
    for name, row in rows.items()
  ]
  last = [
    _mean_label(rows),
    *(_percent(mean[m]) + star[m] for m in METRICS),
    *("" for _ in COUNTS),
  ]
  return [list(_HEADER), *body, last]


def _mean_label(rows):
  return f"mean (of {len(rows)})"


def _percent(value):
  return UNDEFINED if math.isnan(value) else f"{100 * value:.1f}"


def _count(value):
  return UNDEFINED if math.isnan(value) else f"{int(value)}"


def _align(line, widths):
  """Align names to the left, numbers to the right."""
  first = line[0].ljust(widths[0])
  rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
  return "  ".join([first, *rest]).rstrip()


def _escape(text):
  """Escape bars and stars, which are columns and emphasis in Markdown."""
  return text.replace("|", r"\|").replace("*", r"\*")


def _footnote(rows):
  """Return the lines below a table: starred means, means of samples."""
  _, defined = mean_row(rows)
  fewer = [
    f"{name} {defined[name]}"
    for name in METRICS
    if 0 < defined[name] < len(rows)
  ]
  lines = [f"* defined for fewer categories: {', '.join(fewer)}"] * bool(fewer)
  of_samples = []
  for name in SAMPLE_METRICS:
    values = [row.get(name, math.nan) for row in rows.values()]
    values = [value for value in values if not math.isnan(value)]
    if values:
      of_samples.append(f"{name} {_percent(math.fsum(values) / len(values))}")
  if of_samples:
    lines.append(
      "samples of several views, by their largest score: "
      f"{', '.join(of_samples)}"
    )
  return lines
