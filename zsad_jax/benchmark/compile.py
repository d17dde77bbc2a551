"""Programs of all methods, compiled for accelerators that are not there.

Nothing runs: memory, operations between chips and bytes are those of the
compiled program, FLOPs those of its matrix products. Bounds of the time are
these numbers at the rates of the chip's data sheet, never a measurement. The
process itself needs a CPU alone.
"""

import json
import pathlib
import time
from typing import Any

import jax
from absl import flags

from zsad_jax import methods
from zsad_jax.backbones.clip.config import MODELS, ClipConfig
from zsad_jax.benchmark import chips, hlo
from zsad_jax.benchmark.programs import Programs
from zsad_jax.layers import kernels
from zsad_jax.runtime import config_files, environment, files

Row = dict[str, Any]
# Fields by which a program is found again in the JSON file.
KEY: tuple[str, ...] = (
  "target",
  "method",
  "program",
  "model",
  "image_size",
  "dtype",
  "attention",
  "per_chip",
)
# Compilation of half the time; the same collectives and FLOPs, other
# temporaries (benchmarks/README.md).
EFFORT = -1.0
_TRIES = 3  # Of a batch size that was predicted to fit.


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_list(
    "target",
    ["v5e:2x4"],
    "Chips to compile for, CHIP:TOPOLOGY, such as v5e:8x8, v6e:4x8, v5p:2x2x4 "
    "or, hosts x GPUs, h100:1x8.",
  )
  flags.DEFINE_list(
    "methods", methods.single_image_names(), "Methods to compile."
  )
  flags.DEFINE_list("programs", None, "Programs to compile; default: all.")
  flags.DEFINE_string(
    "model", "ViT-L-14-336", "Model whose sizes the backbone has."
  )
  flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16"], "Type of its matrix products."
  )
  flags.DEFINE_enum(
    "attention", "exact", kernels.ATTENTION, "Its attention on TPUs."
  )
  flags.DEFINE_integer("image_size", 518, "Image size in pixels.", 14)
  flags.DEFINE_integer("per_chip", 4, "Images per chip.", 1)
  flags.DEFINE_bool(
    "largest",
    False,
    "Compile the number of images per chip that is predicted to fit, too.",
  )
  flags.DEFINE_float(
    "effort",
    EFFORT,
    "XLA's exec_time_optimization_effort: 0 is that of training, -1 compiles "
    "faster.",
    -1.0,
    1.0,
  )
  flags.DEFINE_bool(
    "resume", False, "Keep what the JSON file holds; compile the rest."
  )


def config_of(method: str, options: Any) -> Any:
  """Return the papers' configuration of a method with the command's flags."""
  config: Any = config_files.load(f"{method}:paper").unlock()
  config.image_size = options.image_size
  config.backbone.dtype = options.dtype
  config.backbone.attention = options.attention
  return config.lock()


def examine(
  target: chips.Target,
  config: Any,
  sizes: ClipConfig,
  program: str,
  per_chip: int,
  effort: float = EFFORT,
) -> Row:
  """Compile a program and return its facts.

  Args:
    target: chips to compile for.
    config: a configuration of training.
    sizes: of the backbone.
    program: one of `Programs.all`.
    per_chip: images per chip.
    effort: see the flag.

  Returns:
    Bytes per chip, FLOPs and bytes per image, collectives, seconds of
    compilation, and the bound of the seconds of a batch.
  """
  count = target.mesh.size
  start = time.perf_counter()
  with (
    kernels.assume(target.machine),
    jax.default_matmul_precision(config.matmul_precision),
  ):
    programs = Programs(config, sizes, target.mesh, batch_size=per_chip * count)
    lowered, products, arguments = programs.all()[program]()
  lowering = time.perf_counter() - start
  start = time.perf_counter()
  settings: dict[str, Any] = {"exec_time_optimization_effort": effort}
  if target.chip.gpu:
    # Triton's products are chosen by measuring them; without a GPU, XLA finds
    # none for float32.
    settings["xla_gpu_enable_triton_gemm"] = False
  compiled = lowered.compile(compiler_options=settings)
  seconds = time.perf_counter() - start
  flops, moved = hlo.cost(compiled)
  # XLA counts loops once, and products that all chips repeat on each of them.
  flops = max(flops, products / count)
  memory = hlo.memory(compiled)
  # The compiler drops arguments that are not used, most of them replicated.
  split = hlo.split_bytes(arguments)
  memory["replicated"] = max(memory["arguments"] - split, 0)
  return {
    "chips": count,
    "effort": effort,
    "memory": memory,
    "predicted_largest": predicted(memory, per_chip, target.chip.memory),
    "flops_per_image": flops / per_chip,
    "bytes_per_image": moved / per_chip,
    "collectives": hlo.collectives(compiled.as_text() or ""),
    "lowering_seconds": lowering,
    "compile_seconds": seconds,
    "bound": bound(target.chip, config.backbone.dtype, flops, moved),
  }


