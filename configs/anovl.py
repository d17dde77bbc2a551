r"""AnoVL (Deng et al., 2023); adapts to each test image, nothing is trained.

python -m zsad_jax.train --config=configs/anovl.py

  configs/anovl.py                  the embedded benchmark with the embedded
                                    small CLIP
  configs/anovl.py:random           the same with the CLIP's random weights
  configs/anovl.py:paper            ViT-B/16+, 240 px, on VisA
  configs/anovl.py:paper_mvtec      on MVTec AD
  configs/anovl.py:paper,visa       an ablation on top (or alone, embedded):
                                    visa (the authors' script for VisA), direct
                                    (no adaptation), single_view (image score
                                    without views)

The weights of the paper are LAION-400M's, epoch 32. The default is the authors'
script for MVTec AD; see methods/anovl.py. With the small CLIP the value-value
stream starts at block 5, as for the other methods. An image takes 22 passes
through the image encoder and five steps of the adapter.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.methods import anovl
from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **anovl.VARIANTS,
  "direct": dict(adapter=None),
  "single_view": dict(views=1),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.like_anomalyclip(common.get_config("anovl"))
  config.epochs = 0
  config.smooth_sigma = 0.0
  if base == common.EMBEDDED:
    config.method.activation = "quick"  # As the embedded CLIP was trained.
    config.method.vv_from = 5  # As its memory bank does.
    config.method.textures = (
      *("carpet", "wood", "leather", "terrazzo"),
      *("wire grid", "knitted wool", "mosaic tile"),
    )
    return config
  config.backbone.update(
    name="ViT-B-16-plus-240", path="weights/ViT-B-16-plus-240.safetensors"
  )
  config.image_size = 240
  config.eval_batch_size = 4
  config.prompt_names = "verbatim"
  return common.on_mvtec_and_visa(config, base)
