"""Conversion of CLIP weights from a source to a file of this package."""

import dataclasses
import pathlib
from typing import Any

from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import sources, weights
from zsad_jax.runtime import copies, hub


def convert(
  source: str,
  output: str | pathlib.Path,
  *,
  activation: str | None = None,
  pixels: str | None = None,
  model: str | None = None,
  name: str = "",
) -> str:
  """Convert CLIP weights.

  Args:
    source: see `sources.read`.
    output: safetensors file to write.
    activation: "quick" or "gelu_erf"; for open_clip files only.
    pixels: normalization of pixels, see `sources.read`.
    model: key of `config.MODELS` whose sizes the weights must have; None for
      any sizes.
    name: of the source in the file and in messages; "" for the source itself.

  Returns:
    A summary in several lines.

  Raises:
    ValueError: the source is corrupt, no CLIP, or of another model.
    OSError: a file is missing or cannot be read or written.
  """
  clip = sources.read(copies.local(source), activation, pixels)
  if model:
    check_model(clip.config, model, name or source)
  origin = {"name": name or short_name(source), "sha256": clip.sha256}
  weights.save(output, clip.params, clip.config, origin)
  return summary(name or source, output, clip)


def check_model(
  config: clip_config.ClipConfig, model: str, source: str
) -> None:
  """Check the sizes of converted weights.

  Args:
    config: the sizes.
    model: key of `config.MODELS`.
    source: name of the weights in the error message.

  Raises:
    ValueError: the sizes are not those of the model.
  """
  expected = dataclasses.asdict(clip_config.MODELS[model])
  found = dataclasses.asdict(config)
  differing = [
    f"{name}: expected {expected[name]}, found {found[name]}"
    for name in expected
    # Some architectures were trained in several ways.
    if name not in clip_config.TRAINED_WITH and expected[name] != found[name]
  ]
  if differing:
    raise ValueError(f"{source} is not a {model}: {'; '.join(differing)}.")


def short_name(source: str) -> str:
  """Return the name of a source without its folder; that on the hub."""
  path = pathlib.Path(source)
  on_hub = hub.NAME.fullmatch(source) and not path.exists()
  return source if on_hub else path.name


def summary(source: str, output: str | pathlib.Path, found: Any) -> str:
  """Return what was read and written, in several lines.

  Args:
    source: name of the source.
    output: file that was written.
    found: a `sources.Weights`, or that of another backbone.
  """
  arrays = clip_convert.flatten(found.params).values()
  sizes = dataclasses.asdict(found.config)
  return "\n".join(
    [
      f"read    {source}",
      *(f"sha256  {digest}  {name}" for name, digest in found.sha256.items()),
      f"sizes   {', '.join(f'{name}={x}' for name, x in sizes.items())}",
      f"params  {sum(x.size for x in arrays):,} in "
      f"{' and '.join(sorted({str(x.dtype) for x in arrays}))}",
      f"wrote   {output}",
    ]
  )
