"""Evaluation of a trained run on one data set."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zsad_jax import backbones, types
from zsad_jax.datasets import duplicates, index, naming, registry
from zsad_jax.datasets import references as references_lib
from zsad_jax.datasets.references import NONE, References
from zsad_jax.evaluation import ensemble, published, transductive
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.evaluation.protocol import Protocol
from zsad_jax.inference import sets, shrinking
from zsad_jax.inference.tiling import Tiling
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib

# Costs of a run: parameters, seconds, images per second.
COSTS = ("trained_parameters", "training_seconds", "images_per_second")
_NUM_EXAMPLES = 1  # Of each kind, in the report.
_SIZES_PER_CLASS = 20  # Images whose size is read.


@dataclasses.dataclass(frozen=True)
class Setting:
  """Backbone, sizes and seed of a run, at the top of every report.

  Attributes:
    backbone: name of the frozen backbone.
    image_size: side of the images in pixels.
    smooth_sigma: of the Gaussian over maps, in pixels.
    selection: how the checkpoint was chosen.
    seed: of the training; None where the configuration has none.
    step: training step of the parameters.
    note: remark that belongs to results of the backbone, or "".
    fields: all settings that the numbers depend on, `published.settings`.
  """

  backbone: str
  image_size: int
  smooth_sigma: float
  selection: str
  seed: int | None
  step: int
  note: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
  """Metrics of one run on one data set with one choice of references.

  Attributes:
    method: `config.name` of the run.
    dataset: name of the data set, see `naming.names`.
    root: folder of the data set; for messages, reports do not show it.
    references: choice of references.
    rows: metrics by category.
    costs: values of `COSTS`.
    protocol: how the run was evaluated.
    setting: backbone, sizes and seed.
    paper: the papers' configuration that the run has and their name of the data
      set, by which printed numbers are found; None where they are of others.
    notes: remarks that belong to the numbers.
    dataset_notes: those of them that concern the data set.
    skipped: messages about images that could not be read.
    transductive: whether the method scores all images of a category together;
      tables mark it.
  """

  method: str
  dataset: str
  root: str
  references: References
  rows: dict[str, dict[str, float | int]]
  costs: dict[str, float | int]
  protocol: Protocol
  setting: Setting
  paper: tuple[str, str] | None = None
  notes: tuple[str, ...] = ()
  dataset_notes: tuple[str, ...] = ()
  skipped: tuple[str, ...] = ()
  transductive: bool = False

  @property
  def group(self) -> str:
    """Method and number of references: the same for all repetitions."""
    mark = " (transductive)" if self.transductive else ""
    return f"{self.method}{mark}, {self.references.group}"

  @property
  def shots(self) -> int | None:
    """References per class; None where they were given by the user."""
    return self.references.shots


def evaluate_run(
  run: run_lib.Run,
  dataset: index.Dataset,
  protocol: Protocol,
  *,
  place: naming.Place | None = None,
  name: str = "",
  choices: Sequence[References] = (NONE,),
  skip_corrupt: bool | None = None,
  on_category: Callable[[CategoryResult], None] = lambda category: None,
) -> list[Result]:
  """Evaluate a run on one data set.

  Args:
    run: trained run.
    dataset: data set, of which the test images are predicted.
    protocol: protocol of the run, with the variant of the metrics.
    place: the data set as it was named; None: a folder.
    name: of the data set in results; "": its own.
    choices: choices of references, see `choose`.
    skip_corrupt: count images that cannot be read instead of stopping; None:
      as configured.
    on_category: called with each category, for example to draw figures.

  Returns:
    A result for each choice of references.

  Raises:
    ValueError: the protocol does not allow this data set, or a file is invalid.
  """
  config: Any = run.config
  place = place or naming.place(dataset.root)
  notes, choices = check(run.method, config, dataset, place, protocol, choices)
  thresholds = [stored_threshold(run, few_shot=few) for few in (False, True)]
  if protocol.tiling:
    thresholds = [None, None]  # Those of the run are for whole images.
  evaluator = ensemble.evaluator_of(
    run,
    skip_corrupt=skip_corrupt,
    few_shot=any(choice.images for choice in choices),
    variant=protocol.variant,
    num_examples=_NUM_EXAMPLES,
    thresholds=tuple(each and each.image_score for each in thresholds),
    tiling=protocol.tiling,
  )
  _warn_of_shrinking(run, evaluator.image_size, dataset, protocol.tiling)
  found = evaluator.evaluate(
    run.params, run.stats, dataset, choices, on_category=on_category
  )
  dataset_notes = (*dataset.notes, *found.mask_notes)
  notes += sum((choice.notes for choice in choices), dataset_notes)
  costs = {
    "trained_parameters": run.num_trained,
    "training_seconds": run.seconds,
    "images_per_second": found.images_per_second,
  }
  paper = paper_key(config, dataset, place, found.skipped, protocol.tiling)
  return [
    Result(
      method=config.name,
      dataset=name or dataset.name,
      root=dataset.root,
      references=choice,
      rows=rows,
      costs=costs,
      protocol=protocol.with_references(choices),
      setting=setting(run),
      paper=paper if is_papers(choice) else None,
      notes=tuple(dict.fromkeys(notes)),
      dataset_notes=dataset_notes,
      skipped=tuple(found.skipped),
      transductive=sets.scores_sets(run.method),
    )
    for choice, rows in zip(choices, found.rows)
  ]


def check(
  method: types.Method,
  config: Any,
  dataset: index.Dataset,
  place: naming.Place,
  protocol: Protocol,
  choices: Sequence[References],
) -> tuple[list[str], list[References]]:
  """Check an evaluation without loading weights or images.

  Args:
    method: method of the run.
    config: configuration of the run.
    dataset: data set to evaluate on.
    place: the same as it was named.
    protocol: protocol of the run.
    choices: choices of references.

  Returns:
    Notes on the results, and the choices that the method allows.

  Raises:
    ValueError: the protocol does not allow the data set, an image of it has two
      roles, or a reference is scored.
  """
  published_data = bool(place.key)
  notes = protocol.check(dataset, config.data_root)
  notes += duplicates.check_dataset(dataset, published=published_data)
  transductive.check(method, config.name, choices, protocol.tiling)
  notes += [n for choice in choices for n in transductive.notes(method, choice)]
  if config.get("per_category", False):
    if any(choice.images for choice in choices):
      raise ValueError(
        f"--shots, --references: {config.name} compares with the references "
        "that each category was trained on; train a run with others "
        "(config.references)."
      )
    given = config.references
    choices = [References({}, int(given.shots), int(given.seed))]
  elif method.needs_references:
    choices = [c for c in choices if c.images] or [
      references_lib.sample(dataset, shots=1, seed=references_lib.SEEDS[0])
    ]
  checked = [
    references_lib.check(
      each, dataset, published=published_data and each.seed is not None
    )
    for each in choices
  ]
  return notes, checked


def setting(run: run_lib.Run) -> Setting:
  """Return the facts about a run that its reports begin with."""
  config: Any = run.config
  return Setting(
    backbone=config.backbone.name,
    image_size=config.image_size,
    smooth_sigma=float(config.smooth_sigma),
    selection=config.selection,
    seed=config.get("seed"),
    step=run.step,
    note=backbones.note(config.backbone.name),
    fields=published.settings(config),
  )


def paper_key(
  config: Any,
  dataset: index.Dataset,
  place: naming.Place,
  skipped: Sequence[str] = (),
  tiling: Tiling | None = None,
) -> tuple[str, str] | None:
  """Return the papers' configuration and data set of an evaluation, or None.

  Printed numbers belong to a run only if its configuration is the papers',
  and to a data set only if it is registered, has the published number of
  images, and all of them were read as a whole, not by tiles.
  """
  entry = registry.ENTRIES.get(place.registered)
  if not entry or skipped or tiling or registry.count_note(dataset, entry):
    return None
  name = published.paper_config(config)
  return (name, place.registered) if name else None


def _warn_of_shrinking(run, side, dataset, tiling):
  """Warn if a few test images of each class are shrunk by a large factor.

  Images of a class mostly have one size, and a data set may have many files.
  """
  by_class: dict[str, list[str]] = {}
  for sample in dataset.test:
    by_class.setdefault(sample.class_name, []).append(sample.image_path)
  shrinking.ShrinkWarning().check_files(
    [
      path
      for paths in by_class.values()
      for path in paths[:: -(-len(paths) // _SIZES_PER_CLASS)]
    ],
    side=side,
    patch_size=run.backbone.patch_size,
    tiling=tiling,
  )


def is_papers(choice: References) -> bool:
  """Return whether references are chosen as the papers choose them."""
  if not choice.images:
    return True
  return choice.official and choice.seed in references_lib.SEEDS


def stored_threshold(
  run: run_lib.Run, *, few_shot: bool = False
) -> threshold_lib.Threshold | None:
  """Return the threshold of a run without or with references, or None."""
  try:
    return threshold_lib.read(run.workdir, few_shot=few_shot)
  except FileNotFoundError:  # It needs references, or was converted.
    return None
