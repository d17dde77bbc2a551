"""What a person sees of a run: its first lines, tables and figures."""

import dataclasses
import json
import pathlib
import platform
from collections.abc import Callable, Sequence

import jax
import numpy as np

import zsad_jax
from zsad_jax import (
    api,
    evaluator,
    fewshot,
    files,
    predictor,
    released,
    runs,
)
from zsad_jax.datasets import index, preprocess, references, registry
from zsad_jax.datasets.references import NONE, References
from zsad_jax.evaluation import figures, table

_GRID_ROWS = 6  # Images per category in a figure; a third of them normal.


def count(params: api.Params) -> int:
  """Number of parameters in a tree."""
  return sum(x.size for x in jax.tree.leaves(params))


def trained_parameters(method: api.Method, params: api.Params) -> int:
  """Number of parameters that the loss reads."""
  used = jax.tree.map(
      lambda p, t: p.size if t else 0, params, method.trained(params)
  )
  return sum(jax.tree.leaves(used))


def start(
    config, datasets: Sequence[index.Dataset], method, backbone, params
):
  """Prints what is about to be trained, on what and where."""
  devices = jax.devices()
  print(f"Method: {config.method_name}, config {config.name}")
  if note := runs.BACKBONE_NOTES.get(config.backbone.name):
    print(note)
  for dataset in datasets:
    normal, anomalous = dataset.counts[1:]
    print(
        f"Training on {dataset.name}: {normal} normal and {anomalous} "
        f"anomalous images of {len(dataset.class_names)} categories"
    )
    for note in dataset.notes:
      print(f"  note: {note}")
  print(
      f"Parameters: {trained_parameters(method, params):,} trainable, "
      f"{released.stored_parameters(method, backbone, params):,} in the "
      "authors' checkpoint, "
      f"{count(backbone.params):,} frozen ({config.backbone.name})"
  )
  print(
      f"Devices: {len(devices)} x {devices[0].device_kind}, jax "
      f"{jax.__version__}; selection of parameters: {config.selection}",
      flush=True,
  )


def skipped(messages: Sequence[str]) -> None:
  """Prints the images that were left out."""
  if messages:
    print(f"Skipped {len(messages)} images that could not be read:")
    for message in messages:
      print(f"  {message}")


@dataclasses.dataclass(frozen=True)
class Result:
  """What one run scored on one data set with one choice of references.

  Attributes:
    method: `config.name` of the run.
    references: the choice.
    rows: metrics of every category.
    costs: `table.COSTS` of the run.
  """

  method: str
  references: References
  rows: dict[str, dict[str, float | int]]
  costs: dict[str, float | int]


