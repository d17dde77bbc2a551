"""Model card of a run, in the format of the Hugging Face hub."""

import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from zsad_jax.backbones.published_weights import Published
from zsad_jax.datasets import registry
from zsad_jax.push import privacy
from zsad_jax.reporting import tables
from zsad_jax.runs import calibrations
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib

_TASK = "anomaly-detection"
# Metrics in the card, where the results have them.
_METRICS = {
  "image_auroc": "image AUROC",
  "image_ap": "image AP",
  "pixel_auroc": "pixel AUROC",
  "pixel_ap": "pixel AP",
  "pixel_aupro": "AUPRO",
}


class Facts(NamedTuple):
  """Facts about an upload that the run does not have.

  Attributes:
    repo: owner/name.
    licence: licence of the parameters.
    weights: entry of the catalogue that the backbone's weights are, or None.
    digest: of the backbone's parameters.
    calibration: name of the calibration among the files, or None.
  """

  repo: str
  licence: str
  weights: Published | None
  digest: str
  calibration: str | None


def text(run: run_lib.Run, public: Mapping[str, Any], facts: Facts) -> str:
  """Return README.md.

  Args:
    run: the run.
    public: its configuration without private paths.
    facts: see `Facts`.
  """
  results = list(_results(run))
  parts = [
    _front_matter(public, facts),
    f"# {facts.repo.rpartition('/')[2]}\n",
    _introduction(public, facts),
    _usage(facts),
    _training(run, public),
    _backbone(public, facts),
    _thresholds(run, facts),
    _measured(results),
    _limits(public, results),
  ]
  return "\n".join(parts)


def data_licences(names: Iterable[str]) -> str:
  """Return title and licence of data sets in one text."""
  found = []
  for name in names:
    entry = registry.ENTRIES.get(name)
    shown = privacy.data(name)
    found.append(
      f"{entry.title}: {entry.licence}" if entry else f"{shown}: not known"
    )
  return "; ".join(dict.fromkeys(found)) or "none"


def _front_matter(public, facts) -> str:
  """Return the YAML block that the hub reads."""
  import huggingface_hub  # Slow to import.

  names = [x for x in public["train_data"] if x in registry.ENTRIES]
  fields: dict[str, Any] = {
    "license": facts.licence,
    "library_name": "zsad_jax",
    "pipeline_tag": _TASK,
    "tags": [_TASK, "zero-shot", "few-shot", "jax", public["method_name"]],
  }
  if facts.weights:
    fields["base_model"] = facts.weights.repo
  if names and public["epochs"]:
    fields["datasets"] = names
  data = huggingface_hub.ModelCardData(**fields)
  return f"---\n{data.to_yaml()}\n---\n"


def _introduction(public, facts) -> str:
  module = importlib.import_module(f"zsad_jax.methods.{public['method_name']}")
  paper = (module.__doc__ or "").partition("\n")[0]
  return (
    f"Visual anomaly detection: {paper}\n\n"
    f"Configuration `{public['name']}` of zsad_jax. The files are the trained "
    "parameters and running statistics; the backbone's weights are not "
    "included. The licence in the header is that of the trained parameters.\n"
  )


def _usage(facts) -> str:
  lines = ["## Use\n", "```bash"]
  if facts.weights:
    lines.append(f"zsad weights get {facts.weights.name}")
  option = f" --calibration={facts.calibration}" if facts.calibration else ""
  lines += [
    f"zsad predict --workdir=hf:{facts.repo}{option} photos/",
    "```\n",
    "```python",
    "import zsad_jax",
    "",
    f'detector = zsad_jax.load("hf:{facts.repo}")',
    'print(detector("photo.png").score)',
    "```\n",
  ]
  return "\n".join(lines)


def _training(run, public) -> str:
  lines = ["## Training\n"]
  if not public["epochs"] or not run.num_trained:
    return "\n".join([*lines, "Nothing was trained.\n"])
  lines += [
    f"- Data: {', '.join(public['train_data'])}.",
    f"- Licences of the data: {data_licences(public['train_data'])}.",
    f"- {run.step} steps, batch size {public['batch_size']}, "
    f"{public['image_size']} px, seed {public['seed']}; "
    f"{run.num_trained:,} trained parameters.",
    f"- Checkpoint: {_selection(public)}.\n",
  ]
  return "\n".join(lines)


def _selection(public) -> str:
  if public["selection"] == "last":
    return "that of the last step; no data set selected it"
  names = ", ".join(public.get("selection_data", ()))
  return (
    f"selected by its results on {names} ({public['selection']}), so results "
    "on these are not those of unseen data"
  )


