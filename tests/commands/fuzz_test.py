"""Commands on random folders: right counts, or one line that names a file.

ZSAD_FUZZ_EXAMPLES sets the number of examples, which are then drawn anew in
every run; without it 50 are the same in every run. The model is replaced by a
mean over pixels; files are found, read and written by the commands themselves.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import struct
import sys
import tempfile
import threading
import warnings

import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers import random_trees, small_run, tree_reading
from zsad_jax import calibrate, data, evaluate, predict
from zsad_jax.backbones.clip import model
from zsad_jax.evaluation import paper_results
from zsad_jax.inference import predictor
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli

LONG = os.environ.get("ZSAD_FUZZ_EXAMPLES")
EXAMPLES = int(LONG or 50)
DONE = collections.Counter()  # Commands that were not refused.
_COUNTS = re.compile(
  r": (\d+)/(\d+)/(\d+) images \(train / normal test / anomalous test\) of "
)


class Mean:
  """Replaces `Predictor`: maps and scores are means of pixels."""

  def __init__(self, *args, **kwargs):
    pass

  def encode(self, batch):
    return np.asarray(batch["image"], np.float32).mean(-1) / 255

  def build_memory_bank(self, images, class_id, *, batch_size):
    return images.mean() / 255

  def predict(self, params, stats, features, memory_banks=(None,)):
    found = []
    for bank in memory_banks:
      maps = features if bank is None else abs(features - bank)
      maps = maps.astype(np.float32)
      found.append({"anomaly_map": maps, "pred_score": maps.mean((1, 2))})
    return found


class Untrained(run_lib.Run):
  """Run without parameters."""

  num_trained = 0


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A folder of a run, whose model is `Mean`."""
  folder = tmp_path_factory.mktemp("fuzz")
  small_run.write_images(folder / "parts", number=1)
  config = small_run.get_config(str(folder / "parts"))
  backbone = model.random_clip(small_run.BACKBONE, 0)
  work = folder / "run"
  work.mkdir()
  run_lib.save_config(work, config)
  for name in (threshold_lib.FILE, threshold_lib.FEW_SHOT_FILE):
    limits = threshold_lib.Threshold(0.5, 0.0, 1.0, "test", pixel=0.5)
    limits.write(work, name)

  def load(workdir):
    config = run_lib.read_config(workdir)
    method = run_lib.make_method(config.method_name, config.method.to_dict())
    path = pathlib.Path(workdir)
    return Untrained(path, config.lock(), backbone, method, {}, {}, 1, 1.0)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lib, "load", load)
    patch.setattr(predictor, "Predictor", Mean)
    tables = functools.cache(paper_results.read)  # Thousands of numbers.
    patch.setattr(paper_results, "read", tables)
    patch.setattr(data, "_SHOWN", 10**6)
    yield work


@dataclasses.dataclass
class Ended:
  """Exit status and output of a command."""

  status: int
  out: str
  err: str


@contextlib.contextmanager
def restored():
  """Restore what a command changes in its process."""
  known, values = {*flags.FLAGS}, (sys.argv, sys.stdout, sys.stderr)
  hooks = sys.unraisablehook, threading.excepthook
  try:
    yield
  finally:
    for name in {*flags.FLAGS} - known:
      delattr(flags.FLAGS, name)
    sys.argv, sys.stdout, sys.stderr = values
    sys.unraisablehook, threading.excepthook = hooks


def run(module, *arguments, takes_arguments=True) -> Ended:
  """Run a command as its command line does, in this process."""
  status, out = 0, io.BytesIO()
  stdout = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
  with tempfile.TemporaryFile() as err, restored(), warnings.catch_warnings():
    warnings.simplefilter("default")
    sys.stderr.flush()
    before = os.dup(2)  # Libraries in C print there.
    os.dup2(err.fileno(), 2)
    sys.stdout = stdout
    sys.stderr = io.TextIOWrapper(
      open(os.dup(2), "wb"), encoding="utf-8", errors="backslashreplace"
    )
    warnings.showwarning = lambda *args, **_: print(args[:2], file=sys.stderr)
    sys.argv = [module.__name__, *arguments]
    try:
      cli.run(module.main, module.define_flags, arguments=takes_arguments)
    except SystemExit as error:
      status = error.code or 0
    finally:
      sys.stderr.close()
      stdout.flush()
      os.dup2(before, 2)
      os.close(before)
    err.seek(0)
    lines = err.read().decode(errors="replace")
  return Ended(status, out.getvalue().decode(), lines)


