r"""Zero-shot CLIP baseline with WinCLIP's state prompts; nothing is trained.

python -m zsad_jax.train --config=configs/clip.py

  configs/clip.py             the embedded benchmark with the embedded CLIP
  configs/clip.py:random      the same with the CLIP's random weights
  configs/clip.py:paper       ViT-L/14@336, 518 px, on VisA
  configs/clip.py:paper_mvtec on MVTec AD
  configs/clip.py:paper,ac    another text on top (or alone, embedded): pair,
                              CLIP with two prompts, and ac, CLIP-AC with the
                              templates for ImageNet, as FAPrompt and
                              AnomalyCLIP compare with; no_stop, the pair
                              without full stops; raw, mean of raw embeddings

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "pair": dict(prompts="pair"),
  "no_stop": dict(prompts="pair_no_stop"),
  "ac": dict(prompts="imagenet"),
  "raw": dict(text_average="raw"),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("clip"))
  config.epochs = 0
  if base == common.EMBEDDED:
    config.method.temperature = 0.07
    config.image_size = 168  # 1.5 times that of pretraining, as in the papers.
    return config
  config = common.on_vit_l_14_336(config)
  config = common.on_mvtec_and_visa(config, base)
  return config
