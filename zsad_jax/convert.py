r"""Conversion of published weights to this package, and back.

Convert weights of CLIP, or of another backbone by its --model:

python -m zsad_jax.convert --output=weights/ViT-L-14-336.safetensors \
    --source=ViT-L-14-336px.pt --model=ViT-L-14-336

The output is a file for `config.backbone.path`. Arrays keep their data types.
`--source` is one of

  an OpenAI archive     ViT-L-14-336px.pt; its SHA-256 is checked
  an open_clip file     .pt, .bin or .safetensors; needs --activation
  a transformers model  the directory that contains config.json
  a name on the hub     openai/clip-vit-large-patch14-336; is downloaded

With the --model of a DINOv2, such as dinov2-base, it is a .pth file of
facebookresearch/dinov2, a transformers model or a name on the hub. For SAM's
image encoder, --model=sam-vit-base (-large, -huge), it is one of Meta's
checkpoints (.pth), a directory of transformers or facebook/sam-vit-base.

Convert a checkpoint of the authors of a method to a run for `evaluate` and
`predict`:

python -m zsad_jax.convert --method=anomalyclip --checkpoint=epoch_15.pth \
    --workdir=runs/released [--config=configs/anomalyclip.py:paper]

The settings are those of variant "paper" of configs/<method>.py. With --config,
other settings can be given, and single fields can be set as in training.

Export the parameters of a run to a checkpoint that the authors' code loads (see
`runs.authors_checkpoint`):

python -m zsad_jax.convert --workdir=runs/adaclip --export=adaclip.pth

torch is not needed, and no code in a file is executed.
"""

from typing import Any

from absl import flags

from zsad_jax import backbones
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import conversion
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.runs import authors_checkpoint
from zsad_jax.runtime import cli, config_files, copies


def define_flags() -> None:
  """Define the flags of the command."""
  flags.DEFINE_string(
    "source",
    None,
    "Weights of a backbone: file, directory or name on the Hugging Face hub.",
  )
  flags.DEFINE_string("output", None, "Safetensors file to write.")
  flags.DEFINE_enum(
    "activation",
    None,
    sorted(clip_convert.HF_ACTIVATIONS.values()),
    "Activation of an open_clip file: `quick` if the name of its model ends "
    "in -quickgelu, else `gelu_erf`. Other sources store their activation.",
  )
  flags.DEFINE_enum(
    "pixels",
    None,
    sorted(clip_config.PIXELS),
    "Normalization of pixels that the weights were trained with: `openai`, or "
    "`half` (mean and deviation 0.5). By default that of "
    "preprocessor_config.json or open_clip_config.json next to the weights, or "
    "else `openai`.",
  )
  flags.DEFINE_enum(
    "model",
    None,
    sorted([*clip_config.MODELS, *backbones.convertible()]),
    "Check that the weights have the sizes of this model; needed for those "
    "that are no CLIP.",
  )
  flags.DEFINE_string(
    "method", None, "Method of the checkpoint, such as adaclip."
  )
  flags.DEFINE_string("checkpoint", None, "Checkpoint of the authors (.pth).")
  config_files.define_flag()
  flags.DEFINE_string(
    "workdir", None, "Folder of the run, to write or to export."
  )
  flags.DEFINE_string(
    "export", None, "Checkpoint to write (.pth), in the format of the authors."
  )


# Required and optional flags of each use of the command.
USES = (
  (("source", "output"), ("activation", "pixels", "model")),
  (("method", "checkpoint", "workdir"), ("config",)),
  (("workdir", "export"), ()),
)


def chosen_use(options: Any) -> tuple[str, ...]:
  """Return the required flags of the use that the given flags select.

  Args:
    options: absl flags by name.

  Raises:
    ValueError: the flags select no use.
  """
  known = {name for use in USES for part in use for name in part}
  given = {name for name in known if options[name].value is not None}
  for required, optional in USES:
    if set(required) <= given <= {*required, *optional}:
      return required
  listed = lambda names: ", ".join(f"--{name}" for name in names) or "none"
  uses = "; or ".join(listed(required) for required, _ in USES)
  raise ValueError(f"Give {uses}. Given: {listed(sorted(given))}.")


def main(options: Any) -> None:
  """Run the use that the flags select."""
  use = chosen_use(options)
  if options.model in backbones.convertible():
    of_clip = ("activation", "pixels")
    if given := [name for name in of_clip if options[name].value is not None]:
      raise ValueError(f"--{given[0]} is for CLIP, not for {options.model}.")
    print(
      backbones.convert(options.source, options.output, model=options.model)
    )
  elif "source" in use:
    summary = conversion.convert(
      options.source,
      options.output,
      activation=options.activation,
      pixels=options.pixels,
      model=options.model,
    )
    print(summary)
  elif "export" in use:
    authors_checkpoint.export(options.workdir, options.export)
  else:
    config = options.config or config_files.load(f"{options.method}:paper")
    if config.method_name != options.method:
      raise ValueError(
        f"--config is for {config.method_name}, but --method is "
        f"{options.method}."
      )
    checkpoint = copies.local(options.checkpoint)
    authors_checkpoint.convert(checkpoint, options.workdir, config)


if __name__ == "__main__":
  cli.run(main, define_flags, alone=True)
