"""What a person sees of results: tables, figures and a page."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from zsad_jax import backbones, types
from zsad_jax.datasets import cache, index, preprocess, references
from zsad_jax.datasets.references import NONE, References
from zsad_jax.evaluation import evaluator, paper_results
from zsad_jax.evaluation import protocol as protocol_lib
from zsad_jax.metrics import exact
from zsad_jax.reporting import figures
from zsad_jax.reporting import html as html_lib
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import distributed, environment, files

_BINS = 20  # Of a histogram of scores.


def skipped(messages: Sequence[str]) -> None:
  """Prints the images that were left out."""
  if messages:
    print(f"Skipped {len(messages)} images that could not be read:")
    for message in messages:
      print(f"  {message}")


def decoded_cache(folder: str) -> None:
  """Prints how large the cache of decoded images is; "": there is none."""
  if folder:
    size = cache.DecodedCache(folder).size()
    print(f"Decoded images in {folder}: {size / 1e6:,.1f} MB", flush=True)


@dataclasses.dataclass(frozen=True)
class Detail:
  """What a page shows of a category beside its metrics.

  Attributes:
    image_curves, pixel_curves: to be drawn; empty where undefined.
    edges, counts: histogram of image scores, normal and anomalous.
    pictures: captions and JPEG files of a few images.
  """

  image_curves: exact.Curves
  pixel_curves: exact.Curves
  edges: list[float]
  counts: dict[str, list[int]]
  pictures: list[tuple[str, bytes]]


@dataclasses.dataclass(frozen=True)
class Result:
  """What one run scored on one data set with one choice of references.

  Attributes:
    method: `config.name` of the run.
    dataset: name of the data set.
    references: the choice.
    rows: metrics of every category.
    costs: `table.COSTS` of the run.
    details: of every category.
    protocol: how it was measured, in a line.
    notes: what must stand beside it.
  """

  method: str
  dataset: str
  references: References
  rows: dict[str, dict[str, float | int]]
  costs: dict[str, float | int]
  details: dict[str, Detail] = dataclasses.field(default_factory=dict)
  protocol: str = ""
  notes: tuple[str, ...] = ()

  @property
  def group(self) -> str:
    """Repetitions share it: method and number of references."""
    return f"{self.method}, {self.references.group}"

  @property
  def shots(self) -> int | None:
    return self.references.shots


def evaluate(
  run: run_lib.Run,
  data: str,
  output: pathlib.Path,
  protocol: protocol_lib.Protocol,
  *,
  choose: Callable[[index.Dataset], Sequence[References]] = lambda _: [NONE],
  skip_corrupt: bool | None = None,
) -> list[Result]:
  """Evaluates a run on one data set; prints and writes tables and figures.

  Args:
    run: the run.
    data: registered name or folder of the data set.
    output: receives <data>/results.{json,csv,md} and <data>/<category>.png;
      with references the same below <data>/<choice>/.
    protocol: of the run, with the variant of the metrics.
    choose: the references to compare with.
    skip_corrupt: count images that cannot be read instead of stopping; None
      for what the configuration says.

  Returns:
    A result per choice.

  Raises:
    ValueError: the protocol does not allow this data set, or a file is not as
      it has to be.
  """
  dataset = run_lib.open_dataset(run.config, data)
  notes = protocol.check(dataset, run.config.data_root)
  choices = _choices(run, dataset, choose)
  limits = _limits(run)
  compare = evaluator.make(
    run.config,
    run.method,
    run.backbone,
    distributed.make_mesh(),
    skip_corrupt=skip_corrupt,
    few_shot=any(choice.images for choice in choices),
    variant=protocol.variant,
    examples=1,
    threshold=limits and limits.image_score,
  )
  folder, size = output / dataset.name, run.config.image_size
  where = lambda choice: folder / (choice.label if choice.shots != 0 else "")
  details = {choice.label: {} for choice in choices}

  def look(category):
    path = where(category.references) / f"{category.name}.png"
    figures.save_png(path, _grid(category, size))
    detail = _detail(category, size, limits)
    details[category.references.label][category.name] = detail

  tables, extra = evaluator.evaluate(
    compare, run.params, run.stats, dataset, choices, look
  )
  for choice, rows in zip(choices, tables):
    _write(run, dataset, protocol, choice, rows, extra, where(choice))
  notes += sum((c.notes for c in choices), dataset.notes)
  for note in dict.fromkeys(notes):
    print(f"note: {note}")
  skipped(extra["skipped"])
  print(f"Tables and figures: {folder}", flush=True)
  return [
    Result(
      run.config.name,
      dataset.name,
      choice,
      rows,
      _costs(run, extra),
      details[choice.label],
      protocol.describe(),
      tuple(notes),
    )
    for choice, rows in zip(choices, tables)
  ]


def _choices(run, dataset, choose):
  """The references to compare with; one shot for what needs some."""
  choices = list(choose(dataset))
  if not run.method.needs_references:
    return choices
  return [c for c in choices if c.images] or [
    references.sample(dataset, shots=1, seed=references.SEEDS[0])
  ]


def _limits(run):
  """The stored threshold, which borderline images are close to, or None."""
  try:
    return threshold_lib.read(run.workdir)
  except FileNotFoundError:  # Needs references, or was converted.
    return None


def _costs(run, extra):
  """The values of `table.COSTS`."""
  return {
    "trained_parameters": run.num_trained,
    "training_seconds": run.seconds,
    "images_per_second": extra["images_per_second"],
  }


def _detail(category, size, limits):
  """The detail of a category; pictures of the first seed's alone."""
  label, score = category.label, category.pred_score
  edges = np.histogram_bin_edges(score, bins=_BINS)
  counts = {
    name: np.histogram(score[label == state], edges)[0].tolist()
    for name, state in (
      ("normal", types.NORMAL),
      ("anomalous", types.ANOMALOUS),
    )
  }
  try:
    image_curves = exact.rank_items(label, score).curves()
  except exact.UndefinedError:
    image_curves = {}
  pictures = []
  if category.references.seed in (None, references.SEEDS[0]):
    pictures = _pictures(category, size, limits)
  return Detail(
    image_curves, category.measure.curves(), edges.tolist(), counts, pictures
  )