def snapshot(top, without=()):
  """Return digests of all files below a folder."""
  found = {}
  for folder, folders, files in os.walk(top):
    if folder in without:
      folders.clear()
      continue
    found[folder] = "folder"
    for name in [*files, *folders]:
      path = os.path.join(folder, name)
      if os.path.islink(path):
        found[path] = os.readlink(path)
      elif os.path.isfile(path):
        data = pathlib.Path(path).read_bytes()
        found[path] = hashlib.sha256(data).hexdigest()
  return found


@dataclasses.dataclass
class Case:
  """One random folder and the run."""

  top: str
  root: str
  workdir: str
  out: str

  def run(self, module, *arguments, writes=(), again=False, **kwargs):
    """Run a command and check what holds for every one."""
    kept = (self.out, *writes)
    before = [snapshot(self.top, kept), snapshot(self.workdir, kept)]
    if not again:
      shutil.rmtree(self.out, ignore_errors=True)
    ended = run(module, *arguments, **kwargs)
    after = [snapshot(self.top, kept), snapshot(self.workdir, kept)]
    assert before == after
    assert "Traceback" not in ended.out + ended.err
    if ended.err:
      assert ended.status == 1, ended
      assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
      assert self.top in ended.err, ended.err  # It names a file.
    name = module.__name__.removeprefix("zsad_jax.")
    event(f"{name}: {'refused' if ended.err else 'done'}")
    if not ended.err:
      DONE.update([name])
    return ended


def rows(path):
  with open(path, newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))


def printed(path):
  """Return a path as a table or the console may show it."""
  return path.encode("utf-8", "backslashreplace").decode()


def check_verify(case):
  ended = case.run(data, "verify", f"--root={case.root}")
  if ended.err:
    return
  expected = tree_reading.samples(case.root)
  found = _COUNTS.search(ended.out)
  assert found and expected, ended.out
  assert [*map(int, found.groups())] == [*map(len, expected.values())]
  for path in sum(expected.values(), []):
    if not tree_reading.readable(path):
      assert ended.status == 1
      known = map(printed, _names(path))
      assert any(x in ended.out for x in known), (path, ended.out)


def check_index(case):
  path = os.path.join(case.out, "meta.json")
  ended = case.run(data, "index", f"--root={case.root}", f"--output={path}")
  if ended.err:
    return
  content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  count = lambda part, label: sum(
    record["anomaly"] == label
    for records in content[part].values()
    for record in records
  )
  expected = tree_reading.samples(case.root)
  assert expected
  found = [count("train", 0), count("test", 0), count("test", 1)]
  assert found == [*map(len, expected.values())]
  for records in (*content["train"].values(), *content["test"].values()):
    for record in records:
      assert os.path.isfile(os.path.join(case.out, record["img_path"]))


def check_predict(case, skip):
  flag = [f"--workdir={case.workdir}", f"--output={case.out}"]
  flag += ["--skip_corrupt"] * skip
  expected = tree_reading.images_below(case.root)
  ended = case.run(predict, case.root, *flag)
  if not os.path.isdir(case.out):
    assert ended.err
    return
  bad = {p for p in expected if not tree_reading.readable(p)}
  assert bool(ended.err) == bool(bad and not skip), ended
  found = rows(os.path.join(case.out, "scores.csv"))
  assert len(found) == len(expected)
  names = [r["image"].replace("\\udcff", "\udcff") for r in found]
  assert {*map(os.path.realpath, names)} == {*map(os.path.realpath, expected)}
  scored = [r for r in found if r["status"] == "scored"]
  if skip or not bad:
    assert len(scored) == len(expected) - len(bad)
  else:
    lines = [_line(x) for path in bad for x in _names(path)]
    assert any(line in ended.err for line in lines), ended.err
  files = [r[k] for r in scored for k in ("overlay", "map", "mask")]
  tables = ("scores.csv", "regions.csv", "regions.json")
  assert {*map(printed, map(os.path.abspath, files))} == {*files}
  assert {*map(os.path.basename, files), *tables} == {*os.listdir(case.out)}
  assert len(files) == len({*files}) == 3 * len(scored)
  numbers = [int(r["regions"]) for r in scored]
  assert len(rows(os.path.join(case.out, "regions.csv"))) == sum(numbers)
  if not ended.err:  # Its own results are no images.
    case.run(predict, case.root, *flag, again=True)
    assert rows(os.path.join(case.out, "scores.csv")) == found


def _names(path):
  """Return the names of a file, which may be a link or lie below one."""
  return path, os.path.realpath(path)


def _line(path):
  return " ".join(printed(path).split())


