r"""List published weights; fetch, verify and convert those of a backbone.

python -m zsad_jax.weights list
python -m zsad_jax.weights get ViT-L-14-336
python -m zsad_jax.weights get hf:OWNER/NAME --output=runs/NAME

  list  the weights of backbones that can be fetched, with their licences, and
        where the authors of methods publish their checkpoints
  get   fetch weights from the Hugging Face hub, verify every file against the
        hash that the hub states, and write them to weights/NAME.safetensors,
        where the configurations expect them. An interrupted download continues
        when the command is run again. With --offline, and where there is no
        network, prints which file to put where, and the next command.
        A method's name prints the steps for its authors' checkpoints, of which
        nothing is downloaded. hf:OWNER/NAME is a run that `zsad push` has
        uploaded; it is copied to --output.

Downloads are kept in the cache folder ($ZSAD_JAX_CACHE). HF_ENDPOINT names
another hub, HF_TOKEN or `hf auth login` a user.
"""

import difflib
import pathlib
from typing import Any

from absl import flags

from zsad_jax import backbones
from zsad_jax.backbones.published_weights import Published
from zsad_jax.runs import hub as hub_runs
from zsad_jax.runtime import cli, hub
from zsad_jax.weights import instructions


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string(
    "output",
    None,
    "File to write, by default weights/NAME.safetensors; for hf:OWNER/NAME the "
    "folder of the run.",
  )
  flags.DEFINE_bool(
    "offline", False, "Use no network; print the steps to take by hand."
  )
  flags.DEFINE_bool("overwrite", False, "Replace an existing file of weights.")


def main(options: Any) -> None:
  """Run the command.

  Raises:
    ValueError: the arguments are not those of a use, or a name is unknown.
    OSError: the weights cannot be fetched.
  """
  match options.arguments:
    case ["list"]:
      print(instructions.listing(backbones.published()))
    case ["get", name]:
      _get(name, options)
    case _:
      raise ValueError(
        "Give `list`, or `get NAME`, such as zsad weights get ViT-L-14-336; "
        f"got {' '.join(options.arguments) or 'nothing'}."
      )


def _get(name, options):
  """Fetch what a name stands for, or print the steps."""
  if hub.split(name):
    if not options.output:
      raise ValueError(
        f"--output is missing: the folder for the run {name}, such as "
        "--output=runs/NAME."
      )
    found = hub_runs.fetch(name, offline=options.offline)
    hub.copy(found, pathlib.Path(options.output))
    print(f"Commit {found.commit} of {name} was copied to {options.output}.")
    return
  entries = backbones.published()
  methods = dict(instructions.released())
  if name in entries:
    _get_weights(entries[name], options)
  elif name in methods:
    print(instructions.checkpoints(name, methods[name]))
  else:
    known = [*entries, *methods]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "see zsad weights list."
    raise ValueError(
      f"There are no weights {name!r}; {hint} Known are {', '.join(known)}."
    )


def _get_weights(entry: Published, options: Any) -> None:
  """Fetch and convert the weights of a backbone.

  Raises:
    hub.HubError: they cannot be fetched; the steps to take are printed.
  """
  output = options.output or entry.output
  if pathlib.Path(output).exists() and not options.overwrite:
    print(f"{output} exists and is kept; --overwrite replaces it.")
    print(f"licence {entry.licence}")
    return
  print(f"{entry.name}: {entry.repo}, trained by {entry.trained_by}.")
  try:
    print(backbones.fetch(entry, output, offline=options.offline))
  except hub.HubError as error:
    print(instructions.by_hand(entry, output))
    error.add_note("Without access to the hub, take the steps printed above.")
    raise
  print(
    f"Use it with --config.backbone.name={entry.backbone} "
    f"--config.backbone.path={output}."
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True, alone=True)
