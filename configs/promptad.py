r"""PromptAD (Li et al., CVPR 2024), with the values of the authors' code.

python -m zsad_jax.train --config=configs/promptad.py

  configs/promptad.py              maps of the embedded benchmark with the
                                   embedded small CLIP
  configs/promptad.py:cls          image scores instead of maps
  configs/promptad.py:random       the same with the CLIP's random weights
  configs/promptad.py:paper        ViT-B/16+, 240 px, on VisA
  configs/promptad.py:paper_mvtec  on MVTec AD
  configs/promptad.py:paper,cls    an ablation on top (or alone, embedded):
                                   cls (image scores), exp (the logit scale
                                   with its exponential), features (the
                                   triplet loss over channels), outputs
                                   (feature layers are outputs of blocks)

  --config.references.shots=4      normal training images of each category, of
                                   which alone it learns; the papers have 1, 2
                                   and 4
  --config.references.seed=20      of their choice, as in evaluate --seeds

Each category has parameters and references of its own (config.per_category):
train_data are the categories, of whose test images none is read in training.
Evaluation is on the same categories; predict needs --class_name=CATEGORY.

Measured numbers and run times: docs/results.md.
"""

from typing import Any

from zsad_jax.methods import promptad
from zsad_jax.runtime import config_files
from zsad_jax.types import Config

common = config_files.sibling(__file__, "common")

ABLATIONS: dict[str, dict[str, Any]] = {
  "cls": promptad.branch_settings("cls"),
  "exp": dict(scale="exp"),
  "features": dict(triplet="features"),
  "outputs": dict(before_mlp=False),
}
_SIDE = 400  # Of the authors' maps in pixels.


def get_config(variant: str = "embedded") -> Config:
  """Return the configuration of a variant, see above."""
  return common.choose(variant, _build, ABLATIONS)


def _build(base: str) -> Config:
  config = common.get_config("promptad")
  config.per_category = True
  config.references = dict(shots=2, seed=10)
  config.optax_name = "sgd"
  config.optax = dict(learning_rate=0.002, momentum=0.9)
  config.l2_weight_decay = 5e-4
  config.schedule.update(name="cosine")
  config.schedule.end_learning_rate = 1e-5
  config.batch_size, config.epochs = 400, 100  # All references at each step.
  config.mosaic_prob = 0.0
  config.checkpoint_steps = 100
  config.prompt_names = "verbatim"
  if base == common.EMBEDDED:
    config.train_data = config.test_data
    config.method.feature_layers = (2, 5)  # Of 8, as 3 and 8 of 12.
  else:
    config.backbone.update(
      name="ViT-B-16-plus-240", path="weights/ViT-B-16-plus-240.safetensors"
    )
    config.image_size = 240
    data = ("mvtec",) if base == "paper_mvtec" else ("visa",)
    config.train_data = config.test_data = data
  # Sigma 4 on the authors' maps.
  config.smooth_sigma = 4.0 * config.image_size / _SIDE
  return config
