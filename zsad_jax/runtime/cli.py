"""Command runner: user errors end in one line instead of a traceback."""

import contextlib
import hashlib
import logging
import os
import pathlib
import platform
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from zsad_jax.runtime import (
  agreement,
  console,
  distributed,
  environment,
  hub,
  mirror,
  processes,
  stopping,
)

_HELP = re.compile(r"--?(h|help|helpshort|helpfull|helpxml)")
_THREADS = "PJRT_NPROC"  # Threads of XLA:CPU's pool.
_THREADS_PER_DEVICE = 4
_INTERNAL = 70  # Exit status of an error of the package.


def run(
  main: Callable[[Any], int | None],
  define_flags: Callable[[], None],
  *,
  arguments: bool = False,
  alone: bool = False,
  hub_runs: bool = False,
) -> None:
  """Define and parse flags, call `main` and exit with its result.

  `ValueError` and `OSError` (a missing file, no permission, a full disk) are
  errors of the user: they print "error: ..." in one line to stderr, and the
  exit status is 1. So does a lack of memory. Any other exception is an error of
  the package: it prints "internal error: ..." and the exit status is 70
  (EX_SOFTWARE of BSD's sysexits.h). The traceback is shown where the
  environment variable ZSAD_DEBUG is 1, or with --verbosity=1. A
  signal that stops the command prints one line; the status is 128 + signal.

  Of several processes, only the primary one prints to standard output; every
  process shows its errors.

  Args:
    main: receives the parsed flags; the rest of the command line is in their
      `arguments`.
    define_flags: defines the flags of the command. They are not defined at
      import, so that any two commands can be imported together.
    arguments: whether the command takes arguments that are not flags.
    alone: whether the command needs no other process: it waits for none.
    hub_runs: whether --workdir is only read, so that it may name a run on the
      hub, hf:owner/name.
  """

  def parse(argv):
    try:
      rest = flags.FLAGS([_with_underscores(a) for a in argv])
      if rest[1:] and not arguments:
        raise ValueError(f"Unknown argument {rest[1]}; flags begin with --.")
      return rest
    except SystemExit as error:  # absl ends with status 1 after its help.
      sys.exit(0 if any(map(_HELP.fullmatch, argv[1:])) else error.code)
    # Flags may run a configuration file, which can raise anything.
    except Exception as error:
      _fail_parsing(error)

  def guarded(argv):
    if not flags.FLAGS["verbosity"].present:
      absl_logging.set_verbosity(absl_logging.WARNING)
    flags.FLAGS.arguments = argv[1:]
    try:
      return started()
    except stopping.Stopped as error:
      _stop(error)
    except (ValueError, OSError) as error:
      _fail(error)
    except Exception as error:
      _fail_internally(error)

  def started():
    with stopping.handled():
      environment.check()
      _configure_xla()
      processes.start(alone=alone)
      stopping.install()  # JAX has a handler of its own.
      with stopping.at_end(_report_stop), processes.exit_on_peer_failure():
        agreement.check_command(flags.FLAGS)
        environment.check_platform()
        hub.refuse(flags.FLAGS, reads_runs=hub_runs)
        with _console(), _mirrored(), stopping.unreplaced():
          return main(flags.FLAGS)

  console.outlast_readers()
  _quiet_libraries()
  _define(define_flags)
  flags.DEFINE_list("arguments", [], "Arguments that are no flags.")
  app.run(guarded, flags_parser=parse)


def _define(define_flags) -> None:
  """Define the flags of a command; its help lists those of other modules."""
  before = set(flags.FLAGS)
  define_flags()
  for name in set(flags.FLAGS) - before:
    flag = flags.FLAGS[name]
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _fail_parsing(error: Exception) -> NoReturn:
  """Print an error in the flags."""
  if isinstance(error, (AttributeError, KeyError)):  # Mostly with a hint.
    text = str(error.args[0]).strip("'\"").replace("\\n", ". ")
    _fail("The configuration has no field " + text.replace("\\'", "'"))
  missing = re.search(r"Flag --(\w+) must have a value other", str(error))
  if missing:
    _fail(f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}")
  _fail(error)


def _mirrored():
  """Let commands write to local folders whose changes are uploaded."""
  return mirror.of_flags(flags.FLAGS)


@contextlib.contextmanager
def _console():
  """Print messages and results of the primary process, errors of each."""
  primary = distributed.is_primary()
  console.configure(primary=primary)
  with contextlib.ExitStack() as stack:
    if not primary:
      nothing = stack.enter_context(open(os.devnull, "w"))
      stack.enter_context(contextlib.redirect_stdout(nothing))
    yield


def _stop(error: stopping.Stopped) -> None:
  """End the process: together with the others, or after telling them."""
  if error.together:
    processes.disconnect()
  processes.report(str(error), error.status)
  stopping.leave(error)


def _report_stop() -> None:
  """Tell the other processes that a signal ends this one at once."""
  number = stopping.received()
  processes.report(f"Stopped by signal {number}.", 128 + number)


def _with_underscores(argument: str) -> str:
  """Accept --list-tables as --list_tables."""
  name = re.match(r"--[a-z-]+(?==|$)", argument)
  if not name:
    return argument
  return "--" + name[0][2:].replace("-", "_") + argument[name.end() :]


