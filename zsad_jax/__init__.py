"""CLIP-based zero- and few-shot visual anomaly detection in JAX/Flax.

Public Python API:

  detector = zsad_jax.load("runs/adaclip")
  detection = detector("photo.png")  # .score, .label, .anomaly_map, ...

The names are imported on first use: importing the package imports neither JAX
nor TensorFlow.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from zsad_jax.runs.detection import Detection
  from zsad_jax.runs.detector import Detector
  from zsad_jax.runs.ensemble_detector import load

__version__ = "0.1.0"
__all__ = ["Detection", "Detector", "load"]

if sys.argv[:1] == ["-m"]:  # A command, whose imports take seconds.
  from zsad_jax.runtime import stopping

  stopping.exit_on_signal()


def __getattr__(name: str) -> Any:
  """Import a name of the public API on first use (PEP 562)."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = "ensemble_detector" if name == "load" else "detector"
  return getattr(importlib.import_module(f"zsad_jax.runs.{module}"), name)


def __dir__() -> list[str]:
  """List the public names, those not imported yet included."""
  return sorted({*globals(), *__all__})
