"""Images that arrive while `predict --watch` is stopped again and again.

python -m tests.watch_kills --run=DIR [--images=1000] [--kills=10]

It takes minutes, so its file name keeps it out of the default test run. One
process writes the images: complete by a renaming, slowly, cut off and completed
later, corrupt for good, or under a name that is used again. The command is
ended at random moments by SIGKILL, SIGTERM or SIGINT and started again. In the
end each image has one line, one row and complete files of its own.
"""

import collections
import csv
import io
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import numpy as np
import PIL.Image
from absl import app, flags

from tests import interruption
from tests.helpers import small_command
from zsad_jax import predict  # noqa: F401  Forks have it imported.

# Of the images; "late" ones are completed after they count as corrupt.
SHARES = {
  "renamed": 48,
  "slow": 30,
  "cut": 10,
  "corrupt": 4,
  "late": 2,
  "again": 6,
}
LATE = 9.0  # Seconds.


def image_file(rng, kind):
  """Return an image file."""
  size = rng.integers(30, 90, 2)
  pixels = rng.integers(90, 110, (*size, 3)).astype(np.uint8)
  top, left = rng.integers(0, size // 2)
  pixels[top : top + 12, left : left + 12] = (250, 240, 20)
  data = io.BytesIO()
  PIL.Image.fromarray(pixels).save(data, kind)
  return data.getvalue()


class Camera:
  """Writes images into a folder and records them.

  Args:
    folder: the folder.
    log: receives a JSON line for each state of a file that gets a result.
    journal: of the results.
    interval: mean seconds between two images.
    seed: of the images.
  """

  def __init__(self, folder, log, journal, interval, seed):
    self._folder, self._log, self._journal = folder, log, journal
    self._interval, self._rng = interval, np.random.default_rng(seed)
    self._later = []  # Time, function.
    self._written = []

  def run(self, number):
    """Write images, and what is left of them."""
    kinds = [k for k, share in SHARES.items() for _ in range(share)]
    self._rng.shuffle(kinds)
    for i in range(number):
      self._write(kinds[i % 100], i)
      self._wait(self._rng.exponential(self._interval))
    while self._later:
      self._wait(0.2)

  def _wait(self, seconds):
    end = time.monotonic() + seconds
    while True:
      for each in [x for x in self._later if x[0] <= time.monotonic()]:
        self._later.remove(each)
        each[1]()
      if time.monotonic() >= end:
        return
      time.sleep(0.01)

  def _write(self, kind, number):
    suffix = ("PNG", "JPEG", "BMP")[number % 3]
    folder = self._folder / ("" if number % 4 else f"part {number % 7}")
    folder.mkdir(exist_ok=True)
    path = folder / f"{number // 2}.{suffix.lower()}"
    data = image_file(self._rng, suffix)
    cut = int(len(data) * self._rng.uniform(0.2, 0.8))
    if kind == "corrupt":
      path.write_bytes(data[:cut] if number % 2 else os.urandom(len(data)))
      self._record(path, "not read")
    elif kind == "again" and self._written:
      self._replace(self._written[self._rng.integers(len(self._written))], data)
    elif kind in ("renamed", "again"):
      hidden = path.with_name(f".{path.name}")
      hidden.write_bytes(data)
      hidden.rename(path)
      self._record(path, "scored")
      self._written.append(path)
    else:
      path.write_bytes(data[:cut])
      if kind == "late":
        self._record(path, "not read")
      seconds = {"slow": 0.3, "cut": 2.0, "late": LATE}[kind]
      end = time.monotonic() + seconds * self._rng.uniform(0.5, 1.0)

      def finish():
        if kind == "late" and not self._is_done(path):
          self._later.append((time.monotonic() + 1, finish))
          return
        with open(path, "ab") as file:
          file.write(data[cut:])
        self._record(path, "scored")

      self._later.append((end, finish))

  def _replace(self, path, data):
    """Use a name again, once the former image has its result."""
    if not self._is_done(path):
      self._later.append(
        (time.monotonic() + 1, lambda: self._replace(path, data))
      )
      return
    kind = {".png": "PNG", ".jpeg": "JPEG", ".bmp": "BMP"}[path.suffix]
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(image_file(self._rng, kind))
    hidden.rename(path)
    self._record(path, "scored")

  def _is_done(self, path):
    status = path.stat()
    return (str(path), status.st_size, status.st_mtime_ns) in {
      identity(line) for line in lines(self._journal)
    }

  def _record(self, path, status):
    found = path.stat()
    entry = [str(path), found.st_size, found.st_mtime_ns, status]
    with open(self._log, "a") as file:
      file.write(json.dumps(entry) + "\n")


def lines(path):
  """Return the complete lines of a file, as JSON."""
  if not path.exists():
    return []
  complete, _, _ = path.read_bytes().rpartition(b"\n")
  return [json.loads(line) for line in complete.splitlines()]


def identity(line):
  source = line["source"]
  return source["path"], source["size"], source["mtime_ns"]


def watch(workdir, folder, output, log):
  """Start the command."""

  def run():
    sys.argv = [
      *("predict", f"--workdir={workdir}", f"--watch={folder}"),
      *(f"--output={output}", "--batch_size=4"),
    ]
    small_command.main("predict")

  return interruption.Process(run, log)


def check_files(output):
  """Check that every file with a final name is complete."""
  for path in output.iterdir():
    if path.name.startswith("."):
      continue
    data = path.read_bytes()
    if path.suffix == ".png":
      PIL.Image.open(io.BytesIO(data)).load()
    elif path.suffix == ".npy":
      np.load(io.BytesIO(data))
    elif path.suffix == ".json":
      json.loads(data)


def check(output, log):
  """Check the results of all images; return their number by status."""
  expected = collections.Counter()
  for path, size, mtime_ns, status in lines(log):
    expected[path, size, mtime_ns, status] += 1
  found = lines(output / "results.jsonl")
  status = lambda line: "scored" if line["status"] == "scored" else "not read"
  results = collections.Counter((*identity(x), status(x)) for x in found)
  assert results == expected, [*(results - expected), *(expected - results)][:9]
  assert set(expected.values()) == {1}
  with open(output / "scores.csv", encoding="utf-8-sig", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [r["image"] for r in rows] == [x["image"] for x in found]
  files = []
  for row, line in zip(rows, found):
    assert row["status"] == line["status"]
    if row["status"] == "scored":
      assert row["score"] == f"{line['score']:.6g}"
      files += [row["overlay"], row["map"], row["mask"]]
  assert len(set(files)) == len(files)
  written = {str(p) for p in output.iterdir() if p.suffix in (".png", ".npy")}
  assert written == {*files}, written ^ {*files}
  with open(output / "regions.csv", encoding="utf-8-sig", newline="") as file:
    regions = collections.Counter(r["image"] for r in csv.DictReader(file))
  described = collections.Counter()
  for line in found:
    described[line["image"]] += len(line["regions"] or ())
  assert regions == +described
  left = [p.name for p in output.iterdir() if p.name.startswith(".")]
  assert not left, left
  return collections.Counter(status(line) for line in found)


def main(_):
  """Let images arrive while the command is interrupted."""
  options = flags.FLAGS
  base = pathlib.Path(tempfile.mkdtemp())
  folder, output, log = base / "in", base / "out", base / "arrived"
  folder.mkdir()
  rng = random.Random(options.seed)
  journal = output / "results.jsonl"
  camera = Camera(folder, log, journal, options.interval, options.seed)
  begin = time.monotonic()
  feeder = interruption.Process(lambda: camera.run(options.images), base / "f")
  for i in range(options.kills):
    process = watch(options.run, folder, output, base / "log")
    number = interruption.SIGNALS[i % 3]
    process.wait(rng.uniform(1, options.longest))
    text = (base / "log").read_text()
    assert process.poll() is None, text
    start = time.monotonic()
    process.send_signal(number)
    status = process.wait(60)
    seconds = time.monotonic() - start
    text = (base / "log").read_text()
    expected = -number if number == signal.SIGKILL else 128 + number
    assert status == expected, (status, text)
    assert "Traceback" not in text and "error" not in text, text
    last = (text.splitlines() or [""])[-1]
    print(
      f"{number.name}: ended in {seconds:.1f} s, {len(lines(log))} images "
      f"have arrived, {len(lines(journal))} lines; {last[:150]}",
      flush=True,
    )
    check_files(output) if output.exists() else None
  process = watch(options.run, folder, output, base / "log")
  while feeder.poll() is None or len(lines(journal)) < len(lines(log)):
    assert process.poll() is None, (base / "log").read_text()
    assert feeder.poll() in (None, 0), (base / "f").read_text()
    time.sleep(0.5)
  time.sleep(3)
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == 128 + signal.SIGTERM
  print((base / "log").read_text().splitlines()[-1])
  check_files(output)
  found = check(output, log)
  seconds = time.monotonic() - begin
  print(f"{dict(found)} in {seconds:.0f} s: each image once, none lost.")
  shutil.rmtree(base)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  flags.DEFINE_string("run", None, "Folder of the run.", required=True)
  flags.DEFINE_integer("images", 1000, "Number of images.", 1)
  flags.DEFINE_integer("kills", 10, "Interruptions.", 0)
  flags.DEFINE_float("longest", 30.0, "Seconds until a kill, at most.", 1.0)
  flags.DEFINE_float("interval", 0.2, "Mean seconds between two images.")
  flags.DEFINE_integer("seed", 0, "Seed of images and moments.")
  app.run(main)
