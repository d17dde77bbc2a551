"""Reproduction of tables: what is done, resumed, left out and refused."""

import contextlib
import csv
import json
import random
import signal
import time
import types

import pytest
from absl import flags

from tests.evaluation.paper_results_test import COLUMNS, ROW
from tests.helpers import launch, small_reproduce, small_run
from tests.helpers.definer import Definer
from zsad_jax.evaluation import paper_results, recipes
from zsad_jax.reproduce import __main__ as reproduce
from zsad_jax.reproduce import embedded, jobs, papers
from zsad_jax.runs import finished
from zsad_jax.runtime import stopping


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A data root with two registered sets and a folder of the same images."""
  folder = tmp_path_factory.mktemp("data")
  for name in ("mvtec", "btad", "parts"):
    small_run.write_mvtec(folder / name, classes=("bolt",))
  return folder


@pytest.fixture
def small(data, monkeypatch):
  """Small configurations, and the order of trainings and evaluations."""
  small_reproduce.install(monkeypatch, str(data / "parts"))
  done = []
  train, evaluate = jobs.train.train, jobs.writer.evaluate

  def trained(config, workdir):
    done.append(f"train {workdir.name}")
    return train(config, workdir)

  def evaluated(run, name, output, how, **options):
    found = evaluate(run, name, output, how, **options)
    done.append(f"evaluate {run.workdir.name} on {name.rpartition('/')[2]}")
    return found

  monkeypatch.setattr(jobs.train, "train", trained)
  monkeypatch.setattr(jobs.writer, "evaluate", evaluated)
  return done


def command(*options):
  """`python -m zsad_jax.reproduce`, in this process."""
  known = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reproduce, "flags", Definer(known))
    reproduce.define_flags()
  known(["reproduce", *options])
  return reproduce.main(known)


@pytest.mark.slow
def test_the_own_table_is_resumed(small, tmp_path, monkeypatch, capsys):
  given = ["--table=embedded", "--seeds=1,2", "--shots=1"]
  given += [f"--workdir={tmp_path}", "--methods=anomalyclip"]
  assert command(*given, "--check") == 0
  assert "anomalyclip_seed2: to train" in capsys.readouterr().out
  assert not small and not list(tmp_path.iterdir())
  # Stopped after a step.
  with monkeypatch.context() as patch:
    patch.setattr(stopping, "Deferred", lambda: small_run.StopAfter(1))
    patch.setattr(stopping, "received", lambda: signal.SIGTERM)
    with pytest.raises(stopping.Stopped):
      command(*given)
  assert small == ["train anomalyclip_seed1"]
  command(*given, "--dry_run")
  assert "training was interrupted" in capsys.readouterr().out
  assert command(*given) == 0
  assert small[1:] == [
    "train anomalyclip_seed1",
    "evaluate anomalyclip_seed1 on parts",
    "train anomalyclip_seed2",
    "evaluate anomalyclip_seed2 on parts",
    "train anomalyclip_random_seed1",
    "evaluate anomalyclip_random_seed1 on parts",
  ]
  lines = (tmp_path / "anomalyclip_seed1/metrics.jsonl").read_text()
  steps = [json.loads(line)["step"] for line in lines.splitlines()]
  assert steps == list(range(1, 9))  # No step was repeated.
  document = json.loads((tmp_path / "embedded.json").read_text())
  rows = {(row["weights"], row["shots"]): row for row in document["rows"]}
  assert len(rows) == 4
  row = rows["embedded", 1]
  assert row["seeds"] == [1, 2] and len(row["repetitions"]) == 2
  values = [each["image_auroc"] for each in row["repetitions"]]
  assert row["mean"]["image_auroc"] == pytest.approx(sum(values) / 2)
  assert len(rows["random", 1]["repetitions"]) == 3  # Seeds of references.
  assert row["settings"]["epochs"] == 2
  markdown = (tmp_path / "embedded.md").read_text()
  assert "| AnomalyCLIP | `anomalyclip:embedded` | 32 | 1 |" in markdown
  assert "±" in markdown
  capsys.readouterr()
  count = len(small)
  assert command(*given) == 0
  assert len(small) == count  # Nothing is repeated.
  assert "anomalyclip, random weights, 1-shot: image" in capsys.readouterr().out


class Killed(BaseException):
  """The process ends here."""


def test_finished_work_is_never_repeated(data, tmp_path, monkeypatch):
  """Interrupted at each point in turn, by trainings and evaluations in name."""
  small_reproduce.install(monkeypatch, str(data / "parts"))
  cells = paper_results.read()
  monkeypatch.setattr(reproduce.paper_results, "read", lambda folder: cells)
  done, left = [], [0]

  def act(name):
    if not left[0]:
      raise Killed
    left[0] -= 1
    done.append(name)

  def train(config, workdir):
    jobs.run_lib.save_config(workdir, config)
    if f"train {workdir.name}" not in done:  # Else it is at the last step.
      act(f"train {workdir.name}")
    return True

  def calibrated(workdir):
    act(f"calibrate {workdir.name}")
    (workdir / "threshold.json").touch()
    finished.Stages(workdir, 8).mark(
      "calibration", [workdir / "threshold.json"]
    )

  def load(workdir):
    config = jobs.run_lib.read_config(workdir)
    return types.SimpleNamespace(workdir=workdir, config=config, step=8)

  def evaluate(run, name, output, how, *, choose, names):
    act(f"evaluate {run.workdir.name}")
    found = []
    dataset = jobs.run_lib.open_dataset(run.config, name)
    for choice in choose(dataset, next(iter(names))):
      result = types.SimpleNamespace(references=choice)
      path = folder(output, result) / "results.json"
      path.parent.mkdir(parents=True, exist_ok=True)
      row = dict.fromkeys(embedded._COLUMNS, 0.5 + 0.1 * len(choice.images))
      path.write_text(json.dumps({"rows": {"bolt": row}}))
      found.append(types.SimpleNamespace(result=result))
    return found

  folder = lambda output, result: output / result.references.label
  monkeypatch.setattr(jobs.writer, "results_folder", folder)
  monkeypatch.setattr(jobs.train, "train", train)
  monkeypatch.setattr(jobs.train, "calibrated", calibrated)
  monkeypatch.setattr(jobs.ensemble, "load", load)
  monkeypatch.setattr(jobs.writer, "evaluate", evaluate)
  names = ("anomalyclip_seed1", "anomalyclip_seed2", "clip_seed1")
  names += ("anomalyclip_random_seed1", "clip_random_seed1")
  given = ["--table=embedded", "--seeds=1,2", "--shots=1"]
  given += [f"--workdir={tmp_path}", "--methods=anomalyclip,clip"]
  for _ in range(40):
    left[0] = 1
    with contextlib.suppress(Killed):
      if not command(*given):
        break
  # A training that is not calibrated is finished again, which costs nothing.
  evaluated = [name for name in done if name.startswith("evaluate")]
  calibrated_runs = [name for name in done if name.startswith("calibrate")]
  assert evaluated == [f"evaluate {name}" for name in names]
  assert calibrated_runs == [f"calibrate {name}" for name in names]
  document = json.loads((tmp_path / "embedded.json").read_text())
  means = {
    (row["method"], row["weights"], row["shots"]): row["mean"]["image_auroc"]
    for row in document["rows"]
  }
  assert means["anomalyclip", "random", 1] == pytest.approx(0.6)
  assert means["clip", "embedded", 0] == 0.5 and len(means) == 6


def write_table(folder, *rows):
  folder.mkdir()
  with (folder / "faprompt.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows({**ROW, **row} for row in rows)
  return f"--paper_results={folder}"


def test_a_table_of_a_paper(small, data, tmp_path, capsys):
  """One target set of two is there; one row is not in the package."""
  paper = write_table(
    tmp_path / "papers",
    dict(method="CLIP", dataset="BTAD", value="34.5"),
    dict(method="CLIP", dataset="VisA", value="66.4"),
    dict(method="CLIP", dataset="MVTec AD", value="74.1"),
    dict(method="SAA", dataset="BTAD", value="50.0"),
    dict(method="CLIP", dataset="BTAD", category="bolt", value="12.5"),
    dict(method="CLIP", dataset="AVG(industrial)", category="average"),
  )
  given = ["--table=faprompt/1", paper, f"--data_root={data}"]
  given += [f"--workdir={tmp_path}/runs"]
  assert command(*given) == 0
  assert small == ["train clip_paper_pair", "evaluate clip_paper_pair on btad"]
  out = capsys.readouterr().out
  assert "Columns of VisA are left out: the data set is missing" in out
  assert (
    "CLIP, 0-shot: left out on MVTec AD: clip:paper_mvtec,pair misses" in out
  )
  assert "SAA, 0-shot: the row is left out: not in this package." in out
  assert "CLIP, 0-shot (clip:paper,pair)" in out and "paper 34.5 (" in out
  document = json.loads((tmp_path / "runs/faprompt_1.json").read_text())
  cells = document["rows"][0]["cells"]
  ours = {(c["dataset"], c["category"]): c["ours"] for c in cells}
  mean, bolt = ours["BTAD", "mean"], ours["BTAD", "bolt"]
  assert mean == bolt and 0 <= mean <= 1
  assert ours["VisA", "mean"] is None and ours["MVTec AD", "mean"] is None
  assert ours["AVG(industrial)", "average"] is None
  markdown = (tmp_path / "runs/faprompt_1.md").read_text()
  assert f"| CLIP, 0-shot | {100 * mean:.1f} / 34.5 | - / 66.4 |" in markdown
  assert command(*given) == 0 and len(small) == 2


def test_what_cannot_be_reproduced_is_refused(small, data, tmp_path):
  paper = write_table(
    tmp_path / "papers", dict(method="AnomalyCLIP", dataset="BTAD")
  )
  table = "--table=faprompt/1"
  for options, message in (
    (
      [table, paper, f"--data_root={tmp_path}"],
      "Missing are: training data mvtec, test data btad",
    ),
    (["--table=faprompt/9", paper], "no 'faprompt/9'; it is embedded, or fa"),
    ([table, paper, "--seeds=1"], "--seeds belongs to --table=embedded"),
    (["--table=embedded", "--methods=a_clip"], "no configuration 'a_clip'"),
    (["--table=embedded", "--seeds=x"], "'x' is not a positive integer"),
    ([table, paper, "--methods=clip", f"--data_root={data}"], "reasons above"),
  ):
    with pytest.raises(ValueError, match=message):
      command(*options, f"--workdir={tmp_path}/runs")
  assert not (tmp_path / "runs").exists() and not small


def test_missing_weights_are_named(data, tmp_path):
  paper = write_table(
    tmp_path / "papers", dict(method="AnomalyCLIP", dataset="BTAD")
  )
  with pytest.raises(ValueError, match=r"zsad weights get ViT-L"):
    command(
      "--table=faprompt/1",
      paper,
      f"--data_root={data}",
      f"--weights={tmp_path}",
    )


def test_averages_and_several_seeds_of_the_shipped_tables(tmp_path):
  cells = paper_results.read()
  table = papers.Table(cells, "faprompt/3", jobs.Settings(tmp_path))
  (average,) = {
    tuple(table._data_of(c))
    for row in table.rows
    for c in row.cells
    if (c.dataset, c.level) == ("AVG(industrial)", "image")
  }
  assert len(average) == 8 and not {"mvtec", "headct"} & {*average}
  recipe = recipes.find("AnomalyCLIP Ensemble", "0", "faprompt")
  members = table._members(recipe, "paper")
  assert [m.seed for m in members] == [None, *range(112, 121)]
  job = jobs.Job(members, (jobs.Target("visa"),))
  name = job.workdir(jobs.Settings(tmp_path)).name
  assert name == "anomalyclip_paper_ensemble10"


def test_all_methods_are_in_the_own_table():
  names = embedded.all_names()
  assert {"clip", "adaclip", "anomalyclip:ensemble"} <= {*names}
  assert not {"adaclip:k20", "common", "tiny_clip"} & {*names}


def test_rows_of_methods_with_references_of_their_own(tmp_path, monkeypatch):
  """PromptAD compares with those of its training; a probe is no SAM here."""
  table = embedded.Table(
    paper_results.read(),
    jobs.Settings(tmp_path),
    ["promptad", "linear_probe", "anomalydino"],
    seeds=(1, 2, 3),
    shots=(1, 4),
  )
  rows = [row for row in table.rows if row.base == "embedded"]
  assert [(row.name, row.shots, len(row.jobs)) for row in rows] == [
    ("promptad", 0, 3),
    ("linear_probe", 0, 3),
    ("anomalydino", 1, 1),
    ("anomalydino", 4, 1),
  ]
  for job in rows[0].jobs:
    assert [target.seeds for target in job.targets] == [()]
  half = dict.fromkeys(embedded._COLUMNS, 0.5)
  monkeypatch.setattr(table, "_values", lambda row: [half])
  assert table.lines(rows[0]).startswith("promptad, 2-shot: ")
  names = [table._line(row).split(" | ")[:4] for row in rows[:2]]
  assert names == [
    ["| PromptAD", "`promptad:embedded`", "112", "2"],
    ["| linear probe", "`linear_probe:embedded`", "112", "0"],
  ]


@pytest.mark.slow
def test_killed_at_random_moments(data, tmp_path):
  """Each restart goes on; finished evaluations keep their files."""
  arguments = ["-m", "tests.helpers.small_reproduce", str(data / "parts")]
  arguments += ["--table=embedded", "--seeds=1,2", "--shots=1"]
  arguments += [f"--workdir={tmp_path}", "--methods=clip,anomalyclip"]
  moments, times, killed, out = random.Random(0), {}, 0, ""
  for kill in (True, True, True, False):
    (env,) = launch.environments(1)
    process = launch.start(arguments, env)
    if kill:
      time.sleep(moments.uniform(8, 30))
      process.kill()
    out, errors = process.communicate()
    killed += process.returncode == -signal.SIGKILL
    # It may end before the kill.
    assert process.returncode in (0, -signal.SIGKILL), errors
    for path, stamp in times.items():
      assert path.stat().st_mtime_ns == stamp, path
    times = {
      path: path.stat().st_mtime_ns
      for file in tmp_path.glob("*/finished.json")
      for name, files in json.loads(file.read_text())["stages"].items()
      if name.startswith("reproduction")
      for path in [file.parent / each for each in files]
    }
  assert killed
  document = json.loads((tmp_path / "embedded.json").read_text())
  assert all(row["mean"] for row in document["rows"]) and len(times) == 10
  assert "clip, random weights, 0-shot: image" in out
