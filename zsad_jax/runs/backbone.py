"""Backbone of a configuration: one model, or two of which one reads text."""

from typing import Any

from zsad_jax import backbones, types
from zsad_jax.backbones import paired


def load(config: Any, method: types.Method) -> types.ImageBackbone:
  """Load `config.backbone`, and `config.text_backbone` where there is one.

  Args:
    config: a configuration; those of older versions have no text backbone.
    method: the method of the configuration.

  Returns:
    The backbone; with a text backbone a `paired.Paired`.

  Raises:
    FileNotFoundError: a file of weights does not exist.
    ValueError: see `backbones.load`; or the text backbone is missing, has no
      text encoder, or is given to a method that does not use it.
  """
  text: Any = config.get("text_backbone") or {"name": "", "path": ""}
  name, uses = text["name"], method.uses_text_backbone
  if name and not uses:
    raise ValueError(
      f"config.text_backbone.name is {name!r}, but {config.method_name} takes "
      'no text from a second model: set it to "".'
    )
  image = backbones.load(**config.backbone)
  if not name:
    if method.needs_text and not isinstance(image, types.TextBackbone):
      advice = "use a CLIP, or a method of images alone, such as anomalydino."
      if uses:
        advice = (
          "set config.text_backbone.name and path to a CLIP, such as "
          "ViT-L-14-336."
        )
      raise ValueError(
        f"config.method_name is {config.method_name}, which compares images "
        f"with text, but config.backbone.name is {config.backbone.name}, which "
        f"has no text encoder: {advice}"
      )
    return image
  try:
    second = backbones.load(name, text["path"], config.backbone.dtype)
  except (FileNotFoundError, ValueError) as error:
    message = str(error).replace("config.backbone", "config.text_backbone")
    raise type(error)(message) from error
  if not isinstance(second, types.TextBackbone):
    raise ValueError(
      f"config.text_backbone.name is {name!r}, which has no text encoder: set "
      "it to a CLIP, such as ViT-L-14-336."
    )
  return paired.Paired(image, second)


def check_image_size(
  config: types.Config, backbone: types.ImageBackbone, *, source: str = ""
) -> None:
  """Check that an image is a whole number of patches.

  Args:
    config: the configuration.
    backbone: the backbone of the configuration.
    source: file of the configuration, for the message.

  Raises:
    ValueError: it is not.
  """
  side, patch = config.image_size, backbone.patch_size
  if side % patch:
    lower = side // patch * patch
    near = [x for x in (lower, lower + patch) if x]
    start = f"{source}: " if source else ""
    raise ValueError(
      f"{start}config.image_size is {side}, but must be a multiple of the "
      f"backbone's patch size, {patch}: {' or '.join(map(str, near))}."
    )
