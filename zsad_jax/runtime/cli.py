"""Runs a command: a user's mistake ends in one line, not in a traceback."""

import hashlib
import os
import pathlib
import platform
import re
import signal
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from zsad_jax.runtime import console, distributed, environment


def run(
  main: Callable[[flags.FlagValues], int | None],
  define_flags: Callable[[], None],
  *,
  arguments: bool = False,
) -> None:
  """Defines and parses flags, calls `main` and exits with what it returns.

  `ValueError` and `OSError` (a missing file, no permission, a full disk) are
  what a user can cause: they print "error: ..." in one line to stderr, and
  the exit status is 1. With --verbosity=1 the traceback is shown, too.

  Args:
    main: gets the parsed flags; what is left of the command line stands in
      their `arguments`.
    define_flags: defines the flags of the command. They are not defined at
      import, so that any two commands can be imported together.
    arguments: whether the command takes arguments that are no flags.
  """

  def parse(argv):
    try:
      rest = flags.FLAGS([_with_underscores(a) for a in argv])
      if rest[1:] and not arguments:
        raise ValueError(f"Unknown argument {rest[1]}; flags begin with --.")
      return rest
    # A config file is run while flags are parsed: whatever it raises.
    except (AttributeError, KeyError) as error:  # With a hint, mostly.
      text = str(error.args[0]).strip("'\"").replace("\\n", ". ")
      _fail("The configuration has no field " + text.replace("\\'", "'"))
    except Exception as error:
      _fail(error)

  def guarded(argv):
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    flags.FLAGS.arguments = argv[1:]
    try:
      _save_memory()
      _keep_compiled()
      distributed.start()
      console.configure(primary=distributed.is_primary())
      with distributed.together():
        return main(flags.FLAGS)
    except BrokenPipeError:  # The reader, such as `head`, has seen enough.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
      _fail(error)

  define_flags()
  flags.DEFINE_list("arguments", [], "Arguments that are no flags.")
  app.run(guarded, flags_parser=parse)


def _with_underscores(argument):
  """--list-tables is --list_tables."""
  name = re.match(r"--[a-z-]+(?==|$)", argument)
  if not name:
    return argument
  return "--" + name[0][2:].replace("-", "_") + argument[name.end() :]


def _fail(error):
  logging.debug("Traceback of the error:", exc_info=True)
  # A config file's own error comes as the text of a traceback.
  text = str(error)
  if "Traceback" in text:
    text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
  print("error:", " ".join(text.split()), file=sys.stderr)
  sys.exit(1)


def _keep_compiled():
  """Programs are compiled once for a machine, not once for a command.

  Programs for a CPU use what it has: another model has a folder of its own.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return  # Of JAX_COMPILATION_CACHE_DIR.
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


def _save_memory():
  """Has XLA order programs for a CPU by the memory they need.

  By default it orders them for many threads. That recomputes all blocks at once
  where they are to be recomputed one by one, and is no faster. It is read when
  the first device is asked for.
  """
  flag = "--xla_cpu_enable_concurrency_optimized_scheduler"
  given = os.environ.get("XLA_FLAGS", "")
  if flag not in given:
    os.environ["XLA_FLAGS"] = f"{given} {flag}=false".strip()


class StopSignal:
  """Whether the process was asked to stop, by SIGTERM or Ctrl-C.

  A second Ctrl-C stops at once.
  """

  def __init__(self):
    self.requested = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._request)

  def _request(self, number, frame):
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested = True
    print("Stopping after this step.", flush=True)
