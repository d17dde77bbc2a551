"""Exported programs of methods: difference from the live model, size, time.

Without --runs, each method has its embedded configuration and parameters before
training. Times are those of the processors, which other programs do not change.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from zsad_jax import methods
from zsad_jax.datasets.synthetic import benchmark
from zsad_jax.inference import export
from zsad_jax.runs import backbone as backbone_lib
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import ensemble, exporting
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import config_files, files

_CATEGORY = "carpet"
_LIMITS = threshold_lib.Threshold(0.5, 0.0, 1.0, "given")


def define_flags() -> None:
  """Define the flags of this benchmark."""
  flags.DEFINE_list("methods", None, "Methods; default: all.")
  flags.DEFINE_list("runs", [], "Folders of runs, instead of the methods.")
  flags.DEFINE_list("formats", list(export.FORMATS), "Formats.")
  flags.DEFINE_integer("shots", 2, "References; 0: zero-shot only.", 0)
  flags.DEFINE_integer("count", 4, "Images to compare on.", 1)
  flags.DEFINE_integer("rounds", 3, "Repetitions, of which the least counts.")


def _exportable() -> list[str]:
  """Return the methods whose program needs no training: those with maps.

  One that learns its category needs a trained run.
  """
  made = {name: methods.module(name).Method() for name in methods.names()}
  return [
    name
    for name in methods.single_image_names()
    if not (made[name].image_only or made[name].learns_category)
  ]


def untrained(method: str) -> run_lib.Run:
  """Return a run of a method with its initial parameters."""
  config: Any = config_files.load(method)
  made = run_lib.make_method(method, config.method)
  backbone: Any = backbone_lib.load(config, made)
  params, stats = made.init(jax.random.key(config.seed), backbone)
  return run_lib.Run(
    pathlib.Path(method), config, backbone, made, params, stats, 0, 0.0
  )


def draw(count: int, split: str) -> list[np.ndarray]:
  """Return synthetic images; of the test split, every second has a defect."""
  defect = benchmark.FAMILIES[_CATEGORY].defects[0]
  kinds = [defect if split == "test" and i % 2 else None for i in range(count)]
  return [
    np.array(benchmark.draw(_CATEGORY, kind, index=i, split=split)[0])
    for i, kind in enumerate(kinds)
  ]


def detectors(
  run: run_lib.Run, shots: int
) -> Iterator[tuple[int, detector_lib.Detector]]:
  """Yield the number of references and the detector, zero-shot first."""
  detector = detector_lib.Detector(
    run, class_name=_CATEGORY, threshold=0.5, limits=_LIMITS
  )
  if not run.method.needs_references:
    yield 0, detector
  if shots:
    yield shots, detector.with_references(draw(shots, "train"))


def seconds(function: Callable[[], Any], rounds: int) -> float:
  """Return the least processor time of a call, of all threads together."""
  function()  # Compiles.
  times = []
  for _ in range(rounds):
    start = time.process_time()
    function()
    times.append(time.process_time() - start)
  return min(times)


def measure(
  detector: detector_lib.Detector,
  name: str,
  expected: exporting.Expected,
  rounds: int,
) -> dict[str, Any]:
  """Return the numbers of a detector in a format; or a note."""
  form, program = export.module(name), exporting.make_program(detector)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, f"detector{form.SUFFIX}")
    try:
      form.check(program)
      written = form.write(program, path)
    except ValueError as error:
      return {"note": str(error)}
    run = form.load(path)
    one = expected.pixels[:1]
    return {
      **export.differences(run, *expected),
      "bytes": sum(each.stat().st_size for each in written),
      "seconds": seconds(lambda: run(one), rounds),
    }


def to_markdown(rows: list[dict[str, Any]]) -> str:
  """Return the rows as a table."""
  lines = [
    "| method | references | format | score | map | size | seconds | live |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    cells = [row["method"], row["references"], row["format"]]
    if "note" in row:
      cells += [row["note"], "", "", "", ""]
    else:
      cells += [
        f"{row['pred_score']:.0e}",
        f"{row['anomaly_map']:.0e}",
        f"{row['bytes'] / 1e6:.1f} MB",
        f"{row['seconds']:.3f}",
        f"{row['live']:.3f}",
      ]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  return "\n".join(lines)


def main(options: Any) -> None:
  """Run the benchmark."""
  if options.runs:
    runs = map(ensemble.load, options.runs)
  else:
    runs = map(untrained, options.methods or _exportable())
  rows = []
  images = draw(options.count, "test")
  for run in runs:
    for shots, detector in detectors(run, options.shots):
      expected = exporting.expected(detector, images)
      one = expected.pixels[0]
      live = seconds(lambda: detector(one), options.rounds)  # noqa: B023
      for name in options.formats:
        row = {"method": run.config.name, "references": shots, "format": name}
        row |= {
          "live": live,
          **measure(detector, name, expected, options.rounds),
        }
        rows.append(row)
        print(to_markdown(rows[-1:]).splitlines()[-1], flush=True)
  print(to_markdown(rows))
  if options.json:
    files.write_text(options.json, json.dumps(rows, indent=1) + "\n")