def _pictures(category, size, limits):
  """The gallery's images, on one scale of colours."""
  kinds = category.gallery.kinds()
  maps = [e.anomaly_map for kind in kinds.values() for e in kind]
  low, high = (
    (limits.map_low, limits.map_high)
    if limits
    else (float(np.min(maps)), float(np.max(maps)))
  )
  return [
    (
      f"{kind}: {_name(sample)}, score {example.score:.3g}",
      html_lib.picture(
        preprocess.load_image(sample.image_path, size), example, low, high
      ),
    )
    for kind, examples in kinds.items()
    for example in examples
    for sample in [category.sample(example.number)]
  ]


def _write(run, dataset, protocol, choice, rows, extra, folder):
  """Prints the table where it is the only one of its kind, and writes it."""
  title = _title(run, dataset, choice, extra)
  if choice.seed in (None, references.SEEDS[0]):
    print("\n" + tables_lib.to_text(rows, title))
  files.write_text(folder / "results.csv", tables_lib.to_csv(rows))
  files.write_text(folder / "results.md", tables_lib.to_markdown(rows, title))
  document = {
    "rows": rows,
    "title": title,
    "references": {
      "shots": choice.shots,
      "seed": choice.seed,
      "images": choice.images,
    },
    "protocol": dataclasses.asdict(protocol),
    "config": json.loads(run.config.to_json_best_effort()),
    "dataset": {"name": dataset.name, "root": dataset.root},
    "notes": dataset.notes,
    "step": run.step,
    **environment.setting(),
    **extra,
  }
  files.write_text(folder / "results.json", _json(document))


