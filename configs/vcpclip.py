r"""VCP-CLIP (Qu et al., ECCV 2024), with the values of the authors' code.

python -m zsad_jax.train --config=configs/vcpclip.py

  configs/vcpclip.py             the embedded benchmark with the embedded small
                                 CLIP: minutes on a laptop
  configs/vcpclip.py:random      the same with the CLIP's random weights
  configs/vcpclip.py:paper       ViT-L/14@336, 518 px, trained on the test
                                 images of MVTec AD, for all other sets
  configs/vcpclip.py:paper_mvtec trained on those of VisA, for MVTec AD
  configs/vcpclip.py:paper,base  an ablation on top (or alone, embedded): base,
                                 post (the map of one branch), no_global (class
                                 vectors that depend on no image), r1 ... r4
                                 class vectors, n1 ... n4 deep tokens, scaled
                                 (attention), quick (the activation that CLIP
                                 was trained with)

Differences from the authors' recipe, besides config.method:
  augmentation     same operations and ranges, other random numbers; every step
                   encodes its images; --config.augmentation=none for none
  mosaics          theirs, on MVTec AD, of anomalous images alone, with other
                   random numbers; --config.mosaic_prob=0.0 for none
  precision        authors: float16 autocast; this package: float32

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "base": dict(base_weight=1.0),
  "post": dict(base_weight=0.0),
  "no_global": dict(use_global=False),
  **{f"r{r}": dict(num_class_vectors=r) for r in (1, 2, 3, 4)},
  **{f"n{n}": dict(deep_length=n) for n in (1, 2, 3, 4)},
  "scaled": dict(scaled_attention=True),
  "quick": dict(activation="quick"),
}
RELEASED = config_files.Released(
  page="https://github.com/xiaozhen228/VCP-CLIP",
  files=(
    ("train_mvtec.pth", ""),
    ("train_visa.pth", "--config=vcpclip:paper_mvtec"),
  ),
  note="on Google Drive, by the links of the README; MIT by its README",
)


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("vcpclip"))
  config.seed = 333
  temperatures = dict(params="log_scale/.*", learning_rate=0.01)
  config.param_groups = dict(temperatures=temperatures)
  config.memory.vv_from = None  # Shares the pass of the method.
  if base == common.EMBEDDED:
    config.method.feature_layers = (2, 4, 6, 8)
    config.method.activation = "quick"  # As the embedded CLIP was trained.
    config.method.top_pixels = 94  # The same share of an image of 112 pixels.
    config.epochs = 3
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  config.memory.vv_from = None
  config.epochs, config.batch_size, config.smooth_sigma = 10, 32, 8.0
  on_mvtec = base == "paper"
  config.optax.learning_rate = 2e-5 if on_mvtec else 4e-5
  config.mosaic_prob = 0.2 if on_mvtec else 0.0
  config.mosaic_images, config.mosaic_label = "anomalous", "any"
  config.augmentation = "vcpclip"
  return config
