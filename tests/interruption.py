"""Stopped at random moments, every command completes to the same numbers.

python -m tests.interruption --kills=20 --seed=0 [--commands=train,predict]
python -m tests.interruption --readers=10

It takes a long time, so its file name keeps it out of the default test run.
Each command runs once to its end. Then it is started again and again, ended at
a random moment by SIGKILL, SIGTERM or SIGINT, and repeated: the repetition has
to give the same numbers, and no file may be incomplete under its final name.
With --readers, runs are trained while this process reads them every 0.1 s.
Commands are forks of this process, which has imported everything but started no
device; compiled programs are cached.
"""

import atexit
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import app, flags, logging
from PIL import Image

from configs import tiny_clip
from tests.helpers import small_run
from zsad_jax import calibrate, evaluate, predict, pretrain, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.pretraining import synthetic_pairs
from zsad_jax.runs import lock
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli, stopping

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TABLES = ("scores.csv", "regions.csv", "regions.json")
SECONDS = 25.0  # A signal has to end a command within them.
UNFINISHED = re.compile(
  r"error: .*(--workdir names|no complete checkpoint|training was not finished)"
).search
MODULES = {
  "train": train,
  "evaluate": evaluate,
  "predict": predict,
  "calibrate": calibrate,
  "pretrain": pretrain,
}


def get_config(name):
  """Return a small configuration for pretraining, or for training on a folder.

  Args:
    name: "pretrain", or the folder of the data set.
  """
  if name != "pretrain":
    config = small_run.get_anomalyclip_config(name)
    config.log_steps = config.checkpoint_steps = 2
    return config
  config: Any = tiny_clip.get_config()
  sizes = dataclasses.asdict(small_run.BACKBONE) | {"image_size": 64}
  config.model = {k: v for k, v in sizes.items() if "heads" not in k}
  config.update(
    pairs=32,
    held_out=16,
    batch_size=8,
    keep=32,
    whole_steps=0,
    steps=16,
    warmup=2,
    log_steps=2,
    measure_steps=8,
    checkpoint_steps=4,
  )
  config.objective.update(feature_layers=("block02",), vv_from=2)
  return config


@dataclasses.dataclass
class Command:
  """A command on copies of an input folder.

  Attributes:
    name: key of `MODULES`.
    arguments: with {0} for the folder of the copy.
  """

  name: str
  arguments: tuple[str, ...]

  def start(self, folder: pathlib.Path, log: str = "log") -> "Process":
    """Start it on a copy; both streams go to a file."""

    def run():
      os.environ["ZSAD_JAX_CACHE"] = str(folder / "cache")
      run_command(self.name, [a.format(folder) for a in self.arguments])

    return Process(run, folder / log)

  def finish(self, folder: pathlib.Path) -> float:
    """Run it to its end; return the seconds it took."""
    start = time.monotonic()
    status = self.start(folder).wait()
    assert status == 0, (folder / "log").read_text()
    return time.monotonic() - start


class Process:
  """A fork of this process that calls a function.

  Args:
    function: it may exit.
    log: receives both streams.
  """

  def __init__(self, function: Callable[[], None], log: pathlib.Path):
    self._status: int | None = None
    sys.stdout.flush()
    # Hooks of libraries at a fork ignore the exception of a signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
    self._pid = os.fork()
    if self._pid:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
      return
    code = 70
    try:
      stopping.exit_on_signal()  # As `import zsad_jax` of a command does.
      os.setsid()
      stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
      os.dup2(stream, 1)
      os.dup2(stream, 2)
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
      function()
      code = 0
    except SystemExit as error:
      code = error.code if isinstance(error.code, int) else bool(error.code)
    except BaseException:
      traceback.print_exc()
    finally:  # As the interpreter ends.
      threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
      atexit._run_exitfuncs()
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)

  def poll(self) -> int | None:
    """Return the status, negative for a signal; None while it runs."""
    if self._status is None:
      pid, status = os.waitpid(self._pid, os.WNOHANG)
      if pid:
        self._status = os.waitstatus_to_exitcode(status)
    return self._status

  def wait(self, seconds: float = 600.0) -> int | None:
    """Wait for the end, but not longer; return `poll()`."""
    end = time.monotonic() + seconds
    while self.poll() is None and (left := end - time.monotonic()) > 0:
      time.sleep(min(left, 0.005))
    return self._status

  def send_signal(self, number: signal.Signals) -> None:
    """Send a signal; the process must not have been waited for."""
    os.kill(self._pid, number)


def run_command(name: str, arguments: list[str]) -> None:
  """Run a command of the project with the small backbone."""
  clip_load.RANDOM_CONFIG = small_run.BACKBONE
  sys.argv = [name, *arguments]
  module = MODULES[name]
  cli.run(
    module.main,
    module.define_flags,
    arguments=name in ("predict", "calibrate"),
  )


