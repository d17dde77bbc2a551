r"""Compare this package with reference tensors, quantity by quantity.

python -m zsad_jax.parity --golden=DIR

  --files=clip_outputs,adaclip   compare only these, and always the losses
  --json=FILE                    write the comparisons as JSON, too

Builds the models that DIR's manifest.json describes, runs them on the stored
inputs and parameters, and prints the largest absolute and relative difference
of every stored quantity, with its tolerance. Exits with 1 when a tolerance is
exceeded or a stored quantity of a covered method is not produced. The method
of a file is the name of the module in this folder that covers it; files of
other methods are listed as not covered.
"""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from zsad_jax.parity import golden as golden_lib
from zsad_jax.runtime import cli, files

_INPUTS = ("clip weights",)  # Methods of files without expected arrays.


def compare_file(
  golden: golden_lib.Golden, file: str
) -> list[golden_lib.Comparison]:
  """Compare all expected arrays of one file, in the order of computation."""
  entry = golden.entry(file)
  module = importlib.import_module(f"{__package__}.{entry.method}")
  missing = dict.fromkeys(entry.expected())
  result = []
  for name, ours in module.quantities(golden, entry):
    stored = name.split(": ")[-1]
    if stored not in entry:
      continue  # More than the folder stores, such as other layers.
    missing.pop(stored, None)
    result.append(
      golden_lib.compare(
        f"{file}: {name}", entry.roles[stored], entry[stored], ours
      )
    )
  nan = float("nan")
  for name in missing:
    problem = "not produced"
    result.append(
      golden_lib.Comparison(f"{file}: {name}", nan, nan, nan, problem)
    )
  return result


def select(
  golden: golden_lib.Golden, stems: Sequence[str] | None
) -> tuple[list[str], list[str]]:
  """Select the files to compare.

  Args:
    golden: the folder.
    stems: file names without suffix; all files where there are none. Losses
      are always included.

  Returns:
    Files to compare, and files that no module covers.

  Raises:
    ValueError: a stem names no file of the manifest.
  """
  files = {f: m for f, m in golden.methods.items() if m not in _INPUTS}
  known = {pathlib.Path(f).stem for f in golden.methods}
  if unknown := sorted(set(stems or ()) - known):
    raise ValueError(
      f"--files: no {', '.join(unknown)} in the manifest; it has "
      f"{', '.join(sorted(known))}."
    )
  covered = lambda m: importlib.util.find_spec(f"{__package__}.{m}")
  wanted = [
    f
    for f, m in files.items()
    if not stems or pathlib.Path(f).stem in stems or m == "losses"
  ]
  chosen = [f for f in wanted if covered(files[f])]
  return chosen, [f for f in wanted if not covered(files[f])]


def _line(c):
  verdict = "ok" if c.holds else f"FAILS {c.problem}".rstrip()
  numbers = f"{c.absolute:9.2e} {c.relative:9.2e} {c.tolerance:9.2e}"
  return f"{numbers}  {verdict:5} {c.name}"


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string(
    "golden", None, "Folder that holds manifest.json.", required=True
  )
  flags.DEFINE_list("files", None, "File names, without suffix, to compare.")
  flags.DEFINE_string("json", None, "JSON file for the comparisons.")


def main(options: flags.FlagValues) -> int:
  """Run the command."""
  jax.config.update("jax_default_matmul_precision", "highest")
  golden = golden_lib.Golden(options.golden)
  chosen, uncovered = select(golden, options.files)
  print(" absolute  relative tolerance  ok?   file: quantity")
  comparisons = []
  for file in chosen:
    for comparison in compare_file(golden, file):
      print(_line(comparison), flush=True)
      comparisons.append(comparison)
  for file in uncovered:
    print(f"not covered: {file} (method {golden.methods[file]})")
  failed = [c for c in comparisons if not c.holds]
  if options.json:
    rows = [{**dataclasses.asdict(c), "holds": c.holds} for c in comparisons]
    document = {"comparisons": rows, "not_covered": uncovered}
    files.write_text(options.json, json.dumps(document, indent=1))
  print(
    f"{len(comparisons)} quantities of {len(chosen)} files compared, "
    f"{len(failed)} exceed their tolerance; "
    f"{len(uncovered)} files not covered."
  )
  return 1 if failed else 0


if __name__ == "__main__":
  cli.run(main, define_flags, alone=True)
