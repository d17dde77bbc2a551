"""Ranges of all fields of a configuration, checked before anything is read.

`TRAINING` and `PRETRAINING` hold one `Rule` for each field by its name, with a
dot between a section and its field. Fields without a rule are not checked.
"""

import dataclasses
import difflib
import math
import numbers
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax import types
from zsad_jax.backbones.clip.config import PIXELS
from zsad_jax.datasets import augmentation
from zsad_jax.runtime import urls

_LARGEST_SEED = 2**32 - 1  # NumPy's, too.
# Of `jax.default_matmul_precision`.
PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32")
PRECISIONS += ("float32",)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Values that a field can have.

  Attributes:
    kind: "whole number", "number", "text", "truth value", "section" or
      "list of" one of these.
    low: smallest value.
    high: largest value.
    above: whether `low` itself is excluded.
    choices: all allowed values, if there are only a few.
    none: whether None is allowed.
    required: whether a stored configuration must have the field.
    empty: whether a list can be empty.
  """

  kind: str
  low: int | float = -math.inf
  high: int | float = math.inf
  above: bool = False
  choices: tuple[Any, ...] = ()
  none: bool = False
  required: bool = True
  empty: bool = True

  def problem(self, value: Any) -> str:
    """Return the requirement that a value does not meet, "" if none."""
    if value is None and self.none:
      return ""
    if self.kind.startswith("list of "):
      if not isinstance(value, Sequence) or isinstance(value, str):
        return f"must be a {self.kind}s"
      if not value and not self.empty:
        return "must not be empty"
      one = dataclasses.replace(self, kind=self.kind.removeprefix("list of "))
      found = [text for x in value if (text := one.problem(x))]
      return f"{found[0]} in each entry" if found else ""
    if not _KINDS[self.kind](value):
      return f"must be a {self.kind}" + (" or None" if self.none else "")
    if self.choices and value not in self.choices:
      return f"must be one of {', '.join(map(str, self.choices))}"
    return self._out_of_range(value) if "number" in self.kind else ""

  def _out_of_range(self, value) -> str:
    if isinstance(value, float) and not math.isfinite(value):
      return "must be finite"
    if self.above and value <= self.low:
      return f"must be greater than {self.low:g}"
    if value < self.low:
      return f"must be at least {self.low:g}"
    if value > self.high:
      return f"must be at most {self.high:g}"
    return ""


def _is_whole(value):
  whole = isinstance(value, numbers.Integral)
  return whole and not isinstance(value, bool)


def _is_number(value):
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


_KINDS = {
  "whole number": _is_whole,
  "number": _is_number,
  "text": lambda x: isinstance(x, str),
  "truth value": lambda x: isinstance(x, bool),
  "section": lambda x: isinstance(x, Mapping),
}
_COUNT = Rule("whole number", 1)
_POSITIVE = Rule("number", 0, above=True)
_AT_LEAST_0 = Rule("number", 0)
_TEXT, _FLAG, _SECTION = Rule("text"), Rule("truth value"), Rule("section")
_SEED = Rule("whole number", 0, _LARGEST_SEED)
_LAYERS = Rule("list of whole number", 1, empty=False)
_FIRST_LAYER = Rule("whole number", 1, none=True)
_PRECISION = Rule("text", choices=PRECISIONS)
# Of `config.optax`, and of groups of parameters.
OPTIMIZER = {
  "optax": _SECTION,
  "optax.learning_rate": _POSITIVE,
  "optax.b1": Rule("number", 0, 1, required=False),
  "optax.b2": Rule("number", 0, 1, required=False),
  "optax.eps": Rule("number", 0, required=False),
  "optax.weight_decay": Rule("number", 0, required=False),
  "optax.momentum": Rule("number", 0, 1, none=True, required=False),
  "optax.nesterov": Rule("truth value", required=False),
  "l2_weight_decay": Rule("number", 0, required=False),
}
TRAINING = {
  "name": _TEXT,
  "method_name": _TEXT,
  "method": _SECTION,
  "seed": _SEED,
  "backbone": _SECTION,
  "backbone.name": _TEXT,
  "backbone.path": _TEXT,
  "backbone.dtype": _TEXT,
  "backbone.attention": Rule("text", required=False),
  "text_backbone": Rule("section", required=False),
  "text_backbone.name": _TEXT,
  "text_backbone.path": _TEXT,
  "image_size": _COUNT,
  "data_root": _TEXT,
  "train_data": Rule("list of text", empty=False),
  "test_data": Rule("list of text"),
  "per_category": Rule("truth value", required=False),
  "references": Rule("section", required=False),
  "references.shots": _COUNT,
  "references.seed": _SEED,
  "allow_trained": _FLAG,
  "prompt_names": Rule("text", choices=("verbatim", "readable")),
  "mosaic_prob": Rule("number", 0, 1, none=True),
  "mosaic_label": Rule("text", choices=types.choices(augmentation.MosaicLabel)),
  "mosaic_images": Rule(
    "text", choices=types.choices(augmentation.MosaicImages), required=False
  ),
  "augmentation": Rule(
    "text", choices=types.choices(augmentation.Policy), required=False
  ),
  "masks": Rule("text", required=False),
  "decoded_cache": Rule("text", required=False),
  "features": Rule("section", required=False),
  "features.storage": _TEXT,
  "features.dtype": _TEXT,
  "features.folder": _TEXT,
  "skip_corrupt": _FLAG,
  "epochs": Rule("whole number", 0),
  "batch_size": _COUNT,
  "batch_scale": Rule("whole number", 1, required=False),
  "selection": _TEXT,
  "selection_data": Rule("list of text"),
  "optax_name": _TEXT,
  **OPTIMIZER,
  "schedule": Rule("section", required=False),
  "schedule.name": Rule("text", choices=("constant", "cosine")),
  "schedule.warmup_epochs": Rule("whole number", 0),
  "schedule.warmup_learning_rate": _AT_LEAST_0,
  "schedule.end_learning_rate": Rule("number", 0, required=False),
  "param_groups": Rule("section", required=False),
  "memory": _SECTION,
  "memory.feature_layers": _LAYERS,
  "memory.vv_from": _FIRST_LAYER,
  "memory.score": Rule("text", choices=("pixels", "patches"), required=False),
  "memory.zero_shot_weight": Rule("number", 0, 1, required=False),
  "memory.coreset": Rule("number", 0, 1, True, none=True, required=False),
  "memory.coreset_width": Rule("whole number", 1, none=True, required=False),
  "eval_batch_size": _COUNT,
  "smooth_sigma": _AT_LEAST_0,
  "log_steps": _COUNT,
  "checkpoint_steps": _COUNT,
  "tensorboard": Rule("truth value", required=False),
  "matmul_precision": _PRECISION,
}
_SIZES = (
  "embed_dim image_size patch_size vision_width vision_layers text_width "
  "text_layers"
).split()
_HEADS = ("vision_heads", "text_heads")
_WEIGHTS = "captions states patches positive".split()
PRETRAINING = {
  "name": _TEXT,
  "seed": Rule("whole number", 0, _LARGEST_SEED - 1),
  "model": _SECTION,
  **{f"model.{size}": _COUNT for size in _SIZES},
  **{f"model.{x}": Rule("whole number", 0, required=False) for x in _HEADS},
  "model.vocab_size": Rule("whole number", 1, required=False),
  "model.context_length": Rule("whole number", 1, required=False),
  "model.activation": Rule(
    "text", choices=types.choices(types.Activation), required=False
  ),
  "model.pixels": Rule("text", choices=tuple(PIXELS), required=False),
  "pairs": _COUNT,
  "held_out": _COUNT,
  "batch_size": Rule("whole number", 2),
  "states": _COUNT,
  "keep": _COUNT,
  "whole_steps": Rule("whole number", 0),
  "objective": _SECTION,
  "objective.feature_layers": Rule("list of text", empty=False),
  "objective.vv_from": _FIRST_LAYER,
  "objective.temperature": _POSITIVE,
  **{f"objective.{weight}": _AT_LEAST_0 for weight in _WEIGHTS},
  "objective.visible": Rule("number", 0, 1),
  "steps": _COUNT,
  "warmup": Rule("whole number", 0),
  "learning_rate": _POSITIVE,
  "weight_decay": _AT_LEAST_0,
  "log_steps": _COUNT,
  "measure_steps": _COUNT,
  "checkpoint_steps": _COUNT,
  "matmul_precision": _PRECISION,
}
# Fields of paths that may be URLs, and of those that may not.
_READ = (
  "backbone.path",
  "text_backbone.path",
  "data_root",
  "train_data",
  "test_data",
)
_READ += ("selection_data",)
_LOCAL = ("decoded_cache", "features.folder")
# Sections whose fields are arguments of a function: others are errors.
_CLOSED = ("backbone", "text_backbone", "features", "memory", "model")
_CLOSED += ("objective", "references", "schedule")


def check(
  config: types.Config,
  rules: Mapping[str, Rule],
  *,
  source: str = "",
) -> None:
  """Check every field of a configuration.

  Args:
    config: a ConfigDict, or the content of a config.json.
    rules: `TRAINING` or `PRETRAINING`.
    source: file of the configuration, for the messages; "" for none. A file of
      an older version can lack the fields that are not `required`.

  Raises:
    ValueError: a field is missing, unknown, of another type or out of range;
      the message has its name.
  """
  found: dict[str, Any] = config if source else config.to_dict()
  start = f"{source}: " if source else ""
  for name, rule in rules.items():
    section, _, field = name.rpartition(".")
    values = found.get(section, {}) if section else found
    if section and section not in found:
      continue  # A missing section is reported by its own rule.
    if field not in values:
      if rule.required:
        near = difflib.get_close_matches(field, values, 1)
        hint = f" (is it {near[0]!r}?)" if near and near[0] not in rules else ""
        where = "The file is damaged or of another version: " if source else ""
        raise ValueError(
          f"{start}config.{name} is missing{hint}. {where}add the field."
        )
      continue
    if problem := rule.problem(values[field]):
      raise ValueError(
        f"{start}config.{name} is {shown(values[field])}, but {problem}."
      )
  _check_paths(found, start)
  for section in set(_CLOSED) & found.keys():
    known = [n.rpartition(".")[2] for n in rules if n.startswith(f"{section}.")]
    if unknown := sorted(set(found[section]) - set(known)):
      raise ValueError(
        f"{start}config.{section}.{unknown[0]} is unknown; the fields of "
        f"config.{section} are {', '.join(known)}."
      )


def _check_paths(found: Mapping[str, Any], start: str) -> None:
  """Check the scheme of each field that is a URL."""
  for name in (*_READ, *_LOCAL):
    section, _, field = name.rpartition(".")
    value = (found.get(section, {}) if section else found).get(field, ())
    for path in [value] if isinstance(value, str) else value:
      if name in _LOCAL:
        urls.refuse(path, f"{start}config.{name}")
      elif urls.is_url(path):
        try:
          urls.check(path)
        except ValueError as error:
          raise ValueError(f"{start}config.{name}: {error}") from error


def check_pretraining(config: types.Config) -> None:
  """Check the fields of a pretraining, and what they need of each other.

  Raises:
    ValueError: see `check`; or two fields do not go together.
  """
  check(config, PRETRAINING)
  grid = config.model.image_size // config.model.patch_size
  for wrong, text in (
    (config.batch_size % 2, "config.batch_size must be even: pairs of images"),
    (
      config.model.image_size % config.model.patch_size,
      "config.model.image_size must be a multiple of config.model.patch_size",
    ),
    (
      config.pairs < config.batch_size // 2,
      "config.pairs must be at least half of config.batch_size",
    ),
    (
      config.keep >= grid**2,
      f"config.keep must be less than the {grid**2} patches of an image",
    ),
    (
      config.warmup >= config.steps,
      "config.warmup must be less than config.steps",
    ),
  ):
    if wrong:
      raise ValueError(f"{text}.")


def check_types(cls: type, values: Mapping[str, Any], prefix: str) -> None:
  """Check that values have the types of a dataclass's fields.

  Args:
    cls: the dataclass; fields of other types than numbers, truth values, text
      and tuples of these are not checked.
    values: by name of the field.
    prefix: of a field's name in the message, such as "config.method".

  Raises:
    ValueError: a value has another type, or is not finite.
  """
  hints = typing.get_type_hints(cls)
  for name, value in values.items():
    rule = _rule_of(hints.get(name))
    if rule and (problem := rule.problem(value)):
      raise ValueError(f"{prefix}.{name} is {shown(value)}, but {problem}.")


_KIND_OF_TYPE = {
  int: "whole number",
  float: "number",
  bool: "truth value",
  str: "text",
}


def _rule_of(hint: Any) -> Rule | None:
  """Return the rule of a type, None where it has none."""
  if hint in _KIND_OF_TYPE:
    return Rule(_KIND_OF_TYPE[hint])
  parts = typing.get_args(hint)
  if typing.get_origin(hint) is tuple:
    kinds = {_KIND_OF_TYPE.get(x) for x in parts if x is not Ellipsis}
    kind = kinds.pop() if len(kinds) == 1 else None
    return (
      Rule(f"list of {kind}", empty=Ellipsis not in parts) if kind else None
    )
  others = [x for x in parts if x is not type(None)]
  if len(others) == 1 < len(parts):
    rule = _rule_of(others[0])
    return dataclasses.replace(rule, none=True) if rule else None
  return None


def shown(value: Any) -> str:
  """Return a value as text, cut after some characters."""
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:80]}..."
