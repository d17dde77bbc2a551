"""VCP-CLIP's prompts with visual context, before and after the text encoder.

Qu et al., ECCV 2024, arXiv:2407.12276, as the authors' code has it
(models/pre_vcp.py, models/post_vcp.py and models/model_CLIP.py).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import kernels, linear, similarity
from zsad_jax.types import Params

CONV_WIDTH = 3  # Features that one feature of a class vector depends on.


def init_class_vectors(rng: jax.Array, number: int, c: int) -> Params:
  """Initialize the learned part of the class vectors.

  Args:
    rng: key.
    number: r, vectors that replace the class name.
    c: text width.

  Returns:
    "query" (r, c), truncated normal, and "conv", a 1-D convolution from one to
    r channels, uniform as in torch.
  """
  rng_query, rng_kernel, rng_bias = jax.random.split(rng, 3)
  bound = CONV_WIDTH**-0.5
  uniform = lambda rng, *shape: jax.random.uniform(
    rng, shape, jnp.float32, -bound, bound
  )
  return {
    "query": jax.random.truncated_normal(rng_query, -2.0, 2.0, (number, c)),
    "conv": {
      "kernel": uniform(rng_kernel, CONV_WIDTH, 1, number),
      "bias": uniform(rng_bias, number),
    },
  }


def class_vectors(
  params: Params, image_embed: Float[Array, "b d"] | None
) -> Float[Array, "_ r c"]:
  """Compute the vectors that replace the class name in a prompt.

  Args:
    params: see `init_class_vectors`.
    image_embed: embeddings, not of unit length; None for vectors that depend
      on no image. The authors' backbone has d = c; other embeddings are padded
      with zeros, or cut, to the text width.

  Returns:
    The vectors; the leading axis is b, or 1 without images.
  """
  query, conv = params["query"][None], params["conv"]
  if image_embed is None:
    return query
  b, d = image_embed.shape
  c = query.shape[-1]
  x = jnp.pad(image_embed, ((0, 0), (0, max(c - d, 0))))[:, :c]
  # A convolution over the features, zeros outside.
  padded = jnp.pad(x, ((0, 0), (1, 1)))
  shifted = jnp.stack([padded[:, i : i + c] for i in range(CONV_WIDTH)])
  u = jnp.einsum("tbc,tr->brc", shifted, conv["kernel"][:, 0])
  return query + u + conv["bias"][:, None]


def with_class_vectors(
  embeds: Float[Array, "s t c"], vectors: Float[Array, "b r c"], hole: int
) -> Float[Array, "b s t2 c"]:
  """Replace the token at position `hole` of s prompts by r vectors per image.

  Args:
    embeds: token embeddings, positions not added.
    vectors: of each image, the same in all of its prompts.
    hole: position of the token.

  Returns:
    The prompts of each image, r - 1 tokens longer.
  """
  b, s = vectors.shape[0], embeds.shape[0]
  each = jnp.broadcast_to(embeds, (b, *embeds.shape))
  inserted = jnp.broadcast_to(vectors[:, None], (b, s, *vectors.shape[1:]))
  parts = each[:, :, :hole], inserted, each[:, :, hole + 1 :]
  return jnp.concatenate(parts, axis=2)


def init_deep(rng: jax.Array, layers: int, length: int, c: int) -> Params:
  """Initialize the deep tokens of all text blocks.

  Args:
    rng: key.
    layers: text blocks.
    length: n, tokens per block.
    c: text width.

  Returns:
    "first" (n, c) of the first block and "rest" (layers - 1, n, c), uniform;
    their common "projection", kaiming normal; "norm", the LayerNorm after the
    last block.
  """
  rngs = jax.random.split(rng, 4)
  uniform = lambda rng, *shape: jax.random.uniform(
    rng, shape, jnp.float32, -1.0, 1.0
  )
  projection = dict(linear.init(rngs[2], c, c))
  kernel = jax.random.normal(rngs[3], (c, c))
  return {
    "first": uniform(rngs[0], length, c),
    "rest": uniform(rngs[1], layers - 1, length, c),
    "projection": {**projection, "kernel": (2 / c) ** 0.5 * kernel},
    "norm": {"scale": jnp.ones(c), "bias": jnp.zeros(c)},
  }


def draw_kept(
  params: Params,
  prompts: tuple[int, int],
  rng: jax.Array | None,
  dropout: float,
) -> Bool[Array, "b s j n c"] | None:
  """Draw which values of the deep tokens are kept in training.

  Args:
    params: see `init_deep`.
    prompts: numbers of images and of prompts of each.
    rng: key; None for no dropout.
    dropout: probability that a value is dropped.

  Returns:
    An independent mask of each prompt and text block; None if all are kept.
  """
  if rng is None or not dropout:
    return None
  layers, *shape = params["rest"].shape
  shape = (*prompts, 1 + layers, *shape)
  return jax.random.bernoulli(rng, 1.0 - dropout, shape)


def deep_tokens(
  params: Params,
  keep: Bool[Array, "b s j n c"] | None,
  dropout: float,
) -> dict[int, Float[Array, "_ n c"]]:
  """Project the deep tokens, with dropout in training.

  Args:
    params: see `init_deep`.
    keep: values that dropout keeps, for s prompts of b images; None for none
      dropped.
    dropout: probability that a value is dropped.

  Returns:
    Tokens by 0-based text block; the leading axis is b * s, or 1 for all.
  """
  tokens = jnp.concatenate([params["first"][None], params["rest"]])
  tokens = linear.apply(params["projection"], tokens)
  if keep is None:
    return {j: tokens[j][None] for j in range(len(tokens))}
  kept = jnp.where(keep, tokens / (1.0 - dropout), 0.0)
  kept = kept.reshape(-1, *tokens.shape)
  return {j: kept[:, j] for j in range(len(tokens))}


def token_norm(
  params: Params, x: Float[Array, "*b c"], epsilon: float
) -> Float[Array, "*b c"]:
  """Apply the LayerNorm after the last text block."""
  x = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x).mean(axis=-1, keepdims=True)
  x = x / jnp.sqrt(variance + epsilon)
  return x * params["scale"] + params["bias"]


def init_post(rng: jax.Array, d: int, c: int) -> Params:
  """Initialize Post-VCP's linear layers as torch does.

  Args:
    rng: key.
    d: width of text embeddings.
    c: width of patch tokens.
  """
  widths = {"query": d, "key": c, "value": c, "output": c}
  rngs = jax.random.split(rng, len(widths))
  return {
    name: linear.init(key, width, c)
    for key, (name, width) in zip(rngs, widths.items())
  }


def post_text(
  params: Params,
  text_units: Float[Array, "b s d"],
  patch_units: Float[Array, "b n l c"],
  *,
  num_heads: int,
  scaled: bool,
) -> Float[Array, "b n s c"]:
  """Update text embeddings by attention over the patches of each of n layers.

  Args:
    params: see `init_post`.
    text_units: unit text embeddings, the queries.
    patch_units: unit patch tokens, keys and values.
    num_heads: attention heads.
    scaled: divide by the square root of a head's width before the softmax.

  Returns:
    Unit vectors in the space of the patch tokens; the input is not added.
  """
  heads = lambda x: x.reshape(*x.shape[:-1], num_heads, -1)
  q = heads(linear.apply(params["query"], text_units))
  k = heads(linear.apply(params["key"], patch_units))
  v = heads(linear.apply(params["value"], patch_units))
  if scaled:
    q = q * q.shape[-1] ** -0.5
  logits = jnp.einsum("bshd,bnlhd->bnhsl", q, k, precision=kernels.EXACT)
  out = jnp.einsum("bnhsl,bnlhd->bnshd", jax.nn.softmax(logits), v)
  out = out.reshape(*out.shape[:-2], -1)
  return similarity.unit(linear.apply(params["output"], out))
