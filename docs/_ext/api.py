"""Pages of the Python API, filled in by autodoc."""

from collections.abc import Iterator

import links

_PACKAGE = links.ROOT / "zsad_jax"

# Title, introduction and objects; a class with its members.
_CLASSES = {
  "detector": (
    "Detectors and results",
    "`import zsad_jax` has `load`, `Detector` and `Detection`.",
    [
      ("function", "zsad_jax.load"),
      ("class", "zsad_jax.Detector"),
      ("class", "zsad_jax.Detection"),
      ("class", "zsad_jax.runs.ensemble_detector.EnsembleDetector"),
      ("class", "zsad_jax.runs.ensemble_detector.EnsembleDetection"),
      ("class", "zsad_jax.inference.regions.Region"),
      ("class", "zsad_jax.inference.tiling.Tiling"),
    ],
  ),
  "calibration": (
    "Thresholds and calibrations",
    "Decision thresholds of a run, and named calibrations.",
    [
      ("class", "zsad_jax.runs.threshold.Threshold"),
      ("function", "zsad_jax.runs.threshold.read"),
      ("class", "zsad_jax.runs.calibration_file.Calibration"),
      ("class", "zsad_jax.runs.calibration_file.Reference"),
      ("function", "zsad_jax.runs.calibrations.names"),
      ("function", "zsad_jax.runs.calibrations.read"),
      ("function", "zsad_jax.runs.calibrations.write"),
    ],
  ),
}
_MODULES = ("types", "losses")
_FOLDERS = {
  "methods": "One module per paper. Each lists the equations and the functions "
  "that implement them.",
  "metrics": "Metrics in pure NumPy.",
  "layers": "Parts that methods share.",
}


def pages() -> Iterator[tuple[str, str]]:
  """Yield the path and the text of each page."""
  entries = []
  for name, (title, intro, objects) in _CLASSES.items():
    entries.append(name)
    yield f"api/{name}.rst", _page(title, intro, map(_object, objects))
  for name in _MODULES:
    entries.append(name)
    yield f"api/{name}.rst", _module(f"zsad_jax.{name}")
  for folder, intro in _FOLDERS.items():
    entries.append(folder)
    names = _modules(folder)
    rows = [f"   {folder}/{name}" for name in names]
    toctree = "\n".join([".. toctree::", "   :maxdepth: 1", "", *rows])
    yield f"api/{folder}.rst", _page(folder.capitalize(), intro, [toctree])
    for name in names:
      module = f"zsad_jax.{folder}" + (f".{name}" if name != "package" else "")
      yield f"api/{folder}/{name}.rst", _module(module)
  rows = "\n".join(f"   api/{name}" for name in entries)
  toctree = f".. toctree::\n   :maxdepth: 2\n\n{rows}"
  intro = (
    'Shapes are those of jaxtyping: ``Float[Array, "b h w"]`` is an array of '
    "floating-point numbers with the axes b, h and w."
  )
  yield "api.rst", _page("Python API", intro, [toctree])


def _modules(folder: str) -> list[str]:
  """Return the modules of a folder; "package" is the folder's own."""
  names = sorted(p.stem for p in (_PACKAGE / folder).glob("[a-z]*.py"))
  text = (_PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")
  return ["package"] * ("\ndef " in text) + names


def _page(title, intro, parts) -> str:
  lines = [title, "=" * len(title), "", intro.replace("`", "``")]
  if "``" in intro:
    lines[-1] = intro
  return "\n".join([*lines, "", "\n\n".join(parts), ""])


def _object(found) -> str:
  kind, name = found
  options = ["   :members:", "   :special-members: __call__"]
  return "\n".join([f".. auto{kind}:: {name}", *options * (kind == "class")])


def _module(name: str) -> str:
  title = name
  return "\n".join(
    [
      title,
      "=" * len(title),
      "",
      f".. automodule:: {name}",
      "   :members:",
      "   :member-order: bysource",
      "   :special-members: __call__",
      "",
    ]
  )
