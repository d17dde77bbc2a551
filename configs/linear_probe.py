r"""Linear probe of an image encoder: SAM in the tables of AdaCLIP.

python -m zsad_jax.train --config=configs/linear_probe.py

  configs/linear_probe.py             the embedded benchmark with the embedded
                                      small CLIP: minutes on a laptop
  configs/linear_probe.py:random      the same with the CLIP's random weights
  configs/linear_probe.py:paper       SAM ViT-L at 1,024 px with the text of
                                      ViT-L/14@336, trained on MVTec AD +
                                      ColonDB for all other sets, five epochs
                                      of one image per step
  configs/linear_probe.py:paper_mvtec the same on VisA + ClinicDB, for MVTec AD
                                      and ColonDB
  configs/linear_probe.py:paper,linear2  an ablation on top (or alone,
                                      embedded): linear2, logits of the states
                                      without text; quick (the activation that
                                      CLIP was trained with); dice_image

Any image encoder is probed by --config.backbone.name and its path, such as
DINOv2 ViT-S/14 of the appendix, at 518 px and layers 3, 6, 9 and 12:
--config.image_size=518 --config.method.feature_layers='(3,6,9,12)'.

The appendix names encoder, layers and "the same training set"; schedule,
selection and image size are those of AdaCLIP's code and SAM's own size.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "linear2": dict(head="linear2"),
  "quick": dict(text_activation="quick"),
  "dice_image": dict(dice="image"),
}


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  config = common.choose(variant, _build, ABLATIONS)
  if config.method.head == "linear2":  # Without text.
    config.text_backbone.update(name="", path="")
  return config


def _build(base: str) -> Config:
  config = common.get_config("linear_probe")
  config.optax_name = "adamw"
  config.optax = dict(
    learning_rate=0.01,
    b1=0.5,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,  # torch's default, not optax's.
  )
  config.memory.vv_from = None  # Only CLIP has a value-value stream.
  if base == common.EMBEDDED:
    config.method.feature_layers = (2, 4, 6, 8)
    config.method.text_activation = "quick"  # As the CLIP was trained.
    config.optax.update(learning_rate=0.001)
    return config
  config = common.on_vit_l_14_336(config)
  config.text_backbone.update(
    name=config.backbone.name, path=config.backbone.path
  )
  config.backbone.update(
    name="sam-vit-large", path="weights/sam-vit-large.safetensors"
  )
  config.memory.vv_from = None
  config.image_size = 1024
  config.epochs = 5
  config.selection = "official"
  if base == "paper":
    config.train_data = ("mvtec", "colondb")
    config.selection_data = config.test_data = ("visa",)
  else:
    config.train_data = ("visa", "clinicdb")
    config.selection_data = config.test_data = ("mvtec",)
  return config
