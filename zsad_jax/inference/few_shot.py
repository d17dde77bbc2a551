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


def with_memory(method: types.Method, *, taps, vv_from) -> types.Detector:
  """The method itself if it knows references, else its "+" form."""
  return method if method.num_references else Plus(method, tuple(taps), vv_from)


def needs_references(method: types.Method) -> bool:
  """Whether a method says nothing without references."""
  return getattr(method, "needs_references", False)


@dataclasses.dataclass(frozen=True)
class Plus:
  """A zero-shot method beside a memory; for prediction only.

  Attributes:
    method: the method; it needs the fields `act` and `pos_resize`.
    taps: layers (1-based) whose patches are compared.
    vv_from: first layer of the value-value stream; None for plain CLIP.
  """

  method: types.Method
  taps: tuple[int, ...]
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
      taps=self.taps,
      vv_from=self.vv_from,
      act=self.method.act,
      pos_resize=self.method.pos_resize,
      class_ln_post=False,
    )
    return {
      "method": self.method.encode(backbone, batch),
      "patch_units": similarity.unit(jnp.stack(tokens, axis=1)[:, :, 1:]),
    }

  def remember(self, features):
    """Patches of references: (n, shots, layers, l, d) as they are."""
    return features["patch_units"]

  def predict(self, params, stats, backbone, aux, features):
    """The method's prediction, with a memory averaged with the distance."""
    alone = self.method.predict(
      params, stats, backbone, aux, features["method"]
    )
    return self.beside(alone, features) if "memory" in features else alone

  def beside(self, alone, features):
    """A prediction made without a memory, averaged with the distance to it."""
    bank, layers = features["memory"], range(len(self.taps))
    distances = [
      memory_bank.nearest(features["patch_units"][:, i], bank[:, :, i])[0]
      for i in layers
    ]
    # Half of a cosine distance lies in [0, 1], as probabilities do.
    distance = 0.5 * sum(distances) / len(distances)
    size = alone["anomaly_map"].shape[1:]
    few = similarity.to_map(distance[..., None], size, method="bilinear")
    few = few[..., 0]
    return {
      "anomaly_map": 0.5 * (alone["anomaly_map"] + few),
      "pred_score": 0.5 * (alone["pred_score"] + few.max(axis=(1, 2))),
    }
