"""Self-contained HTML page of results, without scripts or network."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence

from zsad_jax.evaluation import grouping, paper_results
from zsad_jax.evaluation.results import Result
from zsad_jax.metrics import METRICS, exact
from zsad_jax.reporting import charts, facts, figures
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.reporting.details import Detail, Report

_STYLE = """
:root { --ink: #1c1e26; --faint: #666b78; --paper: #fff; --line: #dfe2e8;
  --normal: #2f6fb3; --anomalous: #d04054; --panel: #f5f6f9; color-scheme:
  light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --faint: #9ba1af;
  --paper: #15171d; --line: #343945; --normal: #6ca6e6; --anomalous: #f0707f;
  --panel: #1e2129; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1.2rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { margin: 2rem 0 .5rem; }
h3 { margin: 1.4rem 0 .2rem; font-size: 1rem; }
p, li { color: var(--faint); margin: .2rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
td small { color: var(--faint); display: block; font-size: 11px; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0;
  padding: .5rem .8rem; } summary { cursor: pointer; font-weight: 600; }
.charts { display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.examples { display: flex; flex-wrap: wrap; gap: .6rem; margin: .4rem 0; }
figure { margin: 0; } figure img { max-width: 100%; border-radius: 4px;
  display: block; } figcaption { font-size: 12px; color: var(--faint); }
svg { width: 100%; background: var(--panel); border-radius: 6px; }
svg text { font-size: 9px; fill: var(--faint); } svg .title { fill: var(--ink);
  font-weight: 600; font-size: 10px; }
svg .box { fill: none; stroke: var(--line); }
svg .curve { fill: none; stroke: var(--normal); stroke-width: 1.6; }
"""


def render(
  reports: Sequence[Report],
  tables: paper_results.Tables,
  environment: Mapping[str, object],
) -> str:
  """Return the page.

  Args:
    reports: reports of any data sets, runs, seeds and shots.
    tables: published numbers.
    environment: versions, device and commit, shown at the top.
  """
  datasets = dict.fromkeys(r.result.dataset for r in reports)
  body = [
    "<h1>Anomaly detection results</h1>",
    f"<p>{_text(', '.join(f'{k} {v}' for k, v in environment.items()))}</p>",
    "<p>Values in %; mean ± standard deviation over repetitions (seeds). "
    "In small print: the published value and the difference to it; “?” marks "
    "a value that may have been read incorrectly from the paper.</p>",
  ]
  for dataset in datasets:
    found = [r for r in reports if r.result.dataset == dataset]
    body += [f"<h2>{_text(dataset)}</h2>", *_dataset(found, tables)]
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"/>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    f"<title>Anomaly detection results</title><style>{_STYLE}</style></head>"
    f"<body>{''.join(body)}</body></html>\n"
  )


def _dataset(
  reports: Sequence[Report], tables: paper_results.Tables
) -> Iterator[str]:
  """Yield a summary, then a section for each method and number of shots."""
  groups = {
    name: [r for r in reports if any(r.result is each for each in members)]
    for name, members in grouping.groups([r.result for r in reports]).items()
  }
  header = ["method", "repetitions", *tables_lib.METRICS, *tables_lib.COSTS]
  lines = []
  for name, found in groups.items():
    results = [r.result for r in found]
    means = [tables_lib.mean_row(r.rows)[0] | r.costs for r in results]
    cells = _cells(means, results[0], paper_results.MEAN, tables)
    costs = [
      tables_lib.cost(tables_lib.spread(means, c)[0]) for c in tables_lib.COSTS
    ]
    lines.append([_text(name), str(len(found)), *cells, *costs])
  for text in dict.fromkeys(
    line for r in reports for line in facts.setup(r.result)
  ):
    yield f"<p>{_text(text)}</p>"
  yield _table(header, lines)
  notes = dict.fromkeys(note for r in reports for note in r.result.notes)
  notes |= dict.fromkeys(grouping.notes([r.result for r in reports]))
  yield "<ul>" + "".join(f"<li>{_text(n)}</li>" for n in notes) + "</ul>"
  for i, (name, found) in enumerate(groups.items()):
    yield '<details open="">' if i == 0 else "<details>"
    yield f"<summary>{_text(name)}, by category</summary>"
    yield from _group(found, tables)
    yield "</details>"


def _group(
  reports: Sequence[Report], tables: paper_results.Tables
) -> Iterator[str]:
  """Yield the table of the categories, then charts and examples of each."""
  results, first = [r.result for r in reports], reports[0].result
  for text in facts.setup(first):
    yield f"<p>{_text(text)}</p>"
  lines = []
  for category in first.rows:
    rows = [r.rows[category] for r in results]
    counts = [str(rows[0].get(c, "")) for c in tables_lib.COUNTS]
    cells = _cells(rows, first, category, tables)
    lines.append([_text(category), *cells, *counts])
  means = [tables_lib.mean_row(r.rows)[0] for r in results]
  values = [
    tables_lib.with_deviation(means, metric) for metric in tables_lib.METRICS
  ]
  lines.append([f"<b>{v}</b>" for v in ("mean", *values)] + ["", ""])
  yield _table(["category", *tables_lib.METRICS, *tables_lib.COUNTS], lines)
  yield from _references(results)
  for category, detail in reports[0].details.items():
    yield f"<h3>{_text(category)}</h3>"
    yield f'<div class="charts">{"".join(_charts(detail))}</div>'
    examples = "".join(_figure(*example) for example in detail.examples)
    yield f'<div class="examples">{examples}</div>'


def _references(results: Sequence[Result]) -> Iterator[str]:
  """Yield the reference images that were drawn, for each seed."""
  lines = [
    [_text(result.references.seed or ""), _text(name), _text(images)]
    for result in results
    for name, images in facts.references(result).items()
  ]
  lines = [list(line) for line in dict.fromkeys(map(tuple, lines))]
  if lines:
    yield "<details><summary>Reference images</summary>"
    yield _table(["seed", "class", "references"], lines)
    yield "</details>"


def printed_cell(
  result: Result,
  tables: paper_results.Tables,
  metric: str,
  category: str = paper_results.MEAN,
) -> paper_results.Cell | None:
  """Return the published number of a result; None where it has none.

  Args:
    result: a result.
    tables: published numbers.
    metric: a key of `METRICS`.
    category: category of the data set, or the mean over all.
  """
  if result.paper is None or result.shots is None:
    return None
  config_name, dataset = result.paper
  return tables.find(
    config_name,
    dataset=dataset,
    shots=result.shots,
    metric=metric,
    category=category,
  )


def _charts(detail: Detail) -> Iterator[str]:
  """Yield the curves and the histogram of scores of a category."""
  image, pixel = detail.image_curves, detail.pixel_curves
  if image:
    yield charts.curve(
      "image ROC", image["roc"], labels=("false positives", "recall")
    )
    yield charts.curve(
      "image precision", image["pr"], labels=("recall", "precision")
    )
  if pixel:
    yield charts.curve(
      "pixel precision", pixel["pr"], labels=("recall", "precision")
    )
    yield charts.curve(
      "PRO",
      pixel["pro"],
      labels=("false positives", "overlap"),
      x_end=exact.MAX_FPR,
    )
  yield charts.histogram("scores", detail.counts, detail.edges)


def _figure(caption: str, jpeg: bytes) -> str:
  """Return an embedded example image with its caption."""
  data = base64.b64encode(jpeg).decode()
  return (
    f'<figure><img alt="{_text(caption)}" width="{3 * figures.EXAMPLE_TILE}" '
    f'src="data:image/jpeg;base64,{data}"/>'
    f"<figcaption>{_text(caption)}</figcaption></figure>"
  )


def _cells(rows, result, category, tables):
  """Yield a cell per metric: our value, the published one below it."""
  for metric in tables_lib.METRICS:
    ours = tables_lib.with_deviation(rows, metric)
    cell = printed_cell(result, tables, metric, category)
    if not cell or cell.value is None:
      yield ours
      continue
    difference = tables_lib.spread(rows, metric)[0] - cell.value
    mark = "?" if cell.doubtful else f" ({100 * difference:+.1f})"
    where = _text(f"{cell.paper}, {cell.table}. {cell.notes}")
    yield (f'{ours}<small title="{where}">{100 * cell.value:.1f}{mark}</small>')


def _table(header, lines):
  """Return a table of HTML cells."""
  row = lambda cells: "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
  body = "".join(map(row, lines))
  head = "".join(map(_heading, header))
  return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _heading(name: str) -> str:
  """Return the head of a column; a metric has its title as a tooltip."""
  metric = METRICS.get(name)
  title = f' title="{_text(metric.title)}"' if metric else ""
  return f"<th{title}>{_text(name.replace('_', ' '))}</th>"


def _text(value):
  return html.escape(str(value))
