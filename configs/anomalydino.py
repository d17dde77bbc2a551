r"""AnomalyDINO (Damm et al., WACV 2025); nothing is trained.

python -m zsad_jax.train --config=configs/anomalydino.py

  configs/anomalydino.py             the embedded benchmark with the embedded
                                     small CLIP
  configs/anomalydino.py:random      the same with the CLIP's random weights
  configs/anomalydino.py:paper       DINOv2 ViT-S/14, 448 px, on VisA
  configs/anomalydino.py:paper_mvtec on MVTec AD
  configs/anomalydino.py:paper,no_rotation
                                     an ablation on top (or alone, embedded):
                                     no_rotation (references as they are),
                                     no_mask (of the background), mask (in all
                                     classes)

It needs references: evaluate with --shots=1,2,4, which is 1 by default. Another
backbone: --config.backbone.name=dinov2-base with its --config.backbone.path;
dinov2-random has random weights and needs no file.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "no_rotation": dict(rotations=(0.0,)),
  "no_mask": dict(masking="never"),
  "mask": dict(masking="always"),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("anomalydino"))
  config.epochs = 0
  if base == common.EMBEDDED:
    return config
  config.backbone.update(
    name="dinov2-small", path="weights/dinov2-small.safetensors"
  )
  config.image_size = 448
  config.eval_batch_size = 1
  config.prompt_names = "verbatim"  # Classes to mask have these names.
  config.memory.feature_layers, config.memory.vv_from = (12,), None
  return common.on_mvtec_and_visa(config, base)
