r"""Converts published CLIP weights to the file that all commands read.

python -m zsad_jax.convert --output=weights/ViT-L-14-336.safetensors \
    --source=ViT-L-14-336px.pt --model=ViT-L-14-336

`--source` is one of

  an OpenAI archive     ViT-L-14-336px.pt; its SHA-256 is checked
  an open_clip file     .pt, .bin or .safetensors; --act says its activation
  a transformers model  the directory with config.json
  a name on the hub     openai/clip-vit-large-patch14-336; downloads it

Arrays keep their dtype. No torch is needed, and nothing in a file is run.
"""

import dataclasses
import pathlib

from absl import flags

from zsad_jax import cli
from zsad_jax.clip import config as clip_config
from zsad_jax.clip import names, sources, weights


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_string(
      "source", None, "File, directory or hub name.", required=True
  )
  flags.DEFINE_string(
      "output", None, "Safetensors file to write.", required=True
  )
  flags.DEFINE_enum(
      "act",
      None,
      sorted(names.ACTS.values()),
      "Activation of an open_clip file: `quick` if its model is called "
      "-quickgelu, else `gelu_erf`. Other sources say it themselves.",
  )
  flags.DEFINE_enum(
      "model",
      None,
      sorted(clip_config.MODELS),
      "Refuse weights that do not have the sizes of this model.",
  )


def convert(
    source: str,
    output: str,
    *,
    act: str | None = None,
    model: str | None = None,
) -> None:
  """Reads weights from `source`, writes them to `output`, prints a summary.

  Args:
    source: see the module's docstring.
    output: safetensors file to write.
    act: "quick" or "gelu_erf"; for open_clip files only.
    model: name in `clip.config.MODELS` whose sizes the weights must have.

  Raises:
    ValueError: the source is not what it should be.
    OSError: a file is missing or cannot be read or written.
  """
  clip = sources.read(source, act)
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
      if name != "act" and expected[name] != found[name]
  ]
  if differing:
    raise ValueError(f"{source} is not a {model}: {'; '.join(differing)}.")


def _summary(source, output, clip):
  arrays = names.flatten(clip.params).values()
  sizes = dataclasses.asdict(clip.config)
  return "\n".join([
      f"read    {source}",
      *(f"sha256  {digest}  {name}" for name, digest in clip.sha256.items()),
      f"sizes   {', '.join(f'{name}={x}' for name, x in sizes.items())}",
      f"params  {sum(x.size for x in arrays):,} in "
      f"{' and '.join(sorted({str(x.dtype) for x in arrays}))}",
      f"wrote   {output}",
  ])


def main(options):
  convert(
      options.source, options.output, act=options.act, model=options.model
  )


if __name__ == "__main__":
  cli.run(main, define_flags)
