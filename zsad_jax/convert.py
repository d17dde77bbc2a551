r"""Converts published weights to ours, and trained parameters to theirs.

python -m zsad_jax.convert --output=weights/ViT-L-14-336.safetensors \
    --source=ViT-L-14-336px.pt --model=ViT-L-14-336

makes the file of CLIP weights that all commands read. `--source` is one of

  an OpenAI archive     ViT-L-14-336px.pt; its SHA-256 is checked
  an open_clip file     .pt, .bin or .safetensors; --activation says its activation
  a transformers model  the directory with config.json
  a name on the hub     openai/clip-vit-large-patch14-336; downloads it

Arrays keep their dtype.

python -m zsad_jax.convert --method=anomalyclip --checkpoint=epoch_15.pth \
    --workdir=runs/released [--config=configs/anomalyclip.py:paper]

makes a run of a checkpoint by the authors of a method (adaclip, anomalyclip,
faprompt, adaptclip), for `evaluate` and `predict`. The settings are those of
the variant "paper" in configs/<method>.py, if --config gives no others; with
it, fields can be set as in training.

python -m zsad_jax.convert --workdir=runs/adaclip --export=adaclip.pth

writes a run's parameters as the authors' code loads them, see released.py.

No torch is needed, and nothing in a file is run.
"""

import dataclasses
import pathlib

from absl import flags

from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import sources, weights
from zsad_jax.runs import authors_checkpoint
from zsad_jax.runtime import cli, config_files


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_string("source", None, "File, directory or hub name.")
  flags.DEFINE_string("output", None, "Safetensors file to write.")
  flags.DEFINE_enum(
    "activation",
    None,
    sorted(clip_convert.HF_ACTIVATIONS.values()),
    "Activation of an open_clip file: `quick` if its model is called "
    "-quickgelu, else `gelu_erf`. Other sources say it themselves.",
  )
  flags.DEFINE_enum(
    "model",
    None,
    sorted(clip_config.MODELS),
    "Refuse weights that do not have the sizes of this model.",
  )
  flags.DEFINE_string("method", None, "Whose authors made the checkpoint.")
  flags.DEFINE_string("checkpoint", None, "Their file (.pth).")
  config_files.define_flag()
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string("export", None, "The authors' kind of file to write.")


def convert(
  source: str,
  output: str,
  *,
  activation: str | None = None,
  model: str | None = None,
) -> None:
  """Reads weights from `source`, writes them to `output`, prints a summary.

  Args:
    source: see the module's docstring.
    output: safetensors file to write.
    activation: "quick" or "gelu_erf"; for open_clip files only.
    model: name in `clip.config.MODELS` whose sizes the weights must have.

  Raises:
    ValueError: the source is not what it should be.
    OSError: a file is missing or cannot be read or written.
  """
  clip = sources.read(source, activation)
  if model:
    check_model(clip.config, model, source)
  about = {"name": pathlib.Path(source).name, "sha256": clip.sha256}
  weights.save(output, clip.params, clip.config, about)
  print(_summary(source, output, clip))


def check_model(
  config: clip_config.ClipConfig, model: str, source: str
) -> None:
  """Raises ValueError unless the sizes are those of the named model."""
  expected = dataclasses.asdict(clip_config.MODELS[model])
  found = dataclasses.asdict(config)
  differing = [
    f"{name}: expected {expected[name]}, found {found[name]}"
    for name in expected
    # One architecture was trained with either activation.
    if name != "activation" and expected[name] != found[name]
  ]
  if differing:
    raise ValueError(f"{source} is not a {model}: {'; '.join(differing)}.")


def _summary(source, output, clip):
  arrays = clip_convert.flatten(clip.params).values()
  sizes = dataclasses.asdict(clip.config)
  return "\n".join(
    [
      f"read    {source}",
      *(f"sha256  {digest}  {name}" for name, digest in clip.sha256.items()),
      f"sizes   {', '.join(f'{name}={x}' for name, x in sizes.items())}",
      f"params  {sum(x.size for x in arrays):,} in "
      f"{' and '.join(sorted({str(x.dtype) for x in arrays}))}",
      f"wrote   {output}",
    ]
  )


# Flags that a use of the command needs, and those that it can have.
USES = (
  (("source", "output"), ("activation", "model")),
  (("method", "checkpoint", "workdir"), ("config",)),
  (("workdir", "export"), ()),
)


def chosen_use(options) -> tuple[str, ...]:
  """Returns the needed flags of the use that the given ones ask for.

  Raises:
    ValueError: they ask for none, or for several.
  """
  known = {name for use in USES for part in use for name in part}
  given = {name for name in known if options[name].value is not None}
  for needed, possible in USES:
    if set(needed) <= given <= {*needed, *possible}:
      return needed
  listed = lambda names: ", ".join(f"--{name}" for name in names) or "none"
  uses = "; or ".join(listed(needed) for needed, _ in USES)
  raise ValueError(f"Give {uses}. Given: {listed(sorted(given))}.")


def main(options):
  use = chosen_use(options)
  if "source" in use:
    convert(
      options.source,
      options.output,
      activation=options.activation,
      model=options.model,
    )
  elif "export" in use:
    authors_checkpoint.export(options.workdir, options.export)
  else:
    config = options.config or config_files.load(f"{options.method}:paper")
    if config.method_name != options.method:
      raise ValueError(
        f"--config is of {config.method_name}, --method is {options.method}."
      )
    authors_checkpoint.convert(options.checkpoint, options.workdir, config)


if __name__ == "__main__":
  cli.run(main, define_flags)
