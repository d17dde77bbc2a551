r"""APRIL-GAN (Chen et al., 2023), with the values of the authors' code.

python -m zsad_jax.train --config=configs/april_gan.py

  configs/april_gan.py             the embedded benchmark with the embedded
                                   small CLIP: minutes on a laptop
  configs/april_gan.py:random      the same with the CLIP's random weights
  configs/april_gan.py:paper       ViT-L/14@336, 518 px, trained on the test
                                   images of MVTec AD, for all other sets:
                                   three epochs, 20 % of them mosaics
  configs/april_gan.py:paper_mvtec trained on those of VisA, for MVTec AD: 15
                                   epochs without mosaics
  configs/april_gan.py:paper,quick an ablation on top (or alone, embedded):
                                   quick (the activation that CLIP was trained
                                   with), transductive (with references, image
                                   scores depend on all images of a category)

Few-shot: evaluate with --shots=1,2,4. The authors train in float16 autocast,
this package in float32; they do not smooth maps.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "quick": dict(activation="quick"),
  "transductive": dict(transductive_score=True),
}
RELEASED = config_files.Released(
  page="https://github.com/ByChelsea/VAND-APRIL-GAN",
  files=(
    ("exps/pretrained/mvtec_pretrained.pth", ""),
    ("exps/pretrained/visa_pretrained.pth", "--config=april_gan:paper_mvtec"),
  ),
  note="in the repository",
)


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("april_gan"))
  if base == common.EMBEDDED:
    layers = (2, 4, 6, 8)
    config.method.update(feature_layers=layers, memory_layers=layers)
    config.method.activation = "quick"  # As the embedded CLIP was trained,
    config.method.cosine_scale = 1 / 0.07  # and its temperature.
    config.epochs = 3
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  config.epochs, config.mosaic_prob = (3, 0.2) if base == "paper" else (15, 0.0)
  config.smooth_sigma = 0.0
  return config
