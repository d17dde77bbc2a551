"""Any zero-shot method with a memory of normal patches: its "+" form.

AnomalyCLIP+ of Gao et al. (AdaptCLIP, AAAI 2026): WinCLIP's association of
patches beside a frozen method. Two things there are not said and chosen so:
distances are halved and averaged over layers, and the image score is the mean
of the method's and the largest distance.
"""

import dataclasses

import jax.numpy as jnp

from zsad_jax import types
from zsad_jax.layers import dual_path, memory_bank, similarity


def with_memory_bank(
  method: types.Method, *, feature_layers, vv_from
) -> types.DetectionModel:
  """The method itself if it knows references, else its "+" form."""
  return (
    method
    if method.num_references
    else WithMemoryBank(method, tuple(feature_layers), vv_from)
  )


@dataclasses.dataclass(frozen=True)
class WithMemoryBank:
  """A zero-shot method beside a memory; for prediction only.

  Attributes:
    method: the zero-shot method.
    feature_layers: layers (1-based) whose patches are compared.
    vv_from: first layer of the value-value stream; None for plain CLIP.
  """

  method: types.Method
  feature_layers: tuple[int, ...]
  vv_from: int | None

  def prepare(self, backbone, class_names):
    """The method's."""
    return self.method.prepare(backbone, class_names)

  def encode(self, backbone, batch):
    """The method's features, and unit patches of all layers."""
    # What the method computes as well is computed once: equal parts of one
    # compiled program are merged.
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

  def build_memory_bank(self, features):
    """Patches of references: (n, shots, layers, l, d) as they are."""
    return features["patch_units"]

  def predict(self, params, stats, backbone, aux, features):
    """The method's prediction, with a memory averaged with the distance."""
    zero_shot = self.method.predict(
      params, stats, backbone, aux, features["method"]
    )
    if "memory_bank" not in features:
      return zero_shot
    return self.fuse_with_references(zero_shot, features)

  def fuse_with_references(self, zero_shot, features):
    """A prediction made without a memory, averaged with the distance to it."""
    bank, layers = features["memory_bank"], range(len(self.feature_layers))
    distances = [
      memory_bank.nearest(features["patch_units"][:, i], bank[:, :, i])[0]
      for i in layers
    ]
    # Half of a cosine distance lies in [0, 1], as probabilities do.
    distance = 0.5 * sum(distances) / len(distances)
    size = zero_shot["anomaly_map"].shape[1:]
    few = similarity.to_map(distance[..., None], size, method="bilinear")
    few = few[..., 0]
    return {
      "anomaly_map": 0.5 * (zero_shot["anomaly_map"] + few),
      "pred_score": 0.5 * (zero_shot["pred_score"] + few.max(axis=(1, 2))),
    }
