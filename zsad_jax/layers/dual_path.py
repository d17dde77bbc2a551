"""Frozen image encoding of AnomalyCLIP, shared by FAPrompt and AdaptCLIP."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import similarity
from zsad_jax.types import Activation, ImageBackbone, PositionResize


def check_layers(
  backbone: ImageBackbone, feature_layers: Sequence[int]
) -> None:
  """Check that all layers (1-based) exist.

  Args:
    backbone: frozen image encoder.
    feature_layers: layers, counted from 1.

  Raises:
    ValueError: there is no layer, or one is not in the vision tower.
  """
  last = backbone.vision_layers
  if not feature_layers:
    raise ValueError(
      "config.method: there has to be a feature layer, got none."
    )
  if bad := [layer for layer in feature_layers if not 1 <= layer <= last]:
    raise ValueError(
      f"There is no layer {bad[0]}: the vision tower has {last}, counted "
      "from 1."
    )


def encode(
  backbone: ImageBackbone,
  image: Float[Array, "b h w 3"],
  *,
  feature_layers: Sequence[int],
  vv_from: int | None,
  activation: Activation | None = None,
  pos_resize: PositionResize | None = None,
  class_ln_post: bool,
) -> tuple[Float[Array, "b d"], list[Float[Array, "b n d"]]]:
  """Embed the image and the patches of several layers.

  Args:
    backbone: frozen image encoder.
    image: normalized images.
    feature_layers: layers (1-based) whose tokens are returned.
    vv_from: first layer of the value-value stream (DPAM); from this layer on
      tokens are taken from that stream. None for plain CLIP.
    activation: activation of the tower; None for that of the weights.
    pos_resize: how the position table is resized; None for the default of the
      backbone.
    class_ln_post: send the class token through ln_post, as CLIP does and the
      authors of these methods do not.

  Returns:
    The class embedding, and per layer the embeddings of all tokens, class token
    first; none of them normalized.

  Raises:
    ValueError: a layer is not one of the tower's.
  """
  check_layers(backbone, feature_layers)
  last = backbone.vision_layers
  stream = lambda layer: "vv/" if vv_from and layer >= vv_from else ""
  _, out = backbone.image(
    image,
    activation=activation,
    vv_from=vv_from,
    last_patches=last in feature_layers and not stream(last),
    **({"pos_resize": pos_resize} if pos_resize else {}),
  )
  tokens = [out[f"{stream(layer)}block{layer:02d}"] for layer in feature_layers]
  return (
    backbone.project(out["class"], ln_post=class_ln_post),
    [backbone.project(x, ln_post=True) for x in tokens],
  )


def encode_units(
  backbone: ImageBackbone, image: Float[Array, "b h w 3"], **settings: Any
) -> tuple[Float[Array, "b d"], Float[Array, "b n l d"]]:
  """Embed the image and the patches of n layers as unit vectors.

  Args:
    backbone: frozen image encoder.
    image: normalized images.
    **settings: see `encode`.

  Returns:
    The class embedding, and the patch embeddings per layer.
  """
  embed, tokens = encode(backbone, image, **settings)
  patches = jnp.stack(tokens, axis=1)[:, :, 1:]
  return similarity.unit(embed), similarity.unit(patches)
