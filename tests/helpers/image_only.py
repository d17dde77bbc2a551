"""A backbone without text encoder."""


class ImageOnly:
  """The image encoder of a CLIP, without its text encoder and windows."""

  def __init__(self, clip):
    self._clip = clip
    for name in ("embed_dim", "patch_size", "vision_layers", "vision_width"):
      setattr(self, name, getattr(clip, name))
    self.normalize, self.image = clip.normalize, clip.image
    self.project = clip.project