def bound(
  chip: chips.Chip, dtype: str, flops: float, moved: float
) -> dict[str, float]:
  """Return lower bounds of the seconds of a program at a chip's rates.

  Args:
    chip: the chip.
    dtype: of the backbone's matrix products. On a TPU, bfloat16's rate bounds
      float32, too.
    flops: of the program on one chip.
    moved: bytes of the program on one chip.
  """
  exact = dtype == "float32" and chip.float32_flops
  rate = chip.float32_flops if exact else chip.flops
  return {
    "flops_seconds": flops / rate,
    "bytes_seconds": moved / chip.bandwidth,
  }


def predicted(memory: dict[str, int], per_chip: int, limit: float) -> int:
  """Return the number of images per chip that is predicted to fit.

  All memory but that of replicated arguments is taken to be proportional to
  the images, which overestimates it for many images.

  Args:
    memory: of a program on one chip, see `hlo.memory`, and "replicated".
    per_chip: images per chip of that program.
    limit: bytes that a program can use.
  """
  fixed = memory["replicated"]
  each = max(memory["peak"] - fixed, 1) / per_chip
  return max(int((limit - fixed) / each), 0)


class Record:
  """Rows of a JSON file, which is written after each of them.

  Args:
    path: of the file; None for none.
    resume: keep the rows of the file.
  """

  def __init__(self, path: str | None, resume: bool) -> None:
    self._path, self.rows = path, []
    if resume and path and pathlib.Path(path).is_file():
      self.rows = files.read_json_object(pathlib.Path(path))["rows"]

  def find(self, key: Row) -> Row | None:
    """Return the row of a program; None where it is missing or failed."""
    for row in self.rows:
      if _key(row) == key and ("error" not in row or "largest" in row):
        return row
    return None

  def add(self, row: Row) -> None:
    """Add a row, instead of an earlier one of the same program."""
    others = [old for old in self.rows if _key(old) != _key(row)]
    self.rows = [*others, row]
    if self._path:
      document = dict(rows=self.rows, **environment.setting())
      files.write_text(self._path, json.dumps(document, indent=1) + "\n")


def _key(row):
  return {name: row[name] for name in KEY}


class Compiler:
  """Compiles programs for a target, and records their facts.

  Args:
    target: chips to compile for.
    options: flags of the command.
    record: of the rows.
  """

  def __init__(
    self, target: chips.Target, options: Any, record: Record
  ) -> None:
    self._target, self._options, self._record = target, options, record

  def compile(self, method: str, program: str, per_chip: int) -> Row:
    """Compile a program, unless it is recorded; the row may have an "error"."""
    o = self._options
    values = (method, program, o.model, o.image_size, o.dtype, o.attention)
    key = dict(zip(KEY, (self._target.name, *values, per_chip), strict=True))
    if found := self._record.find(key):
      return found
    try:
      config = config_of(method, o)
      sizes = MODELS[o.model]
      facts = examine(self._target, config, sizes, program, per_chip, o.effort)
    except Exception as error:  # Of any layer of the compiler.
      text = " ".join(f"{type(error).__name__}: {error}".split())
      facts = {"error": text[:1000]}
    row = {**key, **facts}
    self._record.add(row)
    print(line(row), flush=True)
    return row

  def largest(self, method: str, program: str, size: int) -> None:
    """Compile the number of images per chip that is predicted to fit."""
    for _ in range(_TRIES):
      row = self.compile(method, program, size)
      limit = self._target.chip.memory
      fits = "error" not in row and row["memory"]["peak"] <= limit
      self._record.add({**row, "largest": "fits" if fits else "too large"})
      if fits:
        return
      size = int(0.9 * size)


