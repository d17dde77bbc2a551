"""The frozen image side of AnomalyCLIP, which FAPrompt and AdaptCLIP share."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from zsad_jax.types import Backbone


def encode(
  backbone: Backbone,
  image: Float[Array, "b h w 3"],
  *,
  taps: Sequence[int],
  vv_from: int | None,
  act: str | None,
  pos_resize: str,
  class_ln_post: bool,
) -> tuple[Float[Array, "b d"], list[Float[Array, "b n d"]]]:
  """Embeds the image and the patches of several layers.

  Args:
    backbone: frozen CLIP.
    image: normalised images.
    taps: layers (1-based) whose tokens are read.
    vv_from: first layer of the value-value stream (DPAM), which is read from
      there on; None for plain CLIP.
    act: activation of the tower; None for the one of the weights.
    pos_resize: how CLIP's position table is resized.
    class_ln_post: send the class token through ln_post, as CLIP does and the
      authors of these methods do not.

  Returns:
    The class embedding, and per tap the embeddings of all tokens, class token
    first; none of them normalised.

  Raises:
    ValueError: a tap is no layer of the tower.
  """
  if bad := [tap for tap in taps if not 1 <= tap <= backbone.vision_layers]:
    raise ValueError(
      f"There is no layer {bad[0]}: the vision tower has "
      f"{backbone.vision_layers}, counted from 1."
    )
  stream = lambda tap: "vv/" if vv_from and tap >= vv_from else ""
  last = backbone.vision_layers
  _, out = backbone.image(
    image,
    act=act,
    pos_resize=pos_resize,
    vv_from=vv_from,
    last_patches=last in taps and not stream(last),
  )
  tokens = [out[f"{stream(tap)}block{tap:02d}"] for tap in taps]
  return (
    backbone.project(out["class"], ln_post=class_ln_post),
    [backbone.project(x, ln_post=True) for x in tokens],
  )
