"""Repetitions, and the papers' configurations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.datasets import references
from zsad_jax.evaluation import grouping, published
from zsad_jax.evaluation.protocol import Protocol
from zsad_jax.evaluation.results import Result, Setting
from zsad_jax.reporting import report
from zsad_jax.runtime import config_files


def result(seed, temperature, step, choice, name="clip", paper=None):
  """A result of a run with these settings."""
  fields = {"seed": seed, "method.temperature": temperature, "image_size": 112}
  return Result(
    name,
    "parts",
    "/d/parts",
    choice,
    {"nut": {"image_auroc": seed / 10}},
    dict(trained_parameters=1, training_seconds=2.0, images_per_second=3.0),
    Protocol(("aux",), ("parts",), "last", ()),
    Setting("embedded", 112, 4.0, "last", seed, step, fields=fields),
    paper,
  )


CHOICES = (
  references.NONE,
  references.References({"nut": ("a.png",)}, 1, 10),
  references.References({"nut": ("b.png",)}, 1, 20),
  references.References({"nut": ("b.png",)}, 1),
)
RUNS = st.builds(
  result,
  st.integers(1, 3),
  st.sampled_from([0.07, 0.1]),
  st.sampled_from([100, 200]),
  st.sampled_from(CHOICES),
  st.sampled_from(["clip", "other"]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(RUNS, min_size=1, max_size=12))
def test_only_seeds_differ_within_a_group(results):
  found = grouping.groups(results)
  assert sum(map(len, found.values())) == len(results)
  key = lambda r: (
    r.method,
    r.setting.fields["method.temperature"],
    r.setting.step,
    r.references.group,
  )
  keys = [{key(r) for r in members} for members in found.values()]
  assert all(len(each) == 1 for each in keys)
  assert len(set().union(*keys)) == len(found)


def test_the_names_show_what_differs():
  results = [result(s, t, 100, CHOICES[0]) for s in (1, 2) for t in (0.07, 0.1)]
  assert {k: len(v) for k, v in grouping.groups(results).items()} == {
    "clip (method.temperature=0.07), 0-shot": 2,
    "clip (method.temperature=0.1), 0-shot": 2,
  }
  assert not grouping.notes(results)
  assert "different seeds" in grouping.notes(results + results[:1])[0]
  # Given references are no repetition of sampled ones.
  given = [result(1, 0.1, 100, choice) for choice in CHOICES[1:]]
  assert [*grouping.groups(given)] == ["clip, 1-shot", "clip, 1-shot-given"]


def test_means_are_of_results_that_papers_have():
  paper = ("clip_paper", "visa")
  results = [result(s, 0.1, 1, CHOICES[0], paper=paper) for s in (1, 3)]
  results.append(result(5, 0.1, 1, CHOICES[0], name="own"))
  (key,) = found = report.means(results)
  assert key == (*paper, 0)
  assert found[key]["image_auroc"] == pytest.approx(0.2)


@pytest.mark.parametrize(
  "spec, name",
  [
    ("adaclip:paper", "adaclip_paper"),
    ("adaclip:paper_mvtec,k40", "adaclip_paper_mvtec_k40"),
    ("faprompt:paper,no_dap", "faprompt_paper_no_dap"),
    ("anomalyclip", ""),
    ("anomalyclip:random", ""),
  ],
)
def test_the_papers_configurations_are_recognized(spec, name):
  config = config_files.load(spec)
  config.name = "mine"  # The name proves nothing.
  assert published.paper_config(config) == name


@pytest.mark.parametrize(
  "field, value",
  [
    ("image_size", 336),
    ("backbone.name", "embedded"),
    ("backbone.dtype", "bfloat16"),
    ("train_data", ("mvtec", "clinicdb")),
    ("method.temperature", 0.1),
    ("epochs", 1),
    ("smooth_sigma", 0.0),
    ("selection", "last"),
    ("prompt_names", "readable"),
  ],
)
def test_any_other_setting_is_not_the_papers(field, value):
  config = config_files.load("adaclip:paper").unlock()
  config.update_from_flattened_dict({field: value})
  assert config.name == "adaclip_paper"
  assert published.paper_config(config) == ""


def test_settings_without_effect_do_not_matter():
  config = config_files.load("adaclip:paper").unlock()
  changes = {
    "seed": 5,
    "name": "x",
    "data_root": "/e",
    "test_data": ("btad",),
    "log_steps": 7,
    "features.storage": "disk",
    "backbone.path": "/elsewhere/clip.safetensors",
  }
  config.update_from_flattened_dict(changes)
  assert published.paper_config(config) == "adaclip_paper"