def summarize(
  results: Sequence[Result],
  output: pathlib.Path,
  tables: paper_results.Tables,
) -> None:
  """Prints and writes a line per method and number of references.

  Mean and deviation are over runs of the same name (such as other seeds) and
  over the seeds of the references.

  Args:
    results: of any data sets.
    output: receives <data>_summary.{md,csv,json}, and report.html for all.
    tables: the papers', to stand beside.
  """
  for data in dict.fromkeys(r.dataset for r in results):
    groups, printed = {}, {}
    for result in (r for r in results if r.dataset == data):
      row = tables_lib.mean_row(result.rows)[0] | result.costs
      groups.setdefault(result.group, []).append(row)
      printed[result.group] = _printed(result, tables)
    title = (
      f"{data}: mean over categories; mean and standard deviation over "
      "repetitions (seeds). Values in %."
    )
    if len(groups) > 1 or any(len(rows) > 1 for rows in groups.values()):
      print("\n" + tables_lib.summary_to_text(groups, title, printed))
    markdown = tables_lib.summary_to_markdown(groups, title, printed)
    files.write_text(output / f"{data}_summary.md", markdown)
    csv = tables_lib.summary_to_csv(groups, printed)
    files.write_text(output / f"{data}_summary.csv", csv)
    text = tables_lib.summary_to_json(groups, printed, environment.setting())
    files.write_text(output / f"{data}_summary.json", text)
  measured = environment.setting()
  measured |= measured.pop("versions")
  text = html_lib.render(results, tables, measured)
  files.write_text(output / "report.html", text)
  print(f"Report: {output / 'report.html'}", flush=True)


def means(results: Sequence[Result]) -> dict:
  """Means over repetitions, by configuration, data set and shots."""
  groups: dict[tuple, list] = {}
  for result in results:
    if result.shots is not None:
      key = (result.method, result.dataset, result.shots)
      groups.setdefault(key, []).append(tables_lib.mean_row(result.rows)[0])
  return {
    key: {m: tables_lib.spread(rows, m)[0] for m in tables_lib.METRICS}
    for key, rows in groups.items()
  }


def _printed(result, tables):
  """A paper's means and whether they can be relied on, by metric."""
  found = {}
  for metric in tables_lib.METRICS if result.shots is not None else ():
    cell = tables.find(
      result.method,
      dataset=result.dataset,
      shots=result.shots,
      metric=metric,
    )
    if cell and cell.value is not None:
      found[metric] = (cell.value, not cell.doubtful)
  return found


def _title(run, dataset, choice, extra):
  """What a table was measured with."""
  config = run.config
  compared = {None: "with given references", 0: "zero-shot"}.get(
    choice.shots, f"{choice.shots}-shot, seed {choice.seed}"
  )
  lines = [
    f"{config.name} after {run.step} steps on "
    f"{', '.join(config.train_data)}, {compared} on {dataset.name} "
    f"({extra['images_per_second']:.1f} images/s). Values in %.",
    f"Backbone {config.backbone.name}, {config.image_size} px, maps smoothed "
    f"with sigma {config.smooth_sigma:g}, selection {config.selection}.",
  ]
  if note := backbones.note(config.backbone.name):
    lines.append(note)
  return "\n".join(lines)


def _json(document):
  """JSON has no nan: an undefined metric is null."""
  defined = lambda v: None if isinstance(v, float) and np.isnan(v) else v
  rows = {
    name: {k: defined(v) for k, v in row.items()}
    for name, row in document["rows"].items()
  }
  return json.dumps({**document, "rows": rows}, indent=1, allow_nan=False)


def _grid(category: evaluator.Category, size: int):
  """The figure of one category: some normal and some anomalous images."""
  kept = category.gallery.kept
  chosen = [(kept[i], category.sample(i)) for i in sorted(kept)]
  return figures.comparison_grid(
    [preprocess.load_image(s.image_path, size) for _, s in chosen],
    [example.gt_mask for example, _ in chosen],
    [example.anomaly_map for example, _ in chosen],
    [f"{_name(s)}  score {example.score:.3g}" for example, s in chosen],
    title=category.name,
  )


def _name(sample):
  """What an image shows, in a word."""
  state = "anomalous" if sample.label == types.ANOMALOUS else "normal"
  return sample.specie_name or state
