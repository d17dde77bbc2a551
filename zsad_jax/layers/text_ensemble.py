"""Mean embeddings of many prompts per state and class."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
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

  @jax.jit
  def encode(ids, end):
    embeds = backbone.embed_tokens(ids)
    found, _ = backbone.text(embeds, end, activation=activation)
    return similarity.unit(found) if average == "unit" else found

  means = []
  for name in class_names:
    states = prompts(name)
    ids, end = backbone.tokenize([text for state in states for text in state])
    each, start = encode(ids, end), 0
    for state in states:
      means.append(each[start : start + len(state)].mean(axis=0))
      start += len(state)
  return jnp.stack(means).reshape(len(class_names), -1, means[0].shape[-1])
