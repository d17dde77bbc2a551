r"""Measure speed and memory of this package on this machine.

python -m zsad_jax.benchmark metrics
python -m zsad_jax.benchmark data
python -m zsad_jax.benchmark methods
python -m zsad_jax.benchmark steps
python -m zsad_jax.benchmark epochs
python -m zsad_jax.benchmark breakdown
python -m zsad_jax.benchmark scaling
python -m zsad_jax.benchmark scale
python -m zsad_jax.benchmark compile
python -m zsad_jax.benchmark export
python -m zsad_jax.benchmark memory

  metrics    the pixel metrics of a category: streaming and exact, compared
             with scikit-learn and the published 200-threshold AUPRO
             --images=186 (of 518 x 518: 50 million pixels); --slow=False omits
             the 200 thresholds, --alone=True all but the streaming metrics
  data       decoding, resizing and batching: images per second, compared with
             Pillow in a loop, and from the cache; memory over --many=10000
             images
  methods    the vision tower compared with matrix products of its shapes and
             with transformers' CLIP (where torch is installed); each method in
             units of the tower, with its share of the products' rate:
             --model=ViT-L-14-336 --dtype=float32|bfloat16 --image_size=518
             --batch=1 --methods=NAMES --training --shots=4 --rounds=3
  steps      AdaCLIP's training step, with the MLPs of the vision tower
             recomputed in the backward pass or stored: seconds and memory;
             --batches=1,4
  epochs     training from cached features: the feature pass, a further epoch
             relative to the first, steps that encode; --methods=NAMES
             --images=32 --references=4 --encoding=1
  breakdown  time of a prediction by stage: decoding, both towers, the head,
             smoothing, metrics; flags as for methods
  scaling    time of a prediction by batch size, image size and devices:
             --model=ViT-L-14-336 --batches=1,2,4,8 --sizes=112,224,336
  scale      an index of --images=150000, its cached features, an epoch and its
             evaluation with a tiny backbone: seconds and memory
  compile    all programs compiled for TPU slices or GPUs that are not there:
             memory, largest batch, FLOPs, operations between devices
             --target=v5e:8x8,h100:1x8 --methods=NAMES --programs=NAMES
             --dtype=bfloat16|float32 --per_chip=4 --largest --effort=-1
             --attention=exact|flash --resume
  export     exported programs compared with the live model: largest difference,
             file size, seconds per image; --methods=NAMES or --runs=FOLDERS
             --formats=stablehlo,onnx --shots=2
  memory     the nearest of a million vectors in units of the matrix products,
             peak memory, and a step of the greedy coreset; --vectors=1000000
             --width=1024 --queries=1369 --steps=4 --rounds=3

Ratios are of one run, in which the candidates take turns on the same data.
--json=FILE writes the numbers to a file.
"""

import importlib
import sys
import types

from absl import flags

from zsad_jax.runtime import cli

BENCHMARKS = (
  "metrics",
  "data",
  "methods",
  "steps",
  "epochs",
  "breakdown",
  "scaling",
  "scale",
  "compile",
  "export",
  "memory",
)


def _benchmark(arguments: list[str]) -> types.ModuleType:
  if len(arguments) != 1 or arguments[0] not in BENCHMARKS:
    raise ValueError(f"Name one benchmark: {', '.join(BENCHMARKS)}.")
  return importlib.import_module(f"{__package__}.{arguments[0]}")


def define_flags() -> None:
  """Define the flags of the benchmark that the command line names."""
  flags.DEFINE_string("json", None, "JSON file for the numbers.")
  defined = set(flags.FLAGS)
  # Of that one alone: each needs other packages.
  for name in BENCHMARKS:
    if name in sys.argv[1:2]:
      importlib.import_module(f"{__package__}.{name}").define_flags()
  for name in sorted(set(flags.FLAGS) - defined):
    flags.declare_key_flag(name)  # --help lists it.


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  _benchmark(options.arguments).main(options)


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True, alone=True)