def evaluate(
    run: runs.Run,
    data: str,
    output: pathlib.Path,
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
    choose: the references to compare with.
    skip_corrupt: count images that cannot be read instead of stopping; None
      for what the configuration says.

  Returns:
    A result per choice.
  """
  config = run.config
  dataset = registry.open_dataset(data, data_root=config.data_root)
  choices = list(choose(dataset))
  if fewshot.needs_references(run.method):
    choices = [c for c in choices if c.images] or [
        references.sample(dataset, shots=1, seed=references.SEEDS[0])
    ]
  trained_on = {
      registry.open_dataset(d, data_root=config.data_root).root
      for d in config.train_data
  }
  if dataset.root in trained_on:
    print(f"{dataset.name} was trained on: this is no zero-shot result.")
  folder = output / dataset.name
  where = lambda choice: folder / (choice.label if choice.shots != 0 else "")
  tables, extra = evaluator.evaluate(
      evaluator.make(
          config,
          run.method,
          run.backbone,
          predictor.make_mesh(),
          skip_corrupt=skip_corrupt,
          few_shot=any(choice.images for choice in choices),
      ),
      run.params,
      run.stats,
      dataset,
      choices,
      lambda c: figures.save_png(
          where(c.references) / f"{c.name}.png", _grid(c)
      ),
  )
  for choice, rows in zip(choices, tables):
    _write(run, dataset, choice, rows, extra, where(choice))
  for note in dict.fromkeys(sum((c.notes for c in choices), dataset.notes)):
    print(f"note: {note}")
  skipped(extra["skipped"])
  print(f"Tables and figures: {folder}", flush=True)
  costs = _costs(run, extra)
  return [
      Result(config.name, choice, rows, costs)
      for choice, rows in zip(choices, tables)
  ]


def _costs(run, extra):
  """The values of `table.COSTS`."""
  return {
      "trained_parameters": trained_parameters(run.method, run.params),
      "training_seconds": run.seconds,
      "images_per_second": extra["images_per_second"],
  }


def _write(run, dataset, choice, rows, extra, folder):
  """Prints the table where it is the only one of its kind, and writes it."""
  title = _title(run, dataset, choice, extra)
  if choice.seed in (None, references.SEEDS[0]):
    print("\n" + table.to_text(rows, title))
  files.write_text(folder / "results.csv", table.to_csv(rows))
  files.write_text(folder / "results.md", table.to_markdown(rows, title))
  document = {
      "rows": rows,
      "title": title,
      "references": {
          "shots": choice.shots, "seed": choice.seed, "images": choice.images
      },
      **_setting(run, dataset),
      **extra,
  }  # fmt: skip
  files.write_text(folder / "results.json", _json(document))


def summarize(
    results: Sequence[Result], data: str, output: pathlib.Path
) -> None:
  """Prints and writes one line per method and number of references.

  Mean and deviation are over runs of the same name (such as other seeds) and
  over the seeds of the references.
  """
  groups: dict[str, list] = {}
  for result in results:
    label = f"{result.method}, {result.references.group}"
    row = table.mean_row(result.rows)[0] | result.costs
    groups.setdefault(label, []).append(row)
  title = (
      f"{data}: mean over categories; mean and standard deviation over "
      "repetitions (seeds). Values in %."
  )
  print("\n" + table.summary_to_text(groups, title))
  markdown = table.summary_to_markdown(groups, title)
  files.write_text(output / f"{data}_summary.md", markdown)
  files.write_text(output / f"{data}_summary.csv", table.summary_to_csv(groups))
  print(f"Summary: {output / data}_summary.md", flush=True)


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
  if note := runs.BACKBONE_NOTES.get(config.backbone.name):
    lines.append(note)
  return "\n".join(lines)


def _setting(run, dataset):
  """What a number needs beside it to be comparable."""
  return {
      "dataset": {"name": dataset.name, "root": dataset.root},
      "notes": dataset.notes,
      "step": run.step,
      "config": json.loads(run.config.to_json_best_effort()),
      "versions": {
          "zsad_jax": zsad_jax.__version__,
          "jax": jax.__version__,
          "numpy": np.__version__,
          "python": platform.python_version(),
      },
      "device": jax.devices()[0].device_kind,
  }


def _json(document):
  """JSON has no nan: an undefined metric is null."""
  defined = lambda v: None if isinstance(v, float) and np.isnan(v) else v
  rows = {
      name: {k: defined(v) for k, v in row.items()}
      for name, row in document["rows"].items()
  }
  return json.dumps({**document, "rows": rows}, indent=1, allow_nan=False)


def _grid(category: evaluator.Category):
  """The figure of one category: some normal and some anomalous images."""
  chosen = _spread(category.label)
  size = category.anomaly_map.shape[1]
  captions = [
      f"{category.samples[i].specie_name or _state(category.label[i])}  "
      f"score {category.pred_score[i]:.3g}"
      for i in chosen
  ]
  masks = [
      category.gt_mask[i] if category.has_mask[i] else None for i in chosen
  ]
  return figures.comparison_grid(
      [preprocess.load_image(category.samples[i].image_path, size)
       for i in chosen],
      masks,
      [category.anomaly_map[i] for i in chosen],
      captions,
      title=category.name,
  )  # fmt: skip


def _state(label):
  return "anomalous" if label == api.ANOMALOUS else "normal"


def _spread(label):
  """Indices of a few normal and anomalous images, spread over the list."""
  spread = lambda where, n: where[
      np.unique(np.linspace(0, len(where) - 1, min(n, len(where))).astype(int))
  ] if len(where) else where
  normal, anomalous = (np.flatnonzero(label == v) for v in (0, 1))
  few = _GRID_ROWS // 3
  return [*spread(normal, few), *spread(anomalous, _GRID_ROWS - few)]
