"""AdaptCLIP's textual adapter: learned prompts of the two states (Eq. 4).

Gao et al., AAAI 2026, Sec. 3.2. Fixed prompts describe the states where no
prompt is learned.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import prompt_learner, prompts, similarity
from zsad_jax.types import Activation, Params, TextBackbone

FIXED = prompts.adaptclip()
_STATES = ("normal", "anomalous")


def init(rng: jax.Array, length: int, c: int) -> Params:
  """Initialize the learned vectors of both states, normal."""
  keys = zip(_STATES, jax.random.split(rng))
  return {state: prompt_learner.init(key, length, c) for state, key in keys}


def prepare(
  backbone: TextBackbone,
  templates: Sequence[prompt_learner.PromptTemplate],
  activation: Activation,
) -> dict[str, Array]:
  """Embed the templates, and the fixed prompts as "static_units" (2, d)."""
  fixed = jax.jit(fixed_text, static_argnames="activation")(
    backbone,
    prompt_learner.placeholders(backbone, sum(FIXED, [])),
    activation=activation,
  )
  return {
    **prompt_learner.placeholders(backbone, [t.text for t in templates]),
    "static_units": similarity.unit(fixed),
  }


def fixed_text(
  backbone: TextBackbone, fixed: Mapping[str, Array], activation: Activation
) -> Float[Array, "2 d"]:
  """Return the mean embedding of the fixed prompts of each state."""
  embed, _ = backbone.text(fixed["embeds"], fixed["end"], activation=activation)
  normal = len(FIXED[0])
  return jnp.stack([embed[:normal].mean(0), embed[normal:].mean(0)])


def learned_prompts(
  params: Params, aux: Mapping[str, Array]
) -> Float[Array, "2 t c"]:
  """Return token embeddings of both prompts with the learned vectors.

  Args:
    params: see `init`.
    aux: see `prepare`.
  """
  vectors = jnp.stack([params[state] for state in _STATES])
  return prompt_learner.with_context(aux["embeds"], vectors)


def text(
  params: Params,
  backbone: TextBackbone,
  aux: Mapping[str, Array],
  activation: Activation,
) -> Float[Array, "2 d"]:
  """Embed the learned prompts, without normalization (Eq. 4).

  Args:
    params: see `init`.
    backbone: frozen text encoder.
    aux: see `prepare`.
    activation: activation of the tower.
  """
  embeds = learned_prompts(params, aux)
  embed, _ = backbone.text(embeds, aux["end"], activation=activation)
  return embed
