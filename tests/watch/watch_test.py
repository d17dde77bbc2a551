import csv
import datetime
import io
import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from tests.helpers import fake_detector
from zsad_jax.reporting import region_files, result_files
from zsad_jax.runs import lock
from zsad_jax.runtime import files, processes
from zsad_jax.watch import arrivals, command, journal, loop, tables

SAVE = frozenset(result_files.OUTPUTS)


class Clock:
  """Time that passes only in `sleep`."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds + 1e-6


class Session:
  """A watcher with a fake detector and clock.

  Args:
    folder: has `in` and `out`.
    save: outputs.
  """

  def __init__(self, folder, save=SAVE, batch_size=4):
    self.folder, self.output = folder / "in", folder / "out"
    self.folder.mkdir(exist_ok=True)
    self.output.mkdir(exist_ok=True)
    self.clock, self.detector = Clock(), fake_detector.FakeDetector()
    writer = result_files.ResultWriter(
      self.output, save, fake_detector.LIMITS, has_references=False
    )
    self.watcher = loop.Watcher(
      detector=self.detector,
      writer=writer,
      folder=self.folder,
      output=self.output,
      tables=tables.make(writer.columns),
      describe=lambda result: f"{result.detection.label} {result.path}",
      batch_size=batch_size,
      clock=self.clock,
      sleep=self.clock.sleep,
    )
    self.journal = journal.Journal(self.output, self.watcher.tables)

  def __enter__(self):
    self.journal.__enter__()
    self.watcher.begin(self.journal)
    return self

  def __exit__(self, *error):
    self.journal.__exit__(*error)

  def steps(self, seconds=2.0):
    """Run the loop for some time."""
    end = self.clock.now + seconds
    while self.clock.now < end:
      self.watcher.step()

  @property
  def lines(self):
    return read_lines(self.output)

  @property
  def rows(self):
    return read_table(self.output / "scores.csv")


def read_lines(output):
  text = (output / journal.FILE).read_text()
  assert text.endswith("\n") or not text
  return [json.loads(line) for line in text.splitlines()]


def read_table(path):
  data = path.read_bytes()
  assert data.startswith(b"\xef\xbb\xbf")
  return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))


def write(path, value=50):
  fake_detector.write_image(path, value)
  return path


def check_regions(session):
  """Check that the regions of each state of a file can be told apart."""
  rows = read_table(session.output / region_files.CSV)
  assert len(rows) == sum(line["region_count"] for line in session.lines) > 0
  for line in session.lines:
    found = [
      {k: v for k, v in row.items() if k not in ("time", "image")}
      for row in rows
      if (row["time"], row["image"]) == (line["time"], line["image"])
    ]
    assert found == [
      {k: f"{v:.6g}" for k, v in each.items()} for each in line["regions"]
    ]


def test_an_image_has_a_line_a_row_and_complete_files(tmp_path):
  with Session(tmp_path) as session:
    (session.folder / "sub").mkdir()
    path = write(session.folder / "sub" / "ä 1.png", 240)
    session.steps()
    (line,), (row,) = session.lines, session.rows
  status = path.stat()
  assert line["source"] == {
    "path": str(path),
    "size": status.st_size,
    "name": "sub_ä 1",
    "mtime_ns": status.st_mtime_ns,
  }
  assert line["label"] == row["label"] == "anomalous"
  assert line["status"] == row["status"] == "scored"
  assert row["score"] == f"{line['score']:.6g}" and line["score"] > 0.9
  assert row["image"] == line["image"] == str(path)
  assert row["time"] == line["time"]
  scored = datetime.datetime.fromisoformat(row["time"])
  assert (
    0 <= (datetime.datetime.now(datetime.UTC) - scored).total_seconds() < 60
  )
  for column in ("overlay", "mask"):
    with PIL.Image.open(row[column]) as image:
      image.load()
  assert np.load(row["map"]).shape == (8, 8)
  assert line["region_count"] == 1 == len(line["regions"])
  (region,) = read_table(session.output / region_files.CSV)
  found = line["regions"][0]
  assert region["image"] == str(path) and row["regions"] == "1"
  assert {k: region[k] for k in ("left", "area")} == {
    "left": str(found["left"]),
    "area": str(found["area"]),
  }


def test_each_image_is_scored_once_also_after_a_restart(tmp_path):
  with Session(tmp_path) as session:
    for i in range(3):
      write(session.folder / f"{i}.png", 40 * i)
    session.steps()
    session.steps()
  with Session(tmp_path) as session:
    write(session.folder / "new.png")
    session.steps()
    assert session.detector.sizes == [1]
    images = [line["image"] for line in session.lines]
  assert len(set(images)) == len(images) == 4


def test_waiting_images_are_scored_in_full_batches_else_one_by_one(tmp_path):
  with Session(tmp_path) as session:
    for i in range(10):
      write(session.folder / f"{i}.png")
    session.steps()
    assert session.detector.sizes == [4, 4, 1, 1]


def test_a_file_is_not_read_before_two_lists_show_the_same(tmp_path):
  with Session(tmp_path) as session:
    path = write(session.folder / "a.png")
    data = path.read_bytes()
    for part in range(1, 6):
      path.write_bytes(data[: part * len(data) // 6])
      session.watcher.step()  # Lists the folder once.
      session.clock.sleep(arrivals.INTERVAL)
    assert not session.detector.sizes
    path.write_bytes(data)
    session.steps()
    assert [line["status"] for line in session.lines] == ["scored"]


def test_an_incomplete_file_is_read_again_until_it_is_complete(tmp_path):
  with Session(tmp_path) as session:
    path = write(session.folder / "a.png")
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    session.steps(arrivals.PATIENCE - 1)
    assert session.detector.sizes and not session.lines
    path.write_bytes(data)
    session.steps()
    assert [line["status"] for line in session.lines] == ["scored"]


def test_a_corrupt_file_gets_one_row_after_a_while(tmp_path):
  with Session(tmp_path) as session:
    path = session.folder / "a.jpg"
    path.write_bytes(b"no image")
    good = write(session.folder / "b.png")
    session.steps(arrivals.PATIENCE + 2)
    calls = len(session.detector.sizes)
    session.steps(10)
    assert len(session.detector.sizes) == calls
    status = {line["image"]: line["status"] for line in session.lines}
    assert status[str(good)] == "scored"
    assert status[str(path)].startswith(f"not read: {path}")
    assert len(session.rows) == 2
    write(path)  # It was replaced by another file.
    session.steps()
    assert [r["status"][:8] for r in session.rows if r["image"] == str(path)][
      1:
    ] == ["scored"]


def test_a_name_that_is_used_again_has_results_of_its_own(tmp_path):
  with Session(tmp_path) as session:
    path = session.folder / "photo.png"
    for value in (10, 100, 200):
      write(path, value)
      os.utime(path, ns=(0, value))
      session.steps()
    check_regions(session)
    write(session.folder / "photo.jpg", 30)
    write(session.folder / "PHOTO.bmp", 30)
    session.steps()
    overlays = [line["overlay"] for line in session.lines]
    scores = [line["score"] for line in session.lines[:3]]
  assert scores == sorted(scores) and len({*map(str.lower, overlays)}) == 5
  assert len(list(session.output.glob("*_overlay.png"))) == 5


def test_results_hidden_files_and_thumbnails_are_no_images(tmp_path):
  with Session(tmp_path) as session:
    session.watcher.folder = tmp_path  # It contains the output.
    session.watcher.begin(session.journal)
    write(tmp_path / "a.png")
    write(tmp_path / ".hidden.png")
    for name in ("@eaDir", ".cache", "#recycle"):
      (tmp_path / name).mkdir()
      write(tmp_path / name / "b.png")
    session.steps(5)
    assert [line["image"] for line in session.lines] == [
      str(tmp_path / "a.png")
    ]


def test_files_that_are_no_images_are_mentioned_once_for_each_kind(
  tmp_path, capsys
):
  with Session(tmp_path) as session:
    write(session.folder / "a.png")
    for name in ("note.txt", "b.txt", "c.mp4", ".hidden.txt"):
      (session.folder / name).write_text("x")
    session.steps(5)
    (session.folder / "d.txt").write_text("x")
    (session.folder / "e.bin").write_text("x")
    session.steps(5)
    assert len(session.lines) == 1
  notes = [x for x in capsys.readouterr().out.splitlines() if "left out" in x]
  assert len(notes) == 2 and all(str(session.folder) in x for x in notes)
  assert "3 files left out: 2 .txt, 1 .mp4" in notes[0]
  assert "1 file left out: 1 .bin." in notes[1]


def test_an_empty_file_is_named_so(tmp_path):
  with Session(tmp_path) as session:
    (session.folder / "a.png").touch()
    session.steps(arrivals.PATIENCE + 2)
    (row,) = session.rows
  assert (
    "a.png: cannot be read as an image (the file is empty)" in row["status"]
  )


def test_an_image_that_is_a_reference_gets_a_row(tmp_path):
  with Session(tmp_path) as session:
    for i in range(5):
      write(session.folder / f"{i}.png")
    session.detector.error = ValueError("x is one of the\nreferences")
    session.steps()
    statuses = {line["status"] for line in session.lines}
  assert statuses == {"not scored: x is one of the references"}
  assert len(session.lines) == 5


def test_an_image_that_changes_while_it_is_scored_is_scored_again(tmp_path):
  with Session(tmp_path) as session:
    path = write(session.folder / "a.png", 10)
    unchanged = session.watcher.writer.write

    def overwriting(result):
      row = unchanged(result)
      if not session.lines and path.stat().st_mtime_ns != 7:
        write(path, 200)
        os.utime(path, ns=(7, 7))
      return row

    session.watcher.writer.write = overwriting
    session.steps(5)
    (line,) = session.lines
  assert line["score"] > 0.7 and line["source"]["mtime_ns"] == 7
  assert len(list(session.output.glob("*_overlay.png"))) == 1


def test_an_image_that_changes_before_it_is_decoded_leaves_no_files(tmp_path):
  """The list shows the incomplete file, the detector reads the complete one."""
  with Session(tmp_path) as session:
    path = write(session.folder / "a.png")
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    write(session.folder / "a.bmp")
    session.watcher.step()
    stream = session.detector.stream

    def late(images, **options):
      if path.stat().st_size < len(data):
        path.write_bytes(data)
      return stream(images, **options)

    session.detector.stream = late
    session.steps(5)
    names = [line["source"]["name"] for line in session.lines]
    overlays = {p.name for p in session.output.glob("*_overlay.png")}
  assert overlays == {f"{name}_overlay.png" for name in names}
  assert len(names) == 2


def test_a_removed_image_has_no_row(tmp_path):
  with Session(tmp_path) as session:
    path = write(session.folder / "a.png")
    session.watcher.step()
    session.clock.sleep(1)
    listed = session.watcher._arrivals.poll()
    path.unlink()
    session.watcher._process(listed)
    session.steps()
    assert not session.lines


def test_a_folder_that_vanishes_is_reported_once(tmp_path, capsys):
  with Session(tmp_path) as session:
    write(session.folder / "a.png")
    session.steps()
    session.folder.rename(tmp_path / "gone")
    session.steps(20)
    (tmp_path / "gone").rename(session.folder)
    write(session.folder / "b.png")
    session.steps()
    assert len(session.lines) == 2
  out = capsys.readouterr().out
  assert out.count("does not exist") == 1
  assert out.count("the folder can be read again") == 1


def test_a_full_disk_loses_no_image(tmp_path, capsys, monkeypatch):
  full = [True]
  write_bytes = files.write_bytes

  def limited(path, data):
    if full[0]:
      raise OSError(28, "No space left on device", str(path))
    write_bytes(path, data)

  monkeypatch.setattr(files, "write_bytes", limited)
  with Session(tmp_path) as session:
    for i in range(6):
      write(session.folder / f"{i}.png")
    session.steps(30)
    assert not session.lines
    full[0] = False
    session.steps(10)
    assert len(session.lines) == len(session.rows) == 6
  out = capsys.readouterr().out
  assert out.count("No space left on device") == 1
  assert out.count("results can be written again") == 1


def test_a_line_that_is_written_in_part_is_removed(tmp_path, monkeypatch):
  with Session(tmp_path) as session:
    write(session.folder / "a.png")
    session.steps()
    before = (session.output / journal.FILE).read_bytes()
    write(session.folder / "b.png")
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:20]))
    session.steps(3)
    monkeypatch.undo()
    assert (session.output / journal.FILE).read_bytes() == before
    session.steps(10)
    assert len(session.lines) == 2


def test_a_table_that_was_changed_or_removed_is_written_again(tmp_path):
  with Session(tmp_path) as session:
    for i in range(3):
      write(session.folder / f"{i}.png")
      session.steps()
      table = session.output / "scores.csv"
      if i == 0:
        table.unlink()
      elif i == 1:
        table.write_text("x")
    assert len(session.rows) == 3


def test_regions_without_times_are_written_again(tmp_path):
  with Session(tmp_path) as session:
    for value in (10, 100):
      write(session.folder / "photo.png", value)
      session.steps()
  path = session.output / region_files.CSV
  complete = path.read_bytes()
  assert complete.startswith(b"\xef\xbb\xbftime,image,region,")
  lines = complete.decode("utf-8-sig").splitlines()
  old = [line.partition(",")[2] for line in lines]  # Of former versions.
  path.write_text("\r\n".join(old) + "\r\n", "utf-8-sig")
  with Session(tmp_path):
    assert path.read_bytes() == complete


def test_a_journal_that_was_removed_ends_the_command(tmp_path):
  with Session(tmp_path) as session:
    write(session.folder / "a.png")
    session.steps()
    (session.output / journal.FILE).unlink()
    write(session.folder / "b.png")
    with pytest.raises(ValueError, match="removed or replaced"):
      session.steps()


def test_cut_at_every_byte_the_journal_and_the_tables_agree(tmp_path):
  """A kill leaves any prefix of the last line, and tables of any state."""
  with Session(tmp_path, save=frozenset(["scores"])) as session:
    for i in range(3):
      write(session.folder / f"{i}.png", 100 * i)
    session.steps()
  output = session.output
  data = (output / journal.FILE).read_bytes()
  table = output / "scores.csv"
  complete = table.read_bytes()
  second = data.index(b"\n") + 1
  second = data.index(b"\n", second) + 1
  states = itertools.cycle([0, 1, 7, 60, 10**6])
  for end in range(second, len(data) + 1):
    (output / journal.FILE).write_bytes(data[:end])
    table.write_bytes(complete[: next(states)])
    with journal.Journal(output, session.watcher.tables) as found:
      expected = 3 if end == len(data) else 2
      assert found.count == expected
    assert (output / journal.FILE).read_bytes() == data[
      : len(data) if expected == 3 else second
    ]
    rows = table.read_bytes()
    assert complete.startswith(rows) and rows.count(b"\n") == 1 + expected


def test_a_corrupt_line_before_the_last_is_refused(tmp_path):
  with Session(tmp_path) as session:
    for i in range(3):
      write(session.folder / f"{i}.png")
    session.steps()
  path = session.output / journal.FILE
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
  with pytest.raises(ValueError, match="line 2, is corrupt"):
    Session(tmp_path).__enter__()
  path.write_bytes(lines[0] + b"\0" * 20 + b"\n")  # After a power failure.
  with Session(tmp_path) as session:
    assert session.journal.count == 1


def test_names_that_are_not_utf8(tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  name = os.fsdecode(b"stra\xdfe\n.png")
  with Session(tmp_path) as session:
    write(folder / name)
    session.steps()
    (line,), (row,) = session.lines, session.rows
  assert line["image"] == str(folder / name)
  assert row["image"].endswith("stra\\udcdfe\n.png")
  with Session(tmp_path) as session:
    session.steps()
    assert session.journal.count == 1


def test_several_processes_are_refused(monkeypatch):
  monkeypatch.setattr(processes, "count", lambda: 2)
  with pytest.raises(ValueError, match="--watch needs a single process, but 2"):
    command.run(None, str)


def test_folders_that_cannot_be_watched(tmp_path):
  with pytest.raises(FileNotFoundError, match="--watch"):
    loop.check_folders(tmp_path / "missing", tmp_path / "out")
  with pytest.raises(ValueError, match="--watch and --output are both"):
    loop.check_folders(tmp_path, pathlib.Path(f"{tmp_path}/x/.."))


def test_a_second_watcher_is_refused(tmp_path):
  session = Session(tmp_path)
  with lock.hold(session.output, "--output"):
    lock._held.clear()
    with pytest.raises(ValueError, match="is in use by .*another --output"):
      session.watcher.run({})


def test_a_linked_folder_is_searched(tmp_path):
  with Session(tmp_path) as session:
    (tmp_path / "camera").mkdir()
    write(tmp_path / "camera" / "a.png")
    (session.folder / "link").symlink_to(tmp_path / "camera")
    session.steps()
    assert len(session.lines) == 1
    shutil.rmtree(tmp_path / "camera")
    session.steps()
