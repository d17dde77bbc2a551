"""AdaCLIP's hybrid prompts: static ones plus dynamic ones of each image.

Cao et al., ECCV 2024, App. 2.1. Names of parameters are
{static,dynamic}_{visual,text}_prompts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import linear
from zsad_jax.types import Params

STD = 0.02  # Of static prompts (authors' code).
KINDS = {"S": "static", "D": "dynamic"}
TOWERS = {"V": "visual", "L": "text"}


def init_static(rng: jax.Array, depth: int, length: int, c: int) -> Params:
  """Initialize the static prompts of `depth` layers, normal."""
  return {
    str(j): STD * jax.random.normal(key, (length, c))
    for j, key in enumerate(jax.random.split(rng, depth))
  }


def init_heads(rng: jax.Array, number: int, c_in: int, c_out: int) -> Params:
  """Initialize linear layers as torch does."""
  return {
    str(i): linear.init(key, c_in, c_out)
    for i, key in enumerate(jax.random.split(rng, number))
  }


def combine(
  params: Params,
  image_embed: Any,
  tower: str,
  *,
  kinds: str,
  depth: int,
) -> Float[Array, "_ j m c"]:
  """Return the prompts per image and layer, static plus dynamic (App. 2.1).

  Args:
    params: trainable parameters.
    image_embed: (b, d), of the un-prompted image; read for kind D alone.
    tower: "visual" or "text".
    kinds: "S", "D" or "SD".
    depth: J, prompted layers.

  Returns:
    (b, J, M, c); the batch axis is 1 where all images share the prompts.
  """
  static = dynamic = None
  if "S" in kinds:
    learned = params[f"static_{tower}_prompts"]
    static = jnp.stack([learned[str(j)] for j in range(len(learned))])[None]
  if "D" in kinds:
    heads = params[f"dynamic_{tower}_prompts"]
    tokens = [
      linear.apply(heads[str(m)], image_embed) for m in range(len(heads))
    ]
    dynamic = jnp.stack(tokens, axis=1)[:, None]
  if static is not None and dynamic is not None:
    return static + dynamic  # (1, J, M, c) + (b, 1, M, c).
  if dynamic is not None:
    return jnp.repeat(dynamic, depth, axis=1)
  assert static is not None, "kinds names S, D or both."
  return static


def trainable_mask(
  params: Params, *, kinds: str, towers: str, first_text_layer: bool
) -> dict[str, Params]:
  """Return a tree like `params`: False for prompts that are not used.

  Args:
    params: trainable parameters.
    kinds: "S", "D" or "SD".
    towers: "V", "L" or "VL".
    first_text_layer: if the first text block is prompted.
  """
  used = {f"{KINDS[k]}_{TOWERS[t]}_prompts" for k in kinds for t in towers}
  tree = {}
  for name, part in params.items():
    read = name in used or not name.endswith("_prompts")
    tree[name] = jax.tree.map(lambda _, read=read: read, part)
  if not first_text_layer:
    tree["static_text_prompts"]["0"] = False
  return tree
