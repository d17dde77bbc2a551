"""MuSc. Li et al., ICLR 2024, arXiv:2401.16753.

  Code       Method.encode
  Code       Method.aggregate
  Code       Method.compare
  Code       Method.patch_scores
  Code       Method.category_scores
  Code       Method.predict

"Code" is the authors' models/musc.py and its modules _LNAMD.py, _MSM.py and
_RsCIN.py. Transductive: all unlabeled test images of a category are scored
together, each patch by its distances to the nearest patches of the other
images. Nothing is trained and no text is used, so that every image encoder
with tokens can be the backbone.

The default is the authors' code. Distances are halved, which ranks alike and
gives maps in [0, 1]; the scores, which are scaled over the set, are the same.
Their option `divide_num`, which splits a set into parts that are scored
independently, is left out: images are read in blocks instead, which changes no
result. If all images of a set have the same largest value, all scores are 0.

  transductive_score  image scores are re-weighted over similar images (RsCIN);
                      False: the largest value of the map, which depends on the
                      other images through the map alone
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax import types
from zsad_jax.layers import (
  dual_path,
  memory_bank,
  neighborhoods,
  ranges,
  score_fusion,
  similarity,
)
from zsad_jax.types import Features, Params

_EPSILON = 1e-5  # Of torch's LayerNorm.


@dataclasses.dataclass(frozen=True)
class Method(types.TrainingFree):
  """Settings, with the authors' values as defaults.

  Implements `types.ScoresSets` and `types.Transductive`.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are compared.
    neighborhoods: sides r of the neighborhoods over which tokens are averaged.
    nearest_images: share of the other images, those with the least distances,
      that the score of a patch averages over.
    similar_images: numbers k of images that an image score averages over; the
      image itself is the first of them. The authors take 1, 8, 9 on VisA.
    transductive_score: see above.
    activation: activation of the backbone; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  feature_layers: tuple[int, ...] = (6, 12, 18, 24)
  neighborhoods: tuple[int, ...] = (1, 3, 5)
  nearest_images: float = 0.3
  similar_images: tuple[int, ...] = (1, 2, 3)
  transductive_score: bool = True
  activation: types.Activation | None = "gelu_erf"
  pos_resize: types.PositionResize = "bicubic"

  def __post_init__(self) -> None:
    types.TrainingFree.__post_init__(self)
    counts = ["feature_layers", "neighborhoods", "similar_images"]
    ranges.check(
      self,
      counts=counts,
      positive=["nearest_images"],
      shares=["nearest_images"],
    )
    for name in counts:
      if not getattr(self, name):
        raise ValueError(
          f"config.method.{name}: there has to be one, got none."
        )
    if even := [r for r in self.neighborhoods if r % 2 == 0]:
      raise ValueError(
        f"config.method.neighborhoods has to be odd, got {even[0]}."
      )

  @property
  def min_set_size(self) -> int:
    """Least number of images of which a patch has one nearest image."""
    size = 2
    while not self.num_nearest(size):
      size += 1
    return size

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def num_nearest(self, num_images: int) -> int:
    """Return how many of the other images of a set a patch is scored by."""
    return int(self.nearest_images * (num_images - 1))

  @property
  def needs_text(self) -> bool:
    """Whether the method needs a text encoder: no."""
    return False

  def prepare(
    self, backbone: types.ImageBackbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Return nothing: there is no text."""
    del backbone, class_names
    return {}

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> Features:
    """Return the normalized patch tokens and the image embedding (Code).

    Args:
      backbone: frozen image encoder.
      batch: "image" (b, h, w, 3), square, and "class_id".

    Returns:
      "tokens" (b, n, l, c) of n layers, normalized over all patches and
      channels of a layer, and "class_unit" (b, d).
    """
    dual_path.check_layers(backbone, self.feature_layers)
    embed, out = backbone.image(batch["image"], **self.image_hooks)
    tokens = [out[f"block{layer:02d}"] for layer in self.feature_layers]
    tokens = jnp.stack(tokens, axis=1)[:, :, 1:]
    centred = tokens - tokens.mean(axis=(2, 3), keepdims=True)
    variance = jnp.square(centred).mean(axis=(2, 3), keepdims=True)
    return {
      "class_id": batch["class_id"],
      "class_unit": similarity.unit(embed),
      "tokens": centred / jnp.sqrt(variance + _EPSILON),
    }

  def aggregate(
    self, tokens: Float[Array, "b l c"], size: int
  ) -> Float[Array, "b l c"]:
    """Return unit means over the neighborhood of each patch, LNAMD (Code).

    Args:
      tokens: of one layer.
      size: r, side of the neighborhood. Patches outside count as zeros.
    """
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.reshape(-1, side, side, tokens.shape[-1])
    means = neighborhoods.mean(grid, size, padding="zero")
    return similarity.unit(means.reshape(tokens.shape))

  def compare(
    self, features: Features, others: Features
  ) -> Float[Array, "b n r l m"]:
    """Compare each patch of b images with the patches of m others (Code).

    Args:
      features: of the images.
      others: of the other images.

    Returns:
      Half the Euclidean distance to the nearest patch of each other image, in
      [0, 1], by layer and neighborhood.
    """

    def of_layer(pair):
      found = [
        memory_bank.nearest_each(*(self.aggregate(x, size) for x in pair))
        for size in self.neighborhoods
      ]
      return jnp.stack(found, axis=1)

    layers = (features["tokens"], others["tokens"])
    layers = tuple(jnp.moveaxis(x, 1, 0) for x in layers)
    cosine_distance = jnp.moveaxis(jax.lax.map(of_layer, layers), 0, 1)
    return jnp.sqrt(0.5 * cosine_distance)  # Of unit vectors.

  def patch_scores(
    self,
    distances: Float[Array, "b n r l m"],
    set_index: Int[Array, " b"],
  ) -> Float[Array, "b n r l"]:
    """Average each patch's distances to its nearest images, MSM (Code).

    Args:
      distances: to all m images of the set, see `compare`.
      set_index: number of each image in the set, which is left out.
    """
    count = distances.shape[-1]
    itself = jnp.arange(count) == set_index[:, None]
    others = jnp.where(itself[:, None, None, None], jnp.inf, distances)
    nearest = jnp.sort(others, axis=-1)[..., : self.num_nearest(count)]
    return nearest.mean(axis=-1)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: types.ImageBackbone,
    aux: Mapping[str, Array],
    features: Features,
  ) -> types.Prediction:
    """Predict from the comparison with all images of the set (Code).

    Raises:
      ValueError: there is none.
    """
    del params, stats, aux
    if "comparisons" not in features:
      raise ValueError(
        "MuSc scores all images of a set together, not a single image."
      )
    scores = self.patch_scores(features["comparisons"], features["set_index"])
    values = scores.mean(axis=1).mean(axis=1)
    anomaly_map = similarity.to_map(
      values[..., None],
      similarity.image_size(backbone, features, "tokens"),
      method="bilinear_corners",
    )[..., 0]
    largest = anomaly_map.max(axis=(1, 2))
    terms = jnp.concatenate([largest[:, None], features["class_unit"]], axis=1)
    return {
      "anomaly_map": anomaly_map,
      "pred_score": largest,
      "score_terms": terms,
    }

  def category_scores(
    self, terms: Float[np.ndarray, "b n"]
  ) -> Float[np.ndarray, " b"]:
    """Re-weight the scores of a set over similar images, RsCIN (Code).

    Args:
      terms: of each image, the largest value of its map and its unit embedding.

    Returns:
      For each number k of images the mean score, weighted by the cosines, of
      the k most similar ones; averaged over all k.
    """
    scores = score_fusion.min_max(terms[:, 0])
    weights = terms[:, 1:] @ terms[:, 1:].T
    order = np.argsort(-weights, axis=1, kind="stable")
    nearest = np.take_along_axis(weights, order, axis=1)
    values = scores[order]

    def mean(k):
      kept = nearest[:, :k]
      return (kept * values[:, :k]).sum(axis=1) / kept.sum(axis=1)

    found = [mean(k) for k in self.similar_images]
    return functools.reduce(np.add, found) / len(found)


PAPER_NAME = "MuSc"  # In the tables of the papers.
# Settings of the other protocol, by variant of the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
  "visa": dict(similar_images=(1, 8, 9)),
}
TINY = {"feature_layers": (2, 3)}  # Settings for a backbone of three blocks.
