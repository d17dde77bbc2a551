r"""SubspaceAD (Lendering et al., CVPR 2026); nothing is trained.

python -m zsad_jax.train --config=configs/subspacead.py

  configs/subspacead.py             the embedded benchmark with the embedded
                                    small CLIP
  configs/subspacead.py:random      the same with the CLIP's random weights
  configs/subspacead.py:paper       DINOv2 ViT-g/14 with registers, 672 px, on
                                    VisA
  configs/subspacead.py:paper_mvtec on MVTec AD
  configs/subspacead.py:paper,no_rotation
                                    an ablation on top (or alone, embedded):
                                    no_rotation (references as they are), smooth
                                    (maps as in the paper's text), local (means
                                    over 3 x 3 patches, for textures)

It needs references: evaluate with --shots=1,2,4, which is 1 by default. A
backbone with fewer layers needs other --config.method.feature_layers; the
defaults are from 57 to 72 % of the depth.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "no_rotation": dict(num_rotations=0),
  "smooth": dict(smoothing="paper"),
  "local": dict(neighborhood=3),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("subspacead"))
  config.epochs = 0
  config.smooth_sigma = 0.0  # The method smooths its maps.
  if base == common.EMBEDDED:
    config.method.feature_layers = (5, 6)
    return config
  name = "dinov2-with-registers-giant"
  config.backbone.update(name=name, path=f"weights/{name}.safetensors")
  config.image_size = 672
  config.eval_batch_size = 1
  config.prompt_names = "verbatim"
  config.memory.feature_layers, config.memory.vv_from = (29,), None
  return common.on_mvtec_and_visa(config, base)