def check_evaluate(case, skip, shots):
  arguments = [f"--workdir={case.workdir}", f"--output={case.out}"]
  arguments += [f"--data={case.root}"]
  arguments += ["--skip_corrupt"] * skip
  arguments += ["--shots=1", "--seeds=10"] * shots
  ended = case.run(evaluate, *arguments, takes_arguments=False)
  if ended.err:
    return
  expected = tree_reading.samples(case.root)
  assert expected
  test = [*expected["normal"], *expected["anomalous"]]
  bad = [path for path in test if not tree_reading.readable(path)]
  assert skip or not bad
  (table,) = pathlib.Path(case.out).rglob("scores.csv")
  found = rows(table)
  assert len(found) == len(test) * (1 + shots)
  labels = sum(row["label"] == "1" for row in found)
  assert labels == len(expected["anomalous"]) * (1 + shots)
  assert sum(not row["score"] for row in found) >= len(bad) * (1 + shots)
  for path in pathlib.Path(case.out).rglob("*"):
    assert case.out in os.path.realpath(path)


def check_calibrate(case, skip):
  folder = case.root
  found = tree_reading.samples(case.root) or {}
  for path in filter(os.path.isfile, found.get("normal", ())):
    folder = os.path.dirname(path)
  expected = tree_reading.images_below(folder)
  ended = case.run(
    calibrate,
    folder,
    f"--workdir={case.workdir}",
    *["--skip_corrupt"] * skip,
    writes=[case.workdir],
  )
  assert sorted(os.listdir(case.workdir)) == [
    "config.json",
    "threshold.json",
    "threshold_few_shot.json",
  ]
  if ended.err:
    return
  distinct = {}
  for path in expected:
    content = pathlib.Path(path).read_bytes()
    distinct.setdefault(content, path)
  good = [*filter(tree_reading.readable, distinct.values())]
  assert skip or len(good) == len(distinct)
  source = threshold_lib.read(pathlib.Path(case.workdir)).source
  assert f"from {len(good)} normal" in source


@st.composite
def choices(draw):
  """Draw a command and its flags."""
  command = draw(st.sampled_from(["predict", "evaluate", "evaluate"]))
  return {
    "command": draw(st.sampled_from([command, command, "calibrate"])),
    "skip": not draw(st.sampled_from([False, False, True])),
    "shots": draw(st.sampled_from([False, False, True])),
    "inside": draw(st.booleans()),
  }


def check_folder(workdir, tree, command, skip, shots, inside):
  """Run verify, index and another command on a folder, with all checks."""
  root, files = tree
  with tempfile.TemporaryDirectory() as top:
    top = os.path.realpath(top)
    random_trees.write(files, pathlib.Path(top))
    root = os.path.join(top, root)
    case = Case(top, root, str(workdir), os.path.join(top, "out"))
    check_verify(case)
    check_index(case)
    if command == "predict":
      if inside:
        shutil.rmtree(case.out, ignore_errors=True)
        case.out = os.path.join(root, "predicted")
      check_predict(case, skip)
    elif command == "evaluate":
      check_evaluate(case, skip, shots)
    else:
      check_calibrate(case, skip)


@settings(
  max_examples=EXAMPLES,
  deadline=None,
  derandomize=LONG is None,
  suppress_health_check=[*HealthCheck],
  print_blob=True,
)
@given(tree=random_trees.trees(), chosen=choices())
def _random_folders(workdir, tree, chosen):
  check_folder(workdir, tree, **chosen)


def test_random_folders(workdir):
  DONE.clear()
  _random_folders(workdir)
  # Not everything is refused.
  assert DONE["data"] >= EXAMPLES // 2
  assert all(DONE[name] for name in ("predict", "evaluate", "calibrate"))


def test_a_corrupt_tag_of_a_readable_image_is_not_shown(tmp_path):
  file = io.BytesIO()
  image = Image.new("RGB", (12, 12), (90, 80, 70))
  image.save(file, "TIFF", description="x" * 100)
  content = bytearray(file.getvalue())
  entry = content.index(struct.pack("<HH", 270, 2))  # ImageDescription, text.
  content[entry + 4 : entry + 8] = struct.pack("<I", 2**31 - 1)  # Its length.
  (tmp_path / "normal").mkdir()
  (tmp_path / "normal/0.tif").write_bytes(content)
  with pytest.warns(UserWarning, match="Skipping tag 270"):
    Image.open(tmp_path / "normal/0.tif").getexif()
  ended = run(data, "verify", f"--root={tmp_path}")
  assert (ended.status, ended.err) == (0, "")
