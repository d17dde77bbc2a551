r"""InCTRL (Zhu and Pang, CVPR 2024), with the values of the authors' code.

python -m zsad_jax.train --config=configs/inctrl.py

  configs/inctrl.py              the embedded benchmark with the embedded
                                 small CLIP: minutes on a laptop
  configs/inctrl.py:random       the same with the CLIP's random weights
  configs/inctrl.py:paper        ViT-B/16+, 240 px, trained on the test
                                 images of MVTec AD, for all other sets
  configs/inctrl.py:paper_mvtec  trained on those of VisA, for MVTec AD
  configs/inctrl.py:paper,shots4 an ablation on top (or alone, embedded):
                                 shots1, shots4, shots8 (references of a
                                 training image), mixed (the batches of the
                                 authors' code), probabilities (the loss of
                                 the paper), residual (distances of patches
                                 as maps)

Image scores only, always with references: evaluate with --shots=1,2,4. The
authors train one model for each of 2, 4 and 8 references; any model predicts
with any number.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  **{f"shots{k}": dict(train_shots=k) for k in (1, 4, 8)},
  "mixed": dict(grouping="mixed"),
  "probabilities": dict(loss_input="probabilities"),
  "residual": dict(maps="residual"),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.get_config("inctrl")
  config.seed = 10
  config.optax_name = "adamw"
  adam = dict(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-8)
  config.optax = adam | dict(weight_decay=0.01)  # Of torch, not of optax.
  config.batch_size, config.epochs = 16, 10
  config.mosaic_prob = 0.0
  config.smooth_sigma = 0.0
  if base == common.EMBEDDED:
    config.method.update(feature_layers=(5, 6, 7), grid=14)
    return config
  config.backbone.update(
    name="ViT-B-16-plus-240", path="weights/ViT-B-16-plus-240.safetensors"
  )
  config.image_size = 240
  config.prompt_names = "verbatim"
  return common.on_mvtec_and_visa(config, base)
