"""SubspaceAD. Lendering et al., CVPR 2026, arXiv:2602.23013.

  Code       Method.augment_references
  Code       Method.encode
  Code       Method.build_memory_bank
  Code       Method.residual_map
  Code       Method.predict

"Code" is the authors' CLendering/SubspaceAD. Nothing is trained, and no text is
used: the patches of references and of their rotated copies, each the mean of
its tokens of several layers, span a subspace by principal component analysis
that explains 99 % of their variance. The squared distance of a patch to the
subspace is its anomaly score; the score of an image is the mean of the largest
1 % of its smoothed map.

The default is the authors' code; `smoothing` gives the paper's text.

Differences from the authors' code:
- a score x becomes x / (x + v) with v the variance of the patches of
  references, to lie in [0, 1], after the mean over pixels, which ranks alike;
- the angles of the copies are drawn by NumPy, the same for all references, and
  no class is without copies (the authors leave them out for "transistor");
- references are rotated after they are resized to squares; the map is mirrored
  with its border pixels repeated before it is smoothed.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from zsad_jax import types
from zsad_jax.layers import (
  dual_path,
  neighborhoods,
  ranges,
  rotation,
  score_fusion,
  similarity,
  smoothing,
  subspace,
)

TITLE = "SubspaceAD"
DEPTH = 40  # Layers of the backbone that the defaults are for.
SIGMA = 4.0  # Of the Gaussian over maps, in pixels.


@dataclasses.dataclass(frozen=True)
class Method(types.TrainingFree):
  """Settings, with the authors' values as defaults.

  Implements `types.AugmentsReferences`.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are averaged; the
      defaults are for the 40 layers of a ViT-g.
    num_rotations: number of rotated copies of each reference.
    rotation_seed: seed of their angles.
    explained_variance: share of the variance that the subspace explains.
    top_share: share of the pixels of the map that are averaged in the score.
    smoothing: of the map, by a Gaussian of four pixels: "code", of 3 x 3
      pixels, or "paper", of its full width.
    neighborhood: side, an odd number of patches, of the neighborhood whose
      tokens are averaged, as in PatchCore; 1: authors' code.
  """

  feature_layers: tuple[int, ...] = (23, 24, 25, 26, 27, 28, 29)
  num_rotations: int = 30
  rotation_seed: int = 42
  explained_variance: float = 0.99
  top_share: float = 0.01
  smoothing: Literal["code", "paper"] = "code"
  neighborhood: int = 1

  def __post_init__(self) -> None:
    types.TrainingFree.__post_init__(self)
    shares = ["explained_variance", "top_share"]
    ranges.check(
      self,
      counts=["feature_layers", "neighborhood"],
      positive=shares,
      shares=shares,
      weights=["num_rotations", "rotation_seed"],
    )
    if self.neighborhood % 2 == 0:
      raise ValueError(
        f"config.method.neighborhood is {self.neighborhood}, but must be odd: "
        "a patch is in the middle of its neighborhood."
      )

  @property
  def compares_references(self) -> bool:
    """Whether references are compared without `WithMemoryBank`: yes."""
    return True

  @property
  def needs_text(self) -> bool:
    """Whether the method needs a text encoder: no."""
    return False

  @property
  def needs_references(self) -> bool:
    """Whether the method requires reference images to predict: yes."""
    return True

  def prepare(self, backbone: Any, class_names: Any) -> dict[str, Array]:
    """Return nothing: no text is used."""
    del backbone, class_names
    return {}

  def augment_references(
    self, images: UInt8[np.ndarray, "k s s 3"]
  ) -> UInt8[np.ndarray, "n s s 3"]:
    """Return references and their rotated copies (Code)."""
    rng = np.random.default_rng(self.rotation_seed)
    angles = rng.uniform(0.0, 360.0, self.num_rotations)
    return rotation.rotate(images, [0.0, *angles.tolist()])

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return the mean patch tokens of the layers, without LayerNorm (Code)."""
    layers = self.feature_layers
    dual_path.check_layers(backbone, layers)
    _, out = backbone.image(
      batch["image"], last_patches=backbone.vision_layers in layers
    )
    tokens = [out[f"block{layer:02d}"][:, 1:] for layer in layers]
    mean = score_fusion.mean(tokens)
    if self.neighborhood > 1:
      side = batch["image"].shape[1] // backbone.patch_size
      b, l, c = mean.shape
      grid = mean.reshape(b, side, l // side, c)
      grid = neighborhoods.mean(grid, self.neighborhood, padding="edge")
      mean = grid.reshape(mean.shape)
    return {"patch_tokens": mean}

  def build_memory_bank(self, features: types.Features) -> subspace.Subspace:
    """Fit the subspace to the patches of all references (Code)."""
    tokens = features["patch_tokens"]
    n, shots, l, c = tokens.shape
    patches = tokens.reshape(n, shots * l, c)
    return subspace.fit(patches, self.explained_variance)

  def residual_map(
    self,
    patches: Float[Array, "b l c"],
    space: subspace.Subspace,
    size: tuple[int, int],
  ) -> Float[Array, "b h w"]:
    """Return the smoothed map of squared distances to the subspace (Code).

    Args:
      patches: of square images.
      space: subspace of normal patches.
      size: height and width of the maps.
    """
    values = subspace.residual(patches, space)
    maps = similarity.to_map(values[..., None], size, method="bilinear")
    radius = 1 if self.smoothing == "code" else None
    return smoothing.gaussian(maps[..., 0], SIGMA, radius)

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.ImageBackbone,
    aux: Any,
    features: types.Features,
  ) -> types.Prediction:
    """Predict with features["memory_bank"] (Code).

    Raises:
      ValueError: there is none.
    """
    del params, stats, aux
    if "memory_bank" not in features:
      raise ValueError(
        "SubspaceAD compares images with references: give normal images of the "
        "same class."
      )
    space = features["memory_bank"]
    size = similarity.image_size(backbone, features, "patch_tokens")
    maps = self.residual_map(features["patch_tokens"], space, size)
    pixels = maps.reshape(maps.shape[0], size[0] * size[1])
    score = score_fusion.top_mean(pixels, self.top_share)
    variance = jnp.maximum(space.variance, 1e-12)
    return {
      "anomaly_map": maps / (maps + variance[:, None, None]),
      "pred_score": score / (score + variance),
    }


# Settings for a backbone of three blocks, for tests.
TINY = dict(feature_layers=(2, 3), num_rotations=2)
