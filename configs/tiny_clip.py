r"""The embedded small CLIP: contrastive pretraining on drawn pictures.

python -m zsad_jax.pretrain --config=configs/tiny_clip.py

An hour or two on two cores. The weights that the package ships were made by
it: see zsad_jax/backbones/clip/TINY_CLIP.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the recipe.

  Fields:
    seed: of weights, pictures, order and captions.
    model: sizes, see zsad_jax.backbones.clip.config.ClipConfig.
    pairs, held_out: pairs of pictures (sound, damaged) to learn from and to
      measure with.
    batch_size: pictures per step, both of a pair in the same step.
    states: pairs of sentences about states per step.
    keep, whole_steps: patches of a picture that are seen, half of them, but
      for the last steps, which see all.
    objective: see zsad_jax.pretraining.objective.Objective.
    steps, warmup: optimiser steps; cosine decay after the warm-up.
    learning_rate, weight_decay: of Muon on matrices, AdamW on the rest.
  """
  config = ConfigDict()
  config.name = "tiny_clip"
  config.seed = 0
  config.model = dict(
    embed_dim=128,
    image_size=112,
    patch_size=8,
    vision_width=160,
    vision_layers=8,
    text_width=160,
    text_layers=5,
    vision_heads=5,
    text_heads=5,
  )
  config.pairs = 16_384
  config.held_out = 512
  config.batch_size = 32
  config.states = 4
  config.keep = 98
  config.whole_steps = 120
  config.objective = dict(
    feature_layers=("block05", "block08", "vv/block08"),
    vv_from=5,
    temperature=0.07,
    captions=0.1,  # A sum over the captions of a batch.
    states=2.0,
    patches=3.0,
    visible=0.05,
    positive=3.0,
  )
  config.steps = 2_000
  config.warmup = 200
  config.learning_rate = 0.002
  config.weight_decay = 0.05
  config.log_steps = 50
  config.measure_steps = 250
  config.checkpoint_steps = 100
  config.matmul_precision = "highest"
  return config
