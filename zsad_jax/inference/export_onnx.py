"""Export of a program to ONNX.

Numbers are float32, the operator set is that of ONNX 1.13. Products are float32
at full precision, whatever `config.matmul_precision` is. Large weights are in a
second file, which has to be next to the first one.
"""

import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from zsad_jax.inference import program as program_lib

SUFFIX = ".onnx"
NOTE = ""
# A file of protobuf has less than 2 GiB: larger weights go to a second file.
LARGEST = 2**30
_SMALL = 256  # Bytes of constants that are in the first file in any case.
_PACKAGES = ("onnx", "onnxruntime")


def check(program: program_lib.Program) -> None:
  """Check that a program can be exported.

  Raises:
    ValueError: a package is missing, or the program computes in bfloat16.
  """
  if missing := [p for p in _PACKAGES if not importlib.util.find_spec(p)]:
    raise ValueError(
      f"--format=onnx needs {', '.join(missing)}: pip install 'zsad_jax[onnx]'."
    )
  if program.dtype != "float32":
    raise ValueError(
      f"--format=onnx: config.backbone.dtype is {program.dtype}, and "
      "onnxruntime has no such products on a CPU; use --format=stablehlo, or a "
      "run in float32."
    )


def versions() -> dict[str, Any]:
  """Return the versions that the file depends on."""
  from zsad_jax.inference import onnx_graph

  found = {
    name: importlib.metadata.version(name) for name in ("jax", *_PACKAGES)
  }
  return {**found, "opset": onnx_graph.OPSET, "ir": onnx_graph.IR_VERSION}


def write(
  program: program_lib.Program, path: pathlib.Path
) -> list[pathlib.Path]:
  """Write a program to a file, and to a second one if it is large.

  Returns:
    The files.

  Raises:
    ValueError: ONNX does not have an operation of the program.
  """
  # Not at the top: they are an extra of the package.
  import onnx  # pyright: ignore[reportMissingImports]

  from zsad_jax.inference import onnx_graph, onnx_lowering

  folded, batch = program.fold(unroll=True)
  names = (program_lib.INPUT, *program_lib.OUTPUTS)
  try:
    model = onnx_lowering.to_model(folded, names, batch)
  except onnx_graph.Unsupported as error:
    raise ValueError(
      f"--format=onnx: the method needs {error}, which the conversion to ONNX "
      "does not have; use --format=stablehlo."
    ) from error
  size = sum(len(each.raw_data) for each in model.graph.initializer)
  if size <= LARGEST:
    onnx.save_model(model, str(path))
    return [path]
  data = path.with_name(f"{path.name}.data")
  onnx.save_model(
    model,
    str(path),
    save_as_external_data=True,
    location=data.name,
    size_threshold=_SMALL,
  )
  return [path, data]


def load(
  path: pathlib.Path,
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Return the function of a file; see `Program.function`."""
  import onnxruntime  # pyright: ignore[reportMissingImports]

  options = onnxruntime.SessionOptions()
  # Threads that wait do not occupy processors.
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  session = onnxruntime.InferenceSession(
    str(path), options, providers=["CPUExecutionProvider"]
  )

  def run(images):
    given = {program_lib.INPUT: images}
    out = session.run(list(program_lib.OUTPUTS), given)
    scores, maps = map(np.asarray, out)
    return scores, maps

  return run
