"""The frozen image side of AnomalyCLIP, which FAPrompt and AdaptCLIP share."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from zsad_jax.types import ImageBackbone


def encode(
  backbone: ImageBackbone,
  image: Float[Array, "b h w 3"],
  *,
  feature_layers: Sequence[int],
  vv_from: int | None,
  activation: str | None,
  pos_resize: str,
  class_ln_post: bool,
) -> tuple[Float[Array, "b d"], list[Float[Array, "b n d"]]]:
  """Embeds the image and the patches of several layers.

  Args:
    backbone: frozen CLIP.
    image: normalised images.
    feature_layers: layers (1-based) whose tokens are read.
    vv_from: first layer of the value-value stream (DPAM), which is read from
      there on; None for plain CLIP.
    activation: activation of the tower; None for the one of the weights.
    pos_resize: how CLIP's position table is resized.
    class_ln_post: send the class token through ln_post, as CLIP does and the
      authors of these methods do not.

  Returns:
    The class embedding, and per layer the embeddings of all tokens, class token
    first; none of them normalised.

  Raises:
    ValueError: a layer is no layer of the tower.
  """
  if bad := [
    layer
    for layer in feature_layers
    if not 1 <= layer <= backbone.vision_layers
  ]:
    raise ValueError(
      f"There is no layer {bad[0]}: the vision tower has "
      f"{backbone.vision_layers}, counted from 1."
    )
  stream = lambda layer: "vv/" if vv_from and layer >= vv_from else ""
  last = backbone.vision_layers
  _, out = backbone.image(
    image,
    activation=activation,
    pos_resize=pos_resize,
    vv_from=vv_from,
    last_patches=last in feature_layers and not stream(last),
  )
  tokens = [out[f"{stream(layer)}block{layer:02d}"] for layer in feature_layers]
  return (
    backbone.project(out["class"], ln_post=class_ln_post),
    [backbone.project(x, ln_post=True) for x in tokens],
  )
