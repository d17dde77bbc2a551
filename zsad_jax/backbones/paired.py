"""An image encoder and the text encoder of another model, as one backbone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct


@struct.dataclass
class Paired:
  """Two frozen models as a pytree; they have no embedding space in common.

  Implements `types.ImageBackbone` by one model and `types.TextBackbone` by the
  other one: methods that compare the two learn a projection.

  Attributes:
    image_model: the image encoder, with all its hooks.
    text_model: a model with a text encoder.
  """

  image_model: Any
  text_model: Any

  @property
  def dtype(self) -> str:
    """Data type of matrix products of the image encoder."""
    return str(getattr(self.image_model, "dtype", "float32"))

  @property
  def embed_dim(self) -> int:
    """Width of the image embedding."""
    return self.image_model.embed_dim

  @property
  def patch_size(self) -> int:
    """Side of a patch in pixels."""
    return self.image_model.patch_size

  @property
  def vision_layers(self) -> int:
    """Number of blocks of the image encoder."""
    return self.image_model.vision_layers

  @property
  def vision_width(self) -> int:
    """Channels of the image encoder."""
    return self.image_model.vision_width

  @property
  def text_width(self) -> int:
    """Channels of the text encoder."""
    return self.text_model.text_width

  @property
  def text_layers(self) -> int:
    """Number of blocks of the text encoder."""
    return self.text_model.text_layers

  def normalize(self, pixels: Any) -> Any:
    """Normalize pixels for the image encoder."""
    return self.image_model.normalize(pixels)

  def image(self, image: Any, **hooks: Any) -> Any:
    """Encode images; the hooks are those of the image encoder."""
    return self.image_model.image(image, **hooks)

  def project(self, tokens: Any, *, ln_post: bool) -> Any:
    """Project tokens as the image encoder does."""
    return self.image_model.project(tokens, ln_post=ln_post)

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize texts for the text encoder."""
    return self.text_model.tokenize(texts)

  def embed_tokens(self, ids: Any) -> Any:
    """Look up token embeddings of the text encoder."""
    return self.text_model.embed_tokens(ids)

  def text(self, embeds: Any, end: Any, **hooks: Any) -> Any:
    """Encode token embeddings."""
    return self.text_model.text(embeds, end, **hooks)

  def project_text(self, tokens: Any) -> Any:
    """Project tokens of the last text block."""
    return self.text_model.project_text(tokens)
