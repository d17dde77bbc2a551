"""Base class of backbones that have an image encoder alone."""

from typing import NoReturn

TEXT = ("text_width", "text_layers", "tokenize", "embed_tokens", "text")
TEXT += ("project_text", "logit_scale")


class NoTextError(ValueError, AttributeError):
  """A method asks for the text encoder of a backbone that has none.

  An `AttributeError`, so that `isinstance(x, types.TextBackbone)` is False;
  commands print a `ValueError` in one line.
  """


class ImageOnly:
  """A backbone whose missing text encoder is named where it is asked for."""

  def __getattr__(self, name: str) -> NoReturn:
    """Refuse the attributes of a text encoder; called for missing ones."""
    if name in TEXT:
      raise NoTextError(
        "This method compares images with text, but config.backbone has no "
        "text encoder: choose a CLIP, a method without text, or one that takes "
        "its text from config.text_backbone, such as linear_probe."
      )
    raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
