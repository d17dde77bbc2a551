"""Mean embeddings of many prompts per state and class."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.layers import similarity
from zsad_jax.types import Activation, TextBackbone

Average = Literal["unit", "raw"]


def embed(
  backbone: TextBackbone,
  class_names: Sequence[str],
  prompts: Callable[[str], Sequence[Sequence[str]]],
  *,
  average: Average = "unit",
  activation: Activation | None = None,
) -> Float[Array, "n s d"]:
  """Return the mean embedding of each state's prompts.

  Args:
    backbone: frozen CLIP.
    class_names: n names.
    prompts: name -> the prompts of each of s states.
    average: "unit", the mean of unit embeddings, as CLIP's authors do, or
      "raw", of embeddings as they are.
    activation: of the text tower; None for that of the weights.

  Returns:
    The means, not of unit length.
  """
  means = [
    each.mean(axis=0)
    for name in class_names
    for each in _by_state(backbone, prompts(name), average, activation)
  ]
  return jnp.stack(means).reshape(len(class_names), -1, means[0].shape[-1])


def embed_each(
  backbone: TextBackbone,
  class_names: Sequence[str],
  prompts: Callable[[str], Sequence[Sequence[str]]],
  *,
  activation: Activation | None = None,
) -> list[list[Float[Array, "k d"]]]:
  """Return the embeddings of all prompts, not of unit length.

  Args:
    backbone: frozen CLIP.
    class_names: n names.
    prompts: name -> the k prompts of each state.
    activation: of the text tower; None for that of the weights.

  Returns:
    For each class, for each state, the embeddings.
  """
  return [
    _by_state(backbone, prompts(name), "raw", activation)
    for name in class_names
  ]


def _by_state(backbone, states, average, activation):
  """Embed the prompts of each state of a class."""
  ids, end = backbone.tokenize([text for state in states for text in state])
  each = _encode(backbone, ids, end, average, activation)
  ends = np.cumsum([len(state) for state in states])[:-1]
  return jnp.split(each, ends)


@functools.partial(jax.jit, static_argnames=("average", "activation"))
def _encode(backbone, ids, end, average, activation):
  embeds = backbone.embed_tokens(ids)
  found, _ = backbone.text(embeds, end, activation=activation)
  return similarity.unit(found) if average == "unit" else found