def _backbone(public, facts) -> str:
  backbone = public["backbone"]
  lines = ["## Backbone\n", f"- `{backbone['name']}`, {backbone['dtype']}."]
  if facts.weights:
    lines.append(
      f"- Weights: {facts.weights.repo}, trained by "
      f"{facts.weights.trained_by}; licence {facts.weights.licence}."
    )
  elif backbone["path"]:
    lines.append("- Weights: converted by the author, not in the catalogue.")
  else:
    lines.append("- Weights: made or shipped by the package itself.")
  lines.append(
    f"- SHA-256 of its parameters in memory: `{facts.digest}`; it is checked "
    "when the run is loaded.\n"
  )
  return "\n".join(lines)


def _thresholds(run, facts) -> str:
  lines = ["## Decision thresholds\n"]
  for few_shot, title in ((False, "zero-shot"), (True, "with references")):
    try:
      found = threshold_lib.read(run.workdir, few_shot=few_shot)
    except FileNotFoundError:
      continue
    source = privacy.text(found.source)
    lines.append(f"- {title}: {found.image_score:.6g} ({source}).")
  if facts.calibration:
    found = calibrations.read(run.workdir, facts.calibration)
    lines.append(
      f"- calibration `{facts.calibration}`: "
      f"{found.threshold.image_score:.6g}, from {found.num_normal} normal and "
      f"{found.num_anomalous} anomalous images, with {len(found.references)} "
      "references."
    )
  if len(lines) == 1:
    lines.append("None is stored: give one.")
  lines.append("\nSet one with normal images of your own before you use it.\n")
  return "\n".join(lines)


def _results(run) -> Iterator[dict[str, Any]]:
  """Yield the complete results of the run at its present step."""
  for path in sorted(run.workdir.glob("evaluation*/**/results.json")):
    if "partial" in path.parts:
      continue
    try:
      found = json.loads(path.read_text(encoding="utf-8"))
      same = found["step"] == run.step and "partial" not in found
      if same and found["dataset"]["name"]:
        yield {**found, "shots": found["shots"], "mean": _mean(found["rows"])}
    except (OSError, ValueError, KeyError, TypeError):
      continue  # Of another version.


def _mean(rows) -> dict[str, float]:
  """Return the mean of each metric over the categories."""
  numbers = {
    name: {k: v for k, v in row.items() if v is not None}
    for name, row in rows.items()
  }
  return tables.mean_row(numbers)[0]


def _measured(results) -> str:
  lines = ["## Results\n"]
  if not results:
    return "\n".join([*lines, "This run was not evaluated.\n"])
  names = [
    name
    for name in _METRICS
    if any(math.isfinite(found["mean"][name]) for found in results)
  ]
  heads = ["data", "references", *(_METRICS[m] for m in names)]
  lines += [
    "Means over the categories, in %, as `zsad evaluate` measured them.\n",
    f"| {' | '.join(heads)} |",
    f"|{'---|' * len(heads)}",
  ]
  for found in results:
    values = [_percent(found["mean"][name]) for name in names]
    data = privacy.text(str(found["dataset"]["name"]))
    lines.append(f"| {' | '.join([data, str(found['shots']), *values])} |")
  protocols = dict.fromkeys(_protocol(found) for found in results)
  lines += ["", *(f"- {each}" for each in protocols if each), ""]
  return "\n".join(lines)


def _percent(value) -> str:
  return f"{100 * value:.1f}" if math.isfinite(value) else "n/a"


def _protocol(found) -> str:
  """Return the line of a title that describes the protocol."""
  title = str(found.get("title", ""))
  lines = [x for x in title.splitlines() if x.startswith("Protocol:")]
  return privacy.text(lines[0]) if lines else ""


def _limits(public, results) -> str:
  lines = ["## Limits\n"]
  if not results:
    lines.append("- No accuracy was measured: none is claimed.")
  else:
    lines.append("- Nothing is claimed about data that is not in the table.")
  if not public["backbone"]["path"]:
    lines.append(
      "- The backbone is the small one of the package: its numbers compare "
      "methods with one another, not with published results, and on "
      "photographs of real products it can miss every defect."
    )
  lines += [
    "- Scores are no probabilities; a threshold holds for the kind of images "
    "that it was set with.",
    "- Not tested for safety-critical or medical use.\n",
  ]
  return "\n".join(lines)
