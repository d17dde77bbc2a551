"""Texts of `zsad weights`: the list, and steps to take by hand."""

import pathlib
from collections.abc import Iterator

from zsad_jax.backbones.published_weights import FOLDER, Published
from zsad_jax.runtime import config_files

_TRANSFORMERS = (
  "config.json",
  "preprocessor_config.json",
  "model.safetensors (or else pytorch_model.bin)",
)
_OPEN_CLIP = "open_clip_config.json"


def listing(entries: dict[str, Published]) -> str:
  """Return the table of all published weights and checkpoints.

  Args:
    entries: published weights of the backbones by name.
  """
  rows = [
    (
      entry.name,
      entry.backbone,
      "yes" if pathlib.Path(entry.output).is_file() else "no",
      entry.licence,
      entry.trained_by,
      entry.repo,
    )
    for entry in entries.values()
  ]
  heads = ("NAME", "backbone", "here", "licence", "trained by", "hub")
  lines = ["Weights of backbones: zsad weights get NAME", *_table(heads, rows)]
  lines += [
    "",
    "Checkpoints of the authors: nothing is downloaded. zsad weights get NAME",
    "prints where to get them and how to convert them.",
  ]
  found = [(name, *each[::2]) for name, each in released()]
  lines += _table(("NAME", "published at", "remark"), found)
  return "\n".join(lines)


def released() -> Iterator[tuple[str, config_files.Released]]:
  """Yield each method whose authors have published checkpoints."""
  for name in config_files.names():
    if found := config_files.released(name):
      yield name, found


def checkpoints(method: str, found: config_files.Released) -> str:
  """Return where the checkpoints of a method are and how to convert them.

  Args:
    method: its name.
    found: the checkpoints.
  """
  lines = [f"The authors publish the checkpoints at {found.page}"]
  lines[0] += f" ({found.note})." if found.note else "."
  for title, options in found.files:
    # Files of different trainings can have the same name at their origin.
    name = f"{method}_released" + "_for_mvtec" * ("paper_mvtec" in options)
    file = f"{FOLDER}/{name}.pth"
    command = f"zsad convert --method={method} --checkpoint={file}"
    lines += [
      f"- {title}: save it as {file}, then run",
      f"  {command} --workdir=runs/{name} {options}".rstrip(),
    ]
  lines.append(
    "The runs need the weights of their backbone: zsad weights get NAME, see "
    "zsad weights list."
  )
  return "\n".join(lines)


def by_hand(entry: Published, output: str) -> str:
  """Return the files to fetch on another machine, and the next command.

  Args:
    entry: the weights.
    output: the converted file.
  """
  either = ", either" * bool(entry.local)
  lines = [f"To get {entry.name} without a network here{either}:"]
  convert = f"zsad convert --model={entry.backbone} --output={output}"
  if entry.local:
    target = f"{FOLDER}/{entry.local.name}"
    lines += [
      f"- fetch {entry.local.url} elsewhere and put it at {target}"
      + (f" (SHA-256 {entry.local.sha256})" * bool(entry.local.sha256))
      + ", then run",
      f"  {convert} --source={target} {entry.local.options}".rstrip(),
      "or:",
    ]
  folder = f"{FOLDER}/{entry.repo.replace('/', '--')}"
  names = (_OPEN_CLIP, " (or else ".join(entry.files) + ")")
  listed = ", ".join(names if entry.files else _TRANSFORMERS)
  source = f"{folder}/{entry.files[0]}" if entry.files else folder
  options = " ".join(f"--{name}={value}" for name, value in entry.options)
  lines += [
    f"- fetch {listed} from https://huggingface.co/{entry.repo}/tree/main "
    f"elsewhere and put the files into {folder}/, then run",
    f"  {convert} --source={source} {options}".rstrip(),
  ]
  return "\n".join([*lines, f"Licence: {entry.licence}."])


def _table(heads, rows):
  """Return lines with aligned columns."""
  table = [tuple(heads), *rows]
  widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
  return [
    "  " + "  ".join(x.ljust(w) for x, w in zip(row, widths)).rstrip()
    for row in table
  ]
