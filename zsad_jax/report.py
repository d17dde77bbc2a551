"""What a person sees of a run: its first lines, tables and figures."""

import json
import pathlib
import platform
from collections.abc import Sequence

import jax
import numpy as np

import zsad_jax
from zsad_jax import api, evaluator, files, predictor, runs
from zsad_jax.datasets import index, preprocess, registry
from zsad_jax.evaluation import figures, table

_GRID_ROWS = 6  # Images per category in a figure; a third of them normal.


def count(params: api.Params) -> int:
  """Number of parameters in a tree."""
  return sum(x.size for x in jax.tree.leaves(params))


def start(config, datasets: Sequence[index.Dataset], backbone, params, trained):
  """Prints what is about to be trained, on what and where."""
  devices = jax.devices()
  print(f"Method: {config.method_name}, config {config.name}")
  if config.backbone.name == runs.EMBEDDED:
    print(runs.EMBEDDED_NOTE)
  for dataset in datasets:
    normal, anomalous = dataset.counts[1:]
    print(
        f"Training on {dataset.name}: {normal} normal and {anomalous} "
        f"anomalous images of {len(dataset.class_names)} categories"
    )
    for note in dataset.notes:
      print(f"  note: {note}")
  used = jax.tree.map(lambda p, t: p.size if t else 0, params, trained)
  print(
      f"Parameters: {sum(jax.tree.leaves(used)):,} trainable, "
      f"{count(params):,} in the authors' checkpoint, "
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


def evaluate(
    run: runs.Run,
    data: str,
    output: pathlib.Path,
    *,
    skip_corrupt: bool | None = None,
) -> dict[str, dict[str, float | int]]:
  """Evaluates a run on one data set; prints and writes tables and figures.

  Args:
    run: the run.
    data: registered name or folder of the data set.
    output: receives <data>/results.{json,csv,md} and <data>/<category>.png.
    skip_corrupt: count images that cannot be read instead of stopping; None
      for what the configuration says.

  Returns:
    A row of metrics per category.
  """
  config = run.config
  dataset = registry.open_dataset(data, data_root=config.data_root)
  trained_on = {
      registry.open_dataset(d, data_root=config.data_root).root
      for d in config.train_data
  }
  if dataset.root in trained_on:
    print(f"{dataset.name} was trained on: this is no zero-shot result.")
  folder = output / dataset.name
  rows, extra = evaluator.evaluate(
      evaluator.make(
          config,
          run.method,
          run.backbone,
          predictor.make_mesh(),
          skip_corrupt=skip_corrupt,
      ),
      run.params,
      run.stats,
      dataset,
      lambda c: figures.save_png(folder / f"{c.name}.png", _grid(c)),
  )
  title = _title(run, dataset, extra)
  print("\n" + table.to_text(rows, title))
  for note in dataset.notes:
    print(f"note: {note}")
  skipped(extra["skipped"])
  files.write_text(folder / "results.csv", table.to_csv(rows))
  files.write_text(folder / "results.md", table.to_markdown(rows, title))
  document = {"rows": rows, "title": title, **_setting(run, dataset), **extra}
  files.write_text(folder / "results.json", _json(document))
  print(f"Tables and figures: {folder}", flush=True)
  return rows


def _title(run, dataset, extra):
  lines = [
      f"{run.config.method_name} after {run.step} steps on "
      f"{', '.join(run.config.train_data)}, tested on {dataset.name} "
      f"({extra['images_per_second']:.1f} images/s). Values in %.",
      f"Backbone {run.config.backbone.name}, {run.config.image_size} px, maps "
      f"smoothed with sigma {run.config.smooth_sigma:g}, selection "
      f"{run.config.selection}.",
  ]
  if run.config.backbone.name == runs.EMBEDDED:
    lines.append(runs.EMBEDDED_NOTE)
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
