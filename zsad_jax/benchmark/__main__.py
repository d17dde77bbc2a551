r"""Measures this package on this machine.

python -m zsad_jax.benchmark metrics
python -m zsad_jax.benchmark data
python -m zsad_jax.benchmark methods
python -m zsad_jax.benchmark steps
python -m zsad_jax.benchmark epochs
python -m zsad_jax.benchmark parts
python -m zsad_jax.benchmark growth
python -m zsad_jax.benchmark scale

  metrics   the pixel metrics of a category: streamed and exact, beside
            scikit-learn and the published 200-threshold AUPRO
            --images=186 (of 518 x 518: 50 million pixels), --slow=False leaves
            out the 200 thresholds, --alone=True all but the streamed ones
  data      decoding, resizing and batching: images per second beside Pillow
            called in a loop, and from the cache; memory over --many=10000
            images
  methods   the vision tower beside matrix products of its shapes and
            transformers' CLIP (where torch is installed), and each method in
            units of it, with the share of the products' rate that it reaches:
            --model=ViT-L-14-336 --dtype=float32|bfloat16 --image_size=518
            --batch=1 --methods=NAMES --training --shots=4 --rounds=3
  steps     AdaCLIP's training step, its vision blocks recomputed in the
            backward pass or kept: seconds and memory; --batches=1,4
  epochs    training from stored features: the pass, a further epoch beside
            the first, steps that encode; --methods=NAMES --images=32
            --references=4 --encoding=1
  parts     where the time of a prediction goes: decoding, both towers, what
            is behind them, smoothing, metrics; flags as of methods
  growth    a prediction's time by batch, image size and devices:
            --model=ViT-L-14-336 --batches=1,2,4,8
            --sizes=112,224,336
  scale     an index of --images=150000, its stored features, an epoch and its
            evaluation on a tiny backbone: seconds and memory

Ratios are of one run, in which the parts take turns on the same data.
--json=FILE keeps the numbers.
"""

import importlib
import sys

from absl import flags

from zsad_jax.runtime import cli

PARTS = (
  "metrics",
  "data",
  "methods",
  "steps",
  "epochs",
  "parts",
  "growth",
  "scale",
)


def _part(arguments):
  if len(arguments) != 1 or arguments[0] not in PARTS:
    raise ValueError(f"Name what to measure: {', '.join(PARTS)}.")
  return importlib.import_module(f"{__package__}.{arguments[0]}")


def define_flags():
  """The flags of the part that was asked for."""
  flags.DEFINE_string("json", None, "File for the numbers.")
  # Only the asked one's: each needs other packages.
  for part in PARTS:
    if part in sys.argv[1:2]:
      importlib.import_module(f"{__package__}.{part}").define_flags()


def main(options):
  _part(options.arguments).main(options)


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
