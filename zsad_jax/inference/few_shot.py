"""Few-shot extension of zero-shot methods by a memory bank of normal patches.

AnomalyCLIP+ of Gao et al. (AdaptCLIP, AAAI 2026): WinCLIP's patch association,
added to a frozen zero-shot method. The paper leaves details open, which are
chosen here: distances are halved and averaged over layers, and the image score
is the mean of the method's score and the largest distance, of a pixel of the
resized map or of a patch. Other weights of this mean are possible; without the
zero-shot part the distances alone remain, as in PatchCore. The layers of the
zero-shot map are those of the method; AnomalyCLIP with the same four layers is
its variant `multilayer`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax import types
from zsad_jax.layers import dual_path, memory_bank, similarity

Score = Literal["pixels", "patches"]


def with_memory_bank(
  method: types.Method,
  *,
  feature_layers: Sequence[int],
  vv_from: int | None,
  score: Score = "pixels",
  zero_shot_weight: float = 0.5,
  coreset: float | None = None,
  coreset_width: int | None = None,
) -> types.DetectionModel:
  """Return a few-shot detector for a method.

  The fields of `config.memory`. The coreset is taken where the memory bank is
  built, see `predictor.Predictor`.

  Args:
    method: returned as it is if it compares with references itself.
    feature_layers: layers (1-based) whose patches are compared.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    score: what the largest distance is taken of. Runs of older versions have
      no such field.
    zero_shot_weight: of the zero-shot prediction, in [0, 1].
    coreset: share of the memory bank that is kept, see `layers.coreset`.
    coreset_width: of the random projection of its distances.

  Raises:
    ValueError: the method's own memory bank cannot be reduced.
  """
  del coreset_width
  if method.compares_references:
    if coreset is not None and not method.reducible_memory_bank:
      name = type(method).__module__.rpartition(".")[2]
      raise ValueError(
        f"config.memory.coreset is {coreset}, but {name} compares with whole "
        "references: set it to None."
      )
    return method
  return WithMemoryBank(
    method, tuple(feature_layers), vv_from, score, zero_shot_weight
  )


@dataclasses.dataclass(frozen=True)
class WithMemoryBank:
  """A zero-shot method with a memory bank; for prediction only.

  Implements `types.FusesZeroShot`.

  Attributes:
    method: the zero-shot method.
    feature_layers: layers (1-based) whose patches are compared.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    score: what the largest distance is taken of.
    zero_shot_weight: of the zero-shot prediction, in [0, 1].
  """

  method: types.Method
  feature_layers: tuple[int, ...]
  vv_from: int | None
  score: Score = "pixels"
  zero_shot_weight: float = 0.5

  def prepare(self, backbone: Any, class_names: Sequence[str]) -> Any:
    """Return the method's class-dependent values."""
    return self.method.prepare(backbone, class_names)

  def encode(self, backbone: Any, batch: types.Batch) -> types.Features:
    """Return the method's features, and unit patch embeddings per layer."""
    # Computations shared with the method's own `encode` run once: XLA merges
    # identical subexpressions of a compiled program.
    _, tokens = dual_path.encode(
      backbone,
      batch["image"],
      feature_layers=self.feature_layers,
      vv_from=self.vv_from,
      class_ln_post=False,
      **self.method.image_hooks,
    )
    return {
      "method": self.method.encode(backbone, batch),
      "patch_units": similarity.unit(jnp.stack(tokens, axis=1)[:, :, 1:]),
    }

  def build_memory_bank(self, features: types.Features) -> jax.Array:
    """Return the reference patches, unchanged: (n, shots, layers, l, d)."""
    return features["patch_units"]

  def predict(
    self,
    params: Any,
    stats: Any,
    backbone: Any,
    aux: Any,
    features: types.Features,
  ) -> types.Prediction:
    """Predict zero-shot, or few-shot where there is a memory bank."""
    zero_shot = self.method.predict(
      params, stats, backbone, aux, features["method"]
    )
    if "memory_bank" not in features:
      return zero_shot
    return self.fuse_with_references(zero_shot, features)

  def fuse_with_references(
    self, zero_shot: types.Prediction, features: types.Features
  ) -> types.Prediction:
    """Average a zero-shot prediction with the distance to the references."""
    weight = self.zero_shot_weight
    distances = self.distances(features)
    distance = sum(distances[1:], distances[0]) / len(distances)
    _, height, width = zero_shot["anomaly_map"].shape
    few = similarity.to_map(
      distance[..., None], (height, width), method="bilinear"
    )
    few = few[..., 0]
    largest = (
      distance.max(axis=1) if self.score == "patches" else few.max(axis=(1, 2))
    )

    def mean(alone, compared):
      return weight * alone + (1 - weight) * compared

    return {
      "anomaly_map": mean(zero_shot["anomaly_map"], few),
      "pred_score": mean(zero_shot["pred_score"], largest),
    }

  def distances(self, features: types.Features) -> list[Float[Array, "b l"]]:
    """Return the halved cosine distance to the references of each layer.

    Half of a cosine distance is in [0, 1], as probabilities are.
    """
    bank, layers = features["memory_bank"], range(len(self.feature_layers))
    return [
      0.5 * memory_bank.nearest(features["patch_units"][:, i], bank[:, :, i])[0]
      for i in layers
    ]