def line(row: Row) -> str:
  """Format a row for the terminal."""
  start = (
    f"{row['target']:10} {row['method']:12} {row['program']:12} "
    f"{row['dtype']:8} {row['per_chip']:4} images per chip"
  )
  if "error" in row:
    return f"{start}  {row['error'][:200]}"
  parts = [
    f"{name} {row['memory'][name] / chips.GIB:6.2f}"
    for name in ("arguments", "temporaries", "peak")
  ]
  return (
    f"{start}  {'  '.join(parts)} GiB  compiled in "
    f"{row['compile_seconds']:.0f} s"
  )


HEAD = (
  "| program | images per chip | arguments, GiB | temporaries | peak | largest "
  "| GFLOP per image | GB per image | collectives (MB) | bound, ms: FLOPs | "
  "bytes | compilation, s |\n|---|" + "---:|" * 7 + "---|" + "---:|" * 3
)


def table(rows: list[Row], target: str, dtype: str) -> str:
  """Return the Markdown table of a target.

  Args:
    rows: of the JSON file.
    target: name of the target.
    dtype: of the backbone's matrix products.
  """
  groups = {}
  for row in rows:
    if (row["target"], row["dtype"]) == (target, dtype):
      name = f"{row['method']} {row['program']}"
      if row["attention"] != "exact":
        name += f", {row['attention']}"
      groups.setdefault(name, []).append(row)
  lines = [HEAD]
  for name, found in groups.items():
    most = [row for row in found if row.get("largest") == "fits"]
    plain = [row for row in found if "largest" not in row]
    if plain:
      first = min(plain, key=lambda row: row["per_chip"])
      lines.append(_cells(name, first, most))
  return "\n".join(lines)


def _cells(name, row, most):
  """Return a line of the table."""
  if "error" in row:
    return f"| {name} | {row['per_chip']} | does not compile |" + " |" * 9
  gib = [
    f"{row['memory'][key] / chips.GIB:.2f}"
    for key in ("arguments", "temporaries", "peak")
  ]
  moved = [
    f"{found['number']} {kind} ({found['bytes'] / 1e6:.3g})"
    for kind, found in sorted(row["collectives"].items())
  ]
  seconds, known = row["bound"], row["bytes_per_image"] > 0
  largest = f"~{row['predicted_largest']:,}"
  if most:
    largest = f"{most[0]['per_chip']:,}"
  cells = [
    name,
    row["per_chip"],
    *gib,
    largest,
    f"{row['flops_per_image'] / 1e9:,.0f}",
    f"{row['bytes_per_image'] / 1e9:.3g}" if known else "",
    ", ".join(moved) or "none",
    f"{1e3 * seconds['flops_seconds']:.3g}",
    f"{1e3 * seconds['bytes_seconds']:.3g}" if known else "",
    f"{row['compile_seconds']:.0f}",
  ]
  return f"| {' | '.join(map(str, cells))} |"


def program_names(method: str, target: chips.Target, options: Any) -> list[str]:
  """Return the programs of a method that the flags name."""
  programs = Programs(
    config_of(method, options),
    MODELS[options.model],
    target.mesh,
    batch_size=target.mesh.size,
  )
  chosen = options.programs
  return [name for name in programs.all() if not chosen or name in chosen]


def main(options: Any) -> None:
  """Run the benchmark.

  Raises:
    ValueError: a program does not compile.
  """
  # Its programs cannot be loaded here.
  jax.config.update("jax_enable_compilation_cache", False)
  record = Record(options.json, options.resume)
  for target in map(chips.target, options.target):
    compiler = Compiler(target, options, record)
    for method in options.methods:
      for program in program_names(method, target, options):
        row = compiler.compile(method, program, options.per_chip)
        if options.largest and "error" not in row:
          compiler.largest(method, program, row["predicted_largest"])
    print(
      f"\n{target.name}\n{table(record.rows, target.name, options.dtype)}\n"
    )
  failed = [
    f"{row['method']} {row['program']} on {row['target']}: {row['error'][:200]}"
    for row in record.rows
    if "error" in row and "largest" not in row
  ]
  if failed:
    raise ValueError(
      f"{len(failed)} programs do not compile: {'; '.join(failed)}."
    )