def numbers(folder: pathlib.Path) -> dict[str, str]:
  """Return digests of all results of a copy that have to be reproducible."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if not path.is_file() or name.startswith(("cache", "data", "start")):
      continue
    if path.match("checkpoints/*/meta/metadata"):
      # The one before the newest may be of the step of a stop.
      step = path.parents[1]
      if int(step.name) < max(int(p.name) for p in step.parent.iterdir()):
        continue
      sums = json.loads(path.read_text())["checksums"]
      sums.pop("meta")  # It has the time.
      data = json.dumps(sums).encode()
    elif path.name == "results.json":
      data = json.dumps(json.loads(path.read_text())["rows"]).encode()
    elif path.name == "metrics.jsonl":
      lines = [json.loads(line) for line in path.read_text().splitlines()]
      for line in lines:
        line.pop("images_per_second", None)
      data = json.dumps(lines).encode()
    elif path.name.startswith("threshold") or path.name in TABLES:
      data = path.read_bytes().replace(bytes(folder), b"")
    elif path.suffix in (".npy", ".safetensors"):
      data = path.read_bytes()
    else:
      continue
    found[name] = hashlib.sha256(data).hexdigest()
  return found


def check_files(folder: pathlib.Path) -> None:
  """Check that every file with a final name is complete."""
  for path in folder.rglob("*"):
    hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
    if hidden or not path.is_file() or "tmp" in str(path.relative_to(folder)):
      continue
    data = path.read_bytes()
    if path.suffix == ".json":
      json.loads(data)
    elif path.suffix == ".jsonl":
      for line in data.decode().splitlines():
        json.loads(line)
    elif path.suffix == ".png":
      Image.open(io.BytesIO(data)).load()
    elif path.suffix in (".npy", ".npz") and "features" not in str(path):
      np.load(io.BytesIO(data))
    elif path.suffix == ".safetensors":
      safetensors.numpy.load(data)
    elif path.name == "scores.csv":
      rows = read_csv(data)
      if "status" in rows[0]:  # Of `predict`.
        assert len(rows) == len(list((folder / "data").rglob("test/*/*.png")))
        assert all((r["status"] == "scored") == bool(r["score"]) for r in rows)
        check_named(path.parent, [r for r in rows if r["score"]])
    elif path.name == "scores.partial.csv":
      rows = read_csv(data[: data.rfind(b"\n") + 1])
      check_named(path.parent, [r for r in rows if r["score"]])
    elif path.suffix == ".html":
      assert data.endswith(b"</html>\n"), path


def read_csv(data: bytes) -> list[dict[str, str]]:
  """Return the rows of a table, which is complete."""
  rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
  assert not any(None in (*r, *r.values()) for r in rows)
  return rows


def check_named(folder: pathlib.Path, rows: list[dict[str, str]]) -> None:
  """Check that all files in a table of scores exist, and its regions."""
  for row in rows:
    for column in {"overlay", "map", "mask"} & row.keys():
      assert pathlib.Path(row[column]).is_file(), row
  regions = folder / "regions.csv"
  if regions.is_file() and (folder / "scores.csv").is_file():
    assert len(read_csv(regions.read_bytes())) == sum(
      int(row["regions"]) for row in rows
    )


def interrupt(
  command: Command,
  folder: pathlib.Path,
  delay: float,
  number: signal.Signals,
) -> str:
  """Start a command and send it a signal.

  Returns:
    A line about its end, "" if it had ended before.
  """
  process = command.start(folder)
  early = process.wait(delay) is not None
  start = time.monotonic()
  if early:
    return ""
  process.send_signal(number)
  status = process.wait(SECONDS + 60)
  seconds = time.monotonic() - start
  text = (folder / "log").read_text(errors="replace")
  expected = -number if number == signal.SIGKILL else 128 + number
  # It may have been about to end.
  assert status == expected or (status == 0 and seconds < 2), text
  assert seconds < SECONDS, f"{seconds:.1f} s\n{text}"
  assert "Traceback" not in text and text.count("Stopped by") <= 1, text
  if status and number != signal.SIGKILL:
    assert "Stopped by" in text.splitlines()[-1], text
  last = (text.splitlines() or [""])[-1][:60]
  return f"{number.name} after {delay:.1f} s: ended in {seconds:.1f} s; {last}"


def campaign(
  command: Command, start: pathlib.Path, kills: int, rng: random.Random
) -> None:
  """Interrupt one command at random moments."""
  folder = start.parent / command.name
  seconds = {}
  for cached in (False, True):
    copy(start, folder, keep_cache=cached)
    seconds[cached] = command.finish(folder)
  expected = numbers(folder)
  assert expected
  print(f"{command.name}: {seconds} s, {len(expected)} results", flush=True)
  for i in range(kills):
    cached, number = rng.random() < 0.9, SIGNALS[i % len(SIGNALS)]
    line = ""
    while not line:  # Repeated if the command has ended before the signal.
      copy(start, folder, keep_cache=cached)
      delay = rng.uniform(0, seconds[cached])
      line = interrupt(command, folder, delay, number)
    print(f"  {i + 1}/{kills}  {line}", flush=True)
    check_files(folder)
    command.finish(folder)
    check_files(folder)
    found = numbers(folder)
    different = {k for k in found if found[k] != expected.get(k)}
    assert found == expected, different | (found.keys() ^ expected.keys())
  shutil.rmtree(folder)


def copy(start: pathlib.Path, folder: pathlib.Path, *, keep_cache: bool):
  """Copy the input folder; only the cache of the last run may be kept."""
  for path in folder.glob("*"):
    if keep_cache and path.name == "cache":
      continue
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  shutil.copytree(start, folder, dirs_exist_ok=True)


def poll(workdir: pathlib.Path) -> None:
  """Read a run every 0.1 s, as commands and TensorBoard do, until it exists."""
  clip_load.RANDOM_CONFIG = small_run.BACKBONE
  count = 0
  while workdir.parent.exists():
    time.sleep(0.1)
    count += 1
    for parent, _, names in os.walk(workdir):
      for name in names:  # They may be removed at any time.
        with contextlib.suppress(FileNotFoundError):
          pathlib.Path(parent, name).read_bytes()
    with contextlib.suppress(ValueError):
      lock.check(workdir)
    try:
      run_lib.load(workdir)
      threshold_lib.read(workdir)
    except FileNotFoundError:
      continue
    if (workdir / "finished").exists():
      print(f"read {count} times")
      return


def read_while_training(
  training: Command,
  readers: tuple[Command, ...],
  start: pathlib.Path,
  runs: int,
):
  """Train runs that are read, evaluated and predicted with all the time."""
  folder = start.parent / "read"
  copy(start, folder, keep_cache=False)
  training.finish(folder)
  expected = numbers(folder)
  for i in range(runs):
    copy(start, folder, keep_cache=False)
    process, ends = training.start(folder), []
    poller = Process(lambda: poll(folder / "run"), folder / "polled")
    while process.poll() is None:
      reader = readers[len(ends) % len(readers)].start(folder, "reader")
      ends.append(reader.wait())
      text = (folder / "reader").read_text()
      # There is no complete run to read at first.
      assert ends[-1] == 0 or (ends[-1] == 1 and UNFINISHED(text)), text
    assert 0 in ends, "no reader has succeeded while the run was trained"
    log = (folder / "log").read_text()
    assert process.poll() == 0, log
    (folder / "run" / "finished").touch()
    assert poller.wait() == 0, (folder / "polled").read_text()
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert numbers(folder) == expected
    left = [*folder.rglob("*damaged*")]
    assert not left and "damaged" not in log, (left, log)
    check_files(folder)
    text = (folder / "polled").read_text().strip()
    print(f"  run {i + 1}/{runs}: {text}; readers ended {ends}", flush=True)


def main(_):
  """Run what the flags ask for."""
  logging.set_verbosity(logging.WARNING)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  name = tempfile.mkdtemp()  # The end of a fork has to leave it alone.
  try:
    run_all(pathlib.Path(name), flags.FLAGS)
  finally:
    shutil.rmtree(name)


def run_all(folder: pathlib.Path, options: flags.FlagValues):
  """Run what the flags ask for in a temporary folder."""
  rng = random.Random(options.seed)
  if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", f"{folder}/compiled")
  start = folder / "start"
  small_run.write_mvtec(start / "data")
  data = "{0}/data"
  training = Command(
    "train",
    (f"--config=tests/interruption.py:{data}", "--workdir={0}/run"),
  )
  workdir = "--workdir={0}/run"
  reading = (
    Command("evaluate", (workdir, f"--data={data}", "--output={0}/out")),
    Command("predict", (workdir, "--output={0}/out", f"{data}/*/test/*")),
    Command("calibrate", (workdir, f"{data}/nut/test/good", "--rate=0.3")),
  )
  if options.readers:
    read_while_training(training, reading[:2], start, options.readers)
    return
  chosen = options.commands
  if "train" in chosen:
    campaign(training, start, options.kills, rng)
  if "pretrain" in chosen:
    pretraining = Command(
      "pretrain",
      ("--config=tests/interruption.py:pretrain", "--workdir={0}/run"),
    )
    campaign(pretraining, start, options.kills, rng)
  if {"train", "pretrain"} >= {*chosen}:
    return
  training.finish(start)
  for command in reading:
    if command.name in chosen:
      campaign(command, start, options.kills, rng)


# Also in the processes that draw pairs, which import this module.
synthetic_pairs.PAIRS_PER_FILE = 32

if __name__ == "__main__":
  flags.DEFINE_integer("kills", 20, "Interruptions of each command.", 1)
  flags.DEFINE_integer("seed", 0, "Seed of the moments.")
  flags.DEFINE_integer("readers", 0, "Runs to train while they are read.", 0)
  flags.DEFINE_list("commands", [*MODULES], "Commands to interrupt.")
  app.run(main)
