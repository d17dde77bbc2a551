"""Training of one set of parameters per category, from normal references.

The categories are trained one after the other, in one run: step s belongs to
category s // steps. Each begins with the initial parameters and a new state of
the optimizer. A checkpoint has the parameters of all categories and the state
of the optimizer of the present one.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsad_jax import types
from zsad_jax.datasets import index, pipeline, preprocess, references
from zsad_jax.evaluation import evaluator
from zsad_jax.inference import predictor
from zsad_jax.runs import categories
from zsad_jax.training import batch_source, update_step


def check(config: types.Config, method: types.Method) -> None:
  """Check that the method and the settings go together.

  Raises:
    ValueError: they do not.
  """
  if categories.is_used(config) != method.learns_category:
    need = "True" if method.learns_category else "False, or left out"
    raise ValueError(
      f"config.per_category has to be {need} for {config.method_name}."
    )
  if not method.learns_category:
    return
  if "references" not in config:
    raise ValueError(
      "config.references is missing: shots and seed of the images that each "
      "category is trained on."
    )
  if config.selection != "last":
    raise ValueError(
      'config.selection is "last" for a run with parameters per category, got '
      f"{config.selection!r}."
    )


def plan(
  config: types.Config, datasets: Sequence[index.Dataset]
) -> "Plan | None":
  """Return the plan of a run; None where all categories share parameters.

  Raises:
    ValueError: a category has too few training images, or a name occurs twice.
  """
  if not categories.is_used(config):
    return None
  each, prompts = [], []
  shots, seed = config.references.shots, config.references.seed
  for data in datasets:
    drawn = references.sample(data, shots=shots, seed=seed)
    by_path = {sample.image_path: sample for sample in data.train}
    prompts += evaluator.prompt_names(data, config.prompt_names)
    for name in data.class_names:
      keys = [k for k in drawn.images if k.split("/")[0] == name or k == name]
      paths = [path for key in keys for path in drawn.images[key]][:shots]
      if len(paths) < shots:
        raise ValueError(
          f"{data.root}: {name!r} has no {shots} normal training images to "
          "learn from; leave the category out, or lower "
          "config.references.shots."
        )
      samples = tuple(by_path[path] for path in paths)
      part = index.Dataset(data.name, data.root, (name,), (), samples, False)
      each.append(part)
  names = [part.class_names[0] for part in each]
  if twice := [name for name in names if names.count(name) > 1]:
    raise ValueError(
      f"config.train_data has two categories {twice[0]!r}: train the data sets "
      "in runs of their own."
    )
  return Plan(config, tuple(each), tuple(prompts))


@dataclasses.dataclass(frozen=True)
class Plan:
  """Categories of a run, and their steps.

  Attributes:
    config: see configs/promptad.py.
    datasets: of each category; the images to learn from are `test`.
    prompt_names: names in prompts.
  """

  config: types.Config
  datasets: tuple[index.Dataset, ...]
  prompt_names: tuple[str, ...]

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the categories."""
    return tuple(part.class_names[0] for part in self.datasets)

  @property
  def batch_size(self) -> int:
    """Images per step: at most those of a category."""
    return min(self.config.batch_size, self.config.references.shots)

  @property
  def steps_per_epoch(self) -> int:
    """Steps of an epoch of one category."""
    shots = self.config.references.shots
    return pipeline.steps_per_epoch(shots, self.batch_size)

  @property
  def steps(self) -> int:
    """Steps of one category."""
    return self.steps_per_epoch * self.config.epochs

  @property
  def joint(self) -> list[index.Dataset]:
    """One data set of all images to learn from, for messages."""
    first = self.datasets[0]
    samples = sum((part.test for part in self.datasets), ())
    return [
      index.Dataset(first.name, first.root, self.names, (), samples, False)
    ]

  def categories(self) -> categories.Categories:
    """Return the names to store with the run."""
    shown = lambda part: tuple(
      os.path.basename(sample.image_path) for sample in part.test
    )
    each = tuple(map(shown, self.datasets))
    return categories.Categories(self.names, self.prompt_names, each)

  def named(self, step: int, means: dict[str, float]) -> dict[str, float]:
    """Add the loss under the name of the category of a step (from 1)."""
    name = self.names[(step - 1) // self.steps]
    return {**means, f"loss/{name}": means["loss"]}

  def initial(
    self, method: Any, backbone: Any, mesh: jax.sharding.Mesh
  ) -> tuple[types.Params, types.Params]:
    """Return the initial parameters, and statistics with memory banks."""
    count = len(self.names)
    params, stats = categories.initial(self.config, method, backbone, count)
    model = predictor.Predictor(method, backbone, self.prompt_names, mesh)
    size, batch_size = self.config.image_size, self.config.eval_batch_size
    banks = []
    for i, part in enumerate(self.datasets):
      images = [preprocess.load_image(s.image_path, size) for s in part.test]
      banks.append(
        model.build_memory_bank(np.stack(images), i, batch_size=batch_size)
      )
    return params, {**stats, categories.BANK: categories.stack(banks)}

  def update(
    self, method: types.Method, tx: optax.GradientTransformation
  ) -> update_step.Update:
    """Return the update step of `update_step.make` for all categories."""
    step_of_one, steps = update_step.make(method, tx), self.steps

    def update(state, backbone, aux, batch, rng):
      step = state["training"]["step"]
      number = step // steps
      model = categories.row(state["model"], number)
      opt = jax.tree.map(
        lambda new, old: jnp.where(step % steps == 0, new, old),
        tx.init(model["params"]),
        state["training"]["opt"],
      )
      own = jax.tree.map(lambda x: x[None], categories.row(aux, number))
      training = {"opt": opt, "step": step}
      found, measured = step_of_one(
        {"model": model, "training": training}, backbone, own, batch, rng
      )
      put = lambda old, new: old.at[number].set(new)
      return {
        "model": jax.tree.map(put, state["model"], found["model"]),
        "training": found["training"],
      }, measured

    return jax.jit(update, donate_argnums=0)


class Source:
  """Batches of one category after the other; see `batch_source`."""

  def __init__(
    self, plan: Plan, method: types.Method, backbone: Any, mesh: Any
  ) -> None:
    self.skipped: list[str] = []
    self._plan = plan
    config = plan.config.copy_and_resolve_references()
    with config.unlocked():
      config.batch_size = plan.batch_size
    self._given = config, method, backbone, mesh

  def batches(self, *, start_step: int) -> Iterator[dict[str, Any]]:
    """Yield the batches of all steps from `start_step` on."""
    number, first = divmod(start_step, self._plan.steps)
    for part in self._plan.datasets[number:]:
      source = batch_source.make(*self._given, [part])
      steps = range(first, self._plan.steps)
      for _, batch in zip(steps, source.batches(start_step=first)):
        yield batch
      self.skipped += source.skipped
      first = 0
