"""Types shared by the whole package. Imports nothing from it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import jax
from jaxtyping import Array, Float

Params = Mapping[str, Any]  # Nested dict of arrays; "a/b/kernel" when flat.
Batch = Mapping[str, Any]  # See `datasets/pipeline.py` for the keys.
Features = Mapping[str, Any]  # What a method's `encode` returns.

NORMAL, ANOMALOUS = 0, 1  # States, on the last axis, everywhere.


def check_choices(method, **choices: Sequence[str]) -> None:
  """Raises ValueError when a field of a method is none of its choices."""
  for field, known in choices.items():
    if getattr(method, field) not in known:
      raise ValueError(
        f"config.method.{field} is one of {', '.join(known)}, got "
        f"{getattr(method, field)!r}."
      )


class Prediction(TypedDict):
  """What every method returns for a batch of images."""

  anomaly_map: Float[Array, "b h w"]  # [0, 1], input resolution, unsmoothed.
  pred_score: Float[Array, " b"]  # [0, 1], higher = more anomalous.


@runtime_checkable
class Backbone(Protocol):
  """Frozen CLIP. A pytree: it enters `jit` as an argument, not a constant."""

  @property
  def embed_dim(self) -> int: ...

  @property
  def patch_size(self) -> int: ...

  @property
  def vision_layers(self) -> int: ...

  @property
  def vision_width(self) -> int: ...

  @property
  def text_width(self) -> int: ...

  def image(self, image, **hooks): ...

  def project(self, tokens, *, ln_post: bool): ...

  def tokenize(self, texts: Sequence[str]): ...

  def embed_tokens(self, ids): ...

  def text(self, embeds, end, **hooks): ...


@runtime_checkable
class Detector(Protocol):
  """What predicts: pure functions of frozen dataclasses.

  One that compares images with references (normal images of the same class)
  also has `remember(features)`: features of references, every leaf
  (n, shots, ...), to a memory, every leaf (n, ...), which then stands in
  features["memory"]; n is the batch, or 1 for all of it. One whose prediction
  without references is a part of the one with them also has
  `beside(alone, features)`, from the first to the second.
  """

  def prepare(self, backbone: Backbone, class_names: Sequence[str]) -> Any:
    """Returns what depends on the class names alone; runs outside `jit`."""

  def encode(self, backbone: Backbone, batch: Batch) -> Features:
    """Returns what the frozen backbone alone says of a batch of images.

    "pixels" among the features are the normalised images themselves.
    """

  def predict(self, params, stats, backbone, aux, features) -> Prediction:
    """Returns maps and scores; an image's result depends on it alone."""


@runtime_checkable
class Method(Detector, Protocol):
  """One detector: one paper, one file in `methods/`, class `Method`.

  An implementation is a frozen dataclass whose fields are the paper's
  hyperparameters (`config.method`). What is frozen is decided by which
  argument a value is. `num_references` are given with each training image; a
  method that learns from none gets a memory by `fewshot.py`.
  """

  @property
  def num_references(self) -> int: ...

  def init(self, rng: jax.Array, backbone: Backbone) -> tuple[Params, Params]:
    """Returns the trainable parameters and the running statistics."""

  def trained(self, params: Params) -> Params:
    """Returns a tree like `params`: False where the loss never reads a leaf."""

  def loss(self, params, stats, backbone, aux, features, batch, rng):
    """Returns `(scalar, (parts, stats))`, parts being named scalars."""
