r"""Pretraining of the embedded small CLIP on synthetic images.

python -m zsad_jax.pretrain --config=configs/tiny_clip.py

It takes one to two hours on two CPU cores and gives the weights that the
package ships: see zsad_jax/backbones/clip/TINY_CLIP.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Return the configuration.

  Fields:
    seed: seed of weights, images, order and captions.
    model: sizes, see zsad_jax.backbones.clip.config.ClipConfig.
    pairs, held_out: number of pairs of images (normal, anomalous) for training
      and for evaluation.
    batch_size: images per step; both images of a pair are in the same step.
    states: pairs of state prompts per step.
    keep, whole_steps: number of patches per image that are not dropped, half
      of them; the last `whole_steps` steps use all patches.
    objective: see zsad_jax.pretraining.objective.Objective.
    steps, warmup: optimizer steps in total and of the linear warmup; the
      learning rate then decays to 0 by a cosine.
    learning_rate, weight_decay: of Muon for matrices and AdamW for the rest;
      AdamW has no weight decay.
    log_steps, measure_steps, checkpoint_steps: steps between log lines,
      evaluations and checkpoints.
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
