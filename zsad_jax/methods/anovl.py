"""AnoVL. Deng et al., 2023, arXiv:2308.15939.

  Code       Method.state_prompts
  Code       Method.encode
  Code       Method.apply_adapter
  Code       Method.objective
  Code       Method.adapt
  Code       Method.to_map
  Code       Method.predict

"Code" is the authors' vl_test.py and vis_test.py. Patch tokens of CLIP's
value-value stream are compared with mean embeddings of prompts that name the
domain of the images. The image score is the mean over 22 views of an image.
Before its map is computed, an adapter of the tokens is fitted to that image
for a few steps; nothing is kept between images, or trained.

The scripts for MVTec AD and VisA are different algorithms (`VARIANTS`):

             MVTec AD (default)            VisA
  adapter    prompts: tanh of a linear     linear: a linear layer
             layer times embeddings
  loss_on    patches                       pixels of the resized logits
  views      22                            1

Differences between the authors' code and this one:

  random numbers  the authors draw the adapter and the noise anew for each
                  image; here both are the same for all images (`seed`), so that
                  a prediction depends on its image alone
  optimizer       the authors reset the adapter alone: moments and step of AdamW
                  are kept, and results depend on the order of the images; here
                  they start anew. `Method.adapt` takes and returns them, with
                  which parity/anovl.py repeats the authors' numbers
  tiles           the VisA script splits a wide image into its left and right
                  square; here images are resized to squares, which are one
                  tile. The functions accept both (see parity/anovl.py)
  resizing        the authors resize with Pillow's bilinear filter
As in the authors' code, the softmax over the cosines has no temperature, and
the loss of the noisy copy contains the clean copy's normal probability.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from zsad_jax import types
from zsad_jax.layers import (
  linear,
  neighborhoods,
  prompts,
  ranges,
  similarity,
  text_ensemble,
  views,
)
from zsad_jax.types import ANOMALOUS, NORMAL, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.


@dataclasses.dataclass(frozen=True)
class Method(types.TrainingFree):
  """Settings, with the values of the authors' script for MVTec AD.

  Attributes:
    adapter: see above; None: the tokens as they are.
    loss_on: what the loss averages over, see above.
    views: number of views of the image score, 22 or 1.
    vv_from: first layer (1-based) of the value-value stream.
    steps: of the adaptation to an image.
    learning_rate: of AdamW, with torch's default weight decay.
    noise_std: deviation of the noise that is added to tokens.
    mix: weight of the adapter's output; that of the tokens is 1 - mix.
    seed: of the initial adapter and the noise.
    textures: classes whose prompts have the words of textures, as prompts name
      them; all others are objects.
    activation: activation of both towers; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  adapter: Literal["prompts", "linear"] | None = "prompts"
  loss_on: Literal["patches", "pixels"] = "patches"
  views: Literal[22, 1] = 22
  vv_from: int = 1
  steps: int = 5
  learning_rate: float = 1e-3
  noise_std: float = 0.055
  mix: float = 0.5
  seed: int = 111
  textures: tuple[str, ...] = ("carpet", "leather", "grid", "tile", "wood")
  activation: types.Activation | None = "gelu_erf"
  pos_resize: types.PositionResize = "bicubic_antialias"

  def __post_init__(self) -> None:
    types.TrainingFree.__post_init__(self)
    ranges.check(
      self,
      counts=["steps", "vv_from"],
      positive=["learning_rate"],
      shares=["mix"],
      weights=["noise_std", "seed"],
    )

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """AdamW of the adaptation."""
    return optax.adamw(self.learning_rate, weight_decay=0.01)

  def state_prompts(self, name: str) -> Sequence[Sequence[str]]:
    """Return 462 normal and 462 anomalous prompts for a class (Code)."""
    kind = "texture" if name in self.textures else "object"
    return prompts.ensemble(
      "macaroni" if name in ("macaroni1", "macaroni2") else name,
      prompts.ANOVL_STATES,
      prompts.ANOVL_TEMPLATES[kind],
      template_major=True,
    )

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the prompts of each class.

    Args:
      backbone: frozen CLIP.
      class_names: n names.

    Returns:
      "text_units" (n, 2, d): per state the normalized mean embedding; for the
      adapter "prompts" also "prompt_units" (n, 924, d).
    """
    found = text_ensemble.embed_each(
      backbone, class_names, self.state_prompts, activation=self.activation
    )
    means = [[each.mean(axis=0) for each in states] for states in found]
    aux = {"text_units": similarity.unit(jnp.array(means))}
    if self.adapter == "prompts":
      each = jnp.stack([jnp.concatenate(states) for states in found])
      aux["prompt_units"] = similarity.unit(each)
    return aux

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings of the views, and patch tokens (Code).

    Args:
      backbone: frozen CLIP.
      batch: "image" (b, h, w, 3), square, and "class_id".

    Returns:
      "view_units" (b, v, d), and "tokens" (b, l, d) of the value-value stream.
    """
    image = batch["image"]
    embed, out = backbone.image(
      image, vv_from=self.vv_from, last_patches=False, **self.image_hooks
    )
    embeds = embed[:, None]
    if self.views > 1:
      others = views.anovl(image)[:, 1:]
      flat = others.reshape(-1, *image.shape[1:])
      found, _ = backbone.image(flat, last_patches=False, **self.image_hooks)
      found = found.reshape(*others.shape[:2], -1)
      embeds = jnp.concatenate([embeds, found], axis=1)
    tokens = out[f"vv/block{backbone.vision_layers:02d}"][:, 1:]
    return {
      "class_id": batch["class_id"],
      "view_units": similarity.unit(embeds),
      "tokens": backbone.project(tokens, ln_post=True),
    }

  def init_adapter(self, rng: jax.Array, d: int, num_prompts: int) -> Params:
    """Return the adapter before the adaptation, as torch initializes it.

    Args:
      rng: key.
      d: width of the joint embedding.
      num_prompts: prompts of a class, for the adapter "prompts".
    """
    width = num_prompts if self.adapter == "prompts" else d
    return linear.init(rng, d, width)

  def apply_adapter(
    self,
    adapter: Params,
    tokens: Float[Array, "*b d"],
    bank: Float[Array, "m d"] | None,
  ) -> Float[Array, "*b d"]:
    """Return the unit mixture of tokens and adapter (Code).

    y = (1 - mix) x + mix A(x), where A(x) is W unit(x) + b, or for the adapter
    "prompts" tanh(W unit(x) + b) E.

    Args:
      adapter: W and b.
      tokens: x, not of unit length.
      bank: E, embeddings of the prompts; None for the adapter "linear".
    """
    found = linear.apply(adapter, similarity.unit(tokens))
    if bank is not None:
      found = jnp.tanh(found) @ bank
    return similarity.unit((1 - self.mix) * tokens + self.mix * found)

  def objective(
    self,
    adapter: Params,
    tokens: Float[Array, "t l d"],
    noise: Float[Array, "t l d"],
    text: Float[Array, "2 d"],
    bank: Float[Array, "m d"] | None,
    size: tuple[int, int],
  ) -> tuple[Float[Array, ""], Float[Array, "2 ... 2"]]:
    """Return the loss of one image, and probabilities of both copies (Code).

    L = mean H(q) + mean(-log q'_a - log q_n) / 2: H is the entropy of the
    probabilities q of the clean copy, q' are those of the noisy copy.

    Args:
      adapter: adapter of the tokens.
      tokens: of the tiles of the image.
      noise: added to the tokens in the noisy copy.
      text: embeddings of the states.
      bank: see `apply_adapter`.
      size: height and width of the image in pixels.
    """

    def log_probs(tokens):
      units = self.apply_adapter(adapter, tokens, bank)
      logits = similarity.cosines(units, text)
      if self.loss_on == "pixels":
        tile = (size[0], size[0])
        maps = similarity.to_map(logits, tile, method="bilinear_corners")
        logits = views.merge_tiles(maps, size[1])
      return jax.nn.log_softmax(logits)

    clean, noisy = log_probs(tokens), log_probs(tokens + noise)
    entropy = -jnp.sum(jnp.exp(clean) * clean, axis=-1).mean()
    pair = -noisy[..., ANOMALOUS].mean() - clean[..., NORMAL].mean()
    return entropy + 0.5 * pair, jnp.exp(jnp.stack([clean, noisy]))

  def adapt(
    self,
    adapter: Params,
    state: optax.OptState,
    tokens: Float[Array, "t l d"],
    noise: Float[Array, "n t l d"],
    *given: Any,
  ) -> tuple[tuple[Params, optax.OptState], Float[Array, " n"]]:
    """Adapt to one image in n steps (Code).

    Args:
      adapter: initial adapter.
      state: of `optimizer`.
      tokens: see `objective`.
      noise: of each step.
      *given: text, bank and size, see `objective`.

    Returns:
      The adapter and the state of the optimizer after the steps, and the loss
      before each step.
    """
    value_and_grad = jax.value_and_grad(self.objective, has_aux=True)

    def step(carry, noise):
      adapter, state = carry
      (loss, _), grads = value_and_grad(adapter, tokens, noise, *given)
      updates, state = self.optimizer.update(grads, state, adapter)
      return (optax.apply_updates(adapter, updates), state), loss

    return jax.lax.scan(  # pyright: ignore[reportReturnType]
      step, (adapter, state), noise
    )

  def to_map(
    self,
    units: Float[Array, "t l d"],
    text: Float[Array, "2 d"],
    size: tuple[int, int],
  ) -> Float[Array, "h w"]:
    """Return the map of one image from unit tokens (Code); see `objective`."""
    probs = similarity.state_prob(units, text, 1.0)[..., ANOMALOUS, None]
    side = round(probs.shape[1] ** 0.5)
    grid = probs.reshape(-1, side, side, 1)
    grid = neighborhoods.mean(grid, 3, padding="edge")
    maps = similarity.to_map(
      grid.reshape(probs.shape), (size[0], size[0]), method="bilinear_corners"
    )
    return views.merge_tiles(maps, size[1])[..., 0]

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: types.ImageBackbone,
    aux: Aux,
    features: types.Features,
  ) -> types.Prediction:
    """Adapt to each image by itself, and predict (Code)."""
    del params, stats
    text = aux["text_units"][features["class_id"]]
    probs = similarity.state_prob(features["view_units"], text, 1.0)
    tokens, bank = features["tokens"][:, None], None
    size = similarity.image_size(backbone, features, "tokens")
    if self.adapter == "prompts":
      bank = aux["prompt_units"][features["class_id"]]

    def of_image(tokens, text, bank):
      units = similarity.unit(tokens)
      if self.adapter:
        units = self._adapted(tokens, text, bank, size)
      return self.to_map(units, text, size)

    return {
      "anomaly_map": jax.vmap(of_image)(tokens, text, bank),
      "pred_score": probs[..., ANOMALOUS].mean(axis=1),
    }

  def _adapted(self, tokens, text, bank, size):
    """Return the unit tokens of one image after the adaptation to it."""
    rng_adapter, rng_noise = jax.random.split(jax.random.key(self.seed))
    rows = 0 if bank is None else len(bank)
    adapter = self.init_adapter(rng_adapter, tokens.shape[-1], rows)
    noise = self.noise_std * jax.random.normal(
      rng_noise, (self.steps, *tokens.shape)
    )
    state = self.optimizer.init(adapter)
    (adapter, _), _ = self.adapt(
      adapter, state, tokens, noise, text, bank, size
    )
    return self.apply_adapter(adapter, tokens, bank)


# Settings of the second script, by variant of the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
  "visa": dict(adapter="linear", loss_on="pixels", views=1),
}
PAPER_NAME = "AnoVL"  # In the tables of the papers.
PAPER_VARIANTS = {"visa": "AnoVL"}
TINY = {"views": 1}  # Settings for a backbone of three blocks, for tests.
