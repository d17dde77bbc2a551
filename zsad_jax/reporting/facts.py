"""Facts at the top of every report: backbone, sizes, protocol, references."""

import dataclasses
import json
import math
from collections.abc import Mapping

from zsad_jax.evaluation.results import Result
from zsad_jax.reporting.paths import Paths, relative


def without_paths(result: Result, paths: Paths) -> Result:
  """Return a result without absolute paths, for reports.

  Reference images are named by their path below the root of the data set.

  Args:
    result: a result.
    paths: replacements of folders.
  """
  images = {
    name: tuple(relative(path, result.root, paths) for path in listed)
    for name, listed in result.references.images.items()
  }
  show = lambda names: tuple(map(paths.text, names))
  protocol = dataclasses.replace(
    result.protocol,
    train_data=show(result.protocol.train_data),
    test_data=show(result.protocol.test_data),
    selection_data=show(result.protocol.selection_data),
  )
  return dataclasses.replace(
    result,
    references=dataclasses.replace(result.references, images=images),
    protocol=protocol,
    setting=dataclasses.replace(
      result.setting, fields=paths.value(result.setting.fields)
    ),
    notes=show(result.notes),
    dataset_notes=show(result.dataset_notes),
    skipped=show(result.skipped),
  )


def columns(result: Result) -> dict[str, str | int | float]:
  """Return the facts of a result by name, for columns and JSON."""
  setting, choice = result.setting, result.references
  tiling = result.protocol.tiling
  return {
    "method": result.method,
    "dataset": result.dataset,
    "shots": "given" if choice.shots is None else choice.shots,
    "reference_seed": "" if choice.seed is None else choice.seed,
    "backbone": setting.backbone,
    "image_size": setting.image_size,
    "smooth_sigma": setting.smooth_sigma,
    "tile": tiling.size if tiling else "",
    "tile_overlap": tiling.overlap if tiling else "",
    "training_seed": "" if setting.seed is None else setting.seed,
    "step": setting.step,
    "protocol": result.protocol.describe(),
    "backbone_note": setting.note,
  }


def title(result: Result, *, partial: str = "") -> str:
  """Return the lines above a table.

  Args:
    result: a result without paths.
    partial: how much of an evaluation that did not end is done, or "".
  """
  choice, setting = result.references, result.setting
  shots = {None: "with given references", 0: "zero-shot"}.get(
    choice.shots,
    f"{choice.shots}-shot, "
    + ("given references" if choice.seed is None else f"seed {choice.seed}"),
  )
  speed = result.costs["images_per_second"]
  rate = "" if math.isnan(speed) else f" ({speed:.1f} images/s)"
  lines = [
    f"{result.method} after {setting.step} steps on "
    f"{', '.join(result.protocol.train_data)}, {shots} on {result.dataset}"
    f"{rate}. Values in %.",
    *setup(result),
  ]
  if partial:
    lines.insert(0, f"PARTIAL: {partial}.")
  return "\n".join(lines)


def setup(result: Result) -> list[str]:
  """Return backbone, image size and protocol, and the backbone's note."""
  setting = result.setting
  lines = [
    f"Backbone {setting.backbone}, {setting.image_size} px, maps smoothed "
    f"with sigma {setting.smooth_sigma:g}, selection {setting.selection}.",
    f"Protocol: {result.protocol.describe()}.",
  ]
  return lines + [setting.note] * bool(setting.note)


def references(result: Result) -> dict[str, str]:
  """Return the reference images of each class or view, in one text each."""
  return {
    name: "; ".join(images) for name, images in result.references.images.items()
  }


def of_category(result: Result, category: str) -> str:
  """Return the references of a category in one text, views by their name."""
  found = references(result)
  if category in found:
    return found[category]
  views = {k: v for k, v in found.items() if k.startswith(f"{category}/")}
  return " | ".join(f"{name}: {text}" for name, text in views.items())


def document(
  result: Result,
  *,
  partial: str,
  digest: str,
  config: Mapping[str, object],
  environment: Mapping[str, object],
) -> str:
  """Return results.json; JSON has no nan: an undefined metric is null.

  Args:
    result: a result without paths.
    partial: see `title`.
    digest: identifier of the data set.
    config: configuration of the run, without paths.
    environment: versions, device and commit.
  """
  defined = lambda v: None if isinstance(v, float) and math.isnan(v) else v
  choice = result.references
  content = {
    **({"partial": partial} if partial else {}),
    "title": title(result, partial=partial),
    **columns(result),
    "protocol": dataclasses.asdict(result.protocol),
    "dataset": {"name": result.dataset, "id": digest},
    "references": {
      "shots": choice.shots,
      "seed": choice.seed,
      "images": choice.images,
      "notes": choice.notes,
    },
    "notes": result.notes,
    "rows": {
      name: {k: defined(v) for k, v in row.items()}
      for name, row in result.rows.items()
    },
    "config": config,
    **environment,
    **{name: defined(value) for name, value in result.costs.items()},
    "skipped": result.skipped,
  }
  return json.dumps(content, indent=1, allow_nan=False)
