"""Export formats, and comparison of an exported program with the live model.

A format is a module `export_<name>.py` of this folder with `SUFFIX`, `NOTE`,
`check`, `versions`, `write` and `load`.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

FORMATS = ("stablehlo", "onnx")
TOLERANCE = 1e-4  # Largest difference of scores and maps.


def module(name: str) -> Any:
  """Return the module of a format."""
  return importlib.import_module(f"zsad_jax.inference.export_{name}")


def differences(
  run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
  images: UInt8[np.ndarray, "n s s 3"],
  scores: Float32[np.ndarray, " n"],
  maps: Float32[np.ndarray, "n s s"],
) -> dict[str, float]:
  """Compare an exported program with results of the live model.

  The program runs on all images at once and on the first one alone.

  Args:
    run: the exported program.
    images: resized images.
    scores: of the live model.
    maps: of the live model, smoothed.

  Returns:
    The largest differences "pred_score" and "anomaly_map"; NaN where a result
    is not finite.
  """
  found = []
  for part in (slice(None), slice(1)):
    expected = scores[part], maps[part]
    for new, old in zip(run(images[part]), expected, strict=True):
      if new.shape != old.shape or not np.isfinite(new).all():
        found.append(np.nan)
      else:
        found.append(float(np.abs(new - old).max()))
  return {
    "pred_score": float(np.max(found[::2])),
    "anomaly_map": float(np.max(found[1::2])),
  }


def check(name: str, found: dict[str, float], file: pathlib.Path) -> None:
  """Check that differences are small.

  Args:
    name: of the format, for the message.
    found: returned by `differences`.
    file: for the message.

  Raises:
    ValueError: one is larger than `TOLERANCE`, or NaN.
  """
  for what, difference in found.items():
    if not difference <= TOLERANCE:
      raise ValueError(
        f"{file} is not written: {what} of the {name} program differs from "
        f"that of the run by {difference:.2g} on the sample images; expected "
        f"at most {TOLERANCE}. Give other --images, or another --format."
      )