def _fail(error: Exception | str, status: int = 1) -> NoReturn:
  """Print an error in one line and exit with a status."""
  if environment.debug():
    traceback.print_exc()
  absl_logging.debug("Traceback of the error:", exc_info=True)
  notes = getattr(error, "__notes__", ())
  # JAX adds a note about its traceback to errors of functions that it traces.
  notes = [x for x in notes if "JAX_TRACEBACK_FILTERING" not in x]
  text = " ".join([str(error), *notes])
  text = re.sub(r"^\[Errno \d+\] ", "", " ".join(text.split()))
  label = "internal error" if status == _INTERNAL else "error"
  print(f"{label}: {text}", file=sys.stderr, flush=True)
  if processes.count() > 1:
    processes.report(text)
    sys.stdout.flush()
    os._exit(status)  # A usual exit waits for the other processes.
  sys.exit(status)


def _fail_internally(error: Exception) -> NoReturn:
  """Print an error that no user can have made; a lack of memory is one."""
  text = f"{type(error).__name__}: {error}"
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    _fail(
      f"There is too little memory ({text[:200]}): use smaller batches or "
      "images (config.batch_size, config.eval_batch_size, --batch_size)."
    )
  frames = traceback.extract_tb(error.__traceback__)
  last = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
  own = [f for f in frames if f"{os.sep}zsad_jax{os.sep}" in f.filename]
  if own:
    place = pathlib.Path(own[-1].filename)
    last = f"{place.parent.name}/{place.name}:{own[-1].lineno}"
  _fail(
    f"{text[:400]} ({last}). {environment.DEBUG}=1 shows the traceback.",
    _INTERNAL,
  )


def _quiet_libraries() -> None:
  """Show neither tracebacks of threads nor warnings of corrupt TIFF tags.

  The main thread raises the errors of threads; Orbax logs them as well, and
  TensorStore prints those of its callbacks. Pillow's warnings of tags name no
  file; an image that cannot be read is an error that names it.
  """
  if environment.debug():
    return
  warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
  show = sys.unraisablehook

  def only_of_python(found):
    if found.object is not None:
      show(found)

  def in_one_line(found):
    if not issubclass(found.exc_type, SystemExit):
      text = " ".join(f"{found.exc_type.__name__}: {found.exc_value}".split())
      print(f"error in a thread: {text[:400]}", file=sys.stderr, flush=True)

  sys.unraisablehook = only_of_python
  threading.excepthook = in_one_line
  absl_logging.get_absl_logger().addFilter(_is_not_orbax)
  logging.getLogger("asyncio").addFilter(_is_no_orbax_error)


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in pathlib.Path(record.pathname).parts


def _is_no_orbax_error(record: logging.LogRecord) -> bool:
  """Return whether a message of asyncio is not about an error in Orbax.

  Orbax writes arrays concurrently and raises the first error; asyncio reports
  the others when it removes them.
  """
  frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else ()
  return not any("orbax" in pathlib.Path(f.filename).parts for f in frames)


def _set_compilation_cache() -> None:
  """Cache compiled programs on disk, for all commands of this machine.

  Programs for a CPU use its instruction set: each CPU model has its own folder.
  """
  chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
  if chosen is not None:
    return  # Set by JAX_COMPILATION_CACHE_DIR.
  machine = platform.machine() + platform.processor()
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    lines = info.read_text().splitlines()
    machine += "".join(
      line
      for line in lines[: lines.index("")]
      if line.startswith(("model name", "flags", "Features"))
    )
  name = hashlib.sha256(machine.encode()).hexdigest()[:12]
  folder = os.path.join(environment.default_cache_dir(), "compiled", name)
  jax.config.update("jax_compilation_cache_dir", folder)


def _configure_xla() -> None:
  """Set what XLA reads when the first device is requested."""
  _disable_concurrency_optimized_scheduler()
  _set_threads_of_simulated_devices()
  _set_compilation_cache()


def _disable_concurrency_optimized_scheduler() -> None:
  """Disable XLA:CPU's concurrency-optimized scheduler to cut peak memory.

  That scheduler orders programs for many threads. It recomputes all
  checkpointed blocks at once instead of one by one, and is no faster. XLA
  reads the flag when the first device is requested.
  """
  flag = "--xla_cpu_enable_concurrency_optimized_scheduler"
  given = os.environ.get("XLA_FLAGS", "")
  if flag not in given:
    os.environ["XLA_FLAGS"] = f"{given} {flag}=false".strip()


def _set_threads_of_simulated_devices() -> None:
  """Let XLA:CPU have enough threads for several devices of a CPU.

  Its pool has one for each processor or device. Parts of a program that
  exchanges data between the devices occupy threads while they wait for others,
  which then do not begin: such a program never ends. XLA reads the variable
  when the first device is requested.
  """
  flag = r"--xla_force_host_platform_device_count=(\d+)"
  found = re.search(flag, os.environ.get("XLA_FLAGS", ""))
  count = found[1] if found else os.environ.get("JAX_NUM_CPU_DEVICES", "")
  if count.isdecimal() and int(count) > 1:
    os.environ.setdefault(_THREADS, str(_THREADS_PER_DEVICE * int(count)))
