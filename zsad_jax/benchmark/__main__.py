r"""Measures this package on this machine.

python -m zsad_jax.benchmark metrics

  metrics   the pixel metrics of a category: streamed and exact, beside
            scikit-learn and the published 200-threshold AUPRO
            --images=186 (of 518 x 518: 50 million pixels), --slow=False leaves
            out the 200 thresholds, --alone=True all but the streamed ones

Ratios are of one run: the parts take turns on the same data, each in a process
of its own, whose peak memory is shown. --json=FILE keeps the numbers.
"""

import importlib

from zsad_jax import cli

PARTS = ("metrics",)


def _part(arguments):
  if len(arguments) != 1 or arguments[0] not in PARTS:
    raise ValueError(f"Name what to measure: {', '.join(PARTS)}.")
  return importlib.import_module(f"{__package__}.{arguments[0]}")


def define_flags():
  """The flags of all parts."""
  for part in PARTS:
    importlib.import_module(f"{__package__}.{part}").define_flags()


def main(options):
  _part(options.arguments).main(options)


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
