"""Every field of a configuration has a range and is named where it is wrong."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from zsad_jax import methods
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.runs import backbone, optimizer_settings, settings, threshold
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files

CONFIGS = [*methods.names(), "tiny_clip"]
WRONG = (0, -1, math.nan, math.inf, 0.0, -1.0)


def rules_of(config):
  pretraining = "method_name" not in config
  return settings.PRETRAINING if pretraining else settings.TRAINING


def fields(config, prefix=""):
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from fields(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def check(config):
  settings.check(config, rules_of(config))
  if "method_name" in config:
    optimizer_settings.check(
      config.optax_name, config.optax.to_dict(), config.param_groups
    )
    run_lib.make_method(config.method_name, config.method.to_dict())
  else:
    settings.check_pretraining(config)


def plain(name):
  """Return a configuration without the types of its fields."""
  config = config_files.load(name)
  return type(config)(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shipped_configurations_are_accepted(name):
  check(config_files.load(name))
  if name != "tiny_clip":
    check(config_files.load(f"{name}:paper"))
  check(plain(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_has_a_rule(name):
  config = config_files.load(name)
  known = rules_of(config)
  free = ("method.", "param_groups.")  # Checked by the method, by group.
  own = [field for field, _ in fields(config) if not field.startswith(free)]
  assert sorted(set(own) - set(known)) == []


def test_every_size_of_a_pretrained_model_has_a_rule():
  names = {f"model.{x.name}" for x in dataclasses.fields(ClipConfig)}
  assert sorted(names - set(settings.PRETRAINING)) == []


@pytest.mark.parametrize("field", ["activation", "pixels"])
def test_an_unknown_text_of_a_pretrained_model_is_refused(field):
  config = config_files.load("tiny_clip").unlock()
  with config.model.unlocked(), config.model.ignore_type():
    config.model[field] = "other"
  with pytest.raises(ValueError, match=f"config.model.{field} .* one of "):
    settings.check_pretraining(config)


# 0 and values below it mean something in these fields.
ZERO = (
  "seed epochs smooth_sigma mosaic_prob optax.b1 optax.b2 optax.eps "
  "optax.momentum optax.weight_decay l2_weight_decay schedule.warmup_epochs "
  "schedule.warmup_learning_rate weight_decay whole_steps warmup "
  "objective.captions objective.states objective.patches "
  "objective.positive objective.visible "
  "model.vision_heads model.text_heads method.hsf_mix method.hsf_seed "
  "method.sigma method.map_weight method.map_weights method.max_weights "
  "method.prior_weight method.oc_weight method.class_contexts "
  "method.class_token_block method.class_token_weight method.fixed_weight "
  "method.dropout method.base_weight method.mix method.noise_std method.seed "
  "memory.zero_shot_weight method.rotations method.mask_threshold "
  "method.num_rotations method.rotation_seed schedule.end_learning_rate "
  "references.seed method.match_weight"
).split()


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_negative_and_nan_are_refused_by_name(name):
  config = plain(name)
  for field, value in fields(config):
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(type(x) in (int, float) for x in numbers) or not numbers:
      continue
    for wrong in WRONG:
      changed = section = plain(name)
      *parts, last = field.split(".")
      for part in parts:
        section = section[part]
      with section.ignore_type():
        if isinstance(value, (list, tuple)):
          as_float = isinstance(numbers[0], float)
          section[last] = tuple(
            float(wrong) if as_float else wrong for _ in value
          )
        else:
          section[last] = wrong
      if field in ZERO and wrong == 0:
        continue
      with pytest.raises(ValueError, match=f"config.{field} "):
        check(changed)


def test_zero_is_accepted_by_rule():
  config = config_files.load("anomalyclip").unlock()
  config.epochs, config.smooth_sigma, config.seed = 0, 0.0, 0
  check(config)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"checkpoint_steps": 0}, "checkpoint_steps is 0, but must be at least 1"),
    ({"epochs": -1}, "epochs is -1, but must be at least 0"),
    ({"smooth_sigma": math.nan}, "smooth_sigma is nan, but must be finite"),
    ({"train_data": ()}, "train_data is .*must not be empty"),
    ({"prompt_names": "x"}, "must be one of verbatim, readable"),
    ({"backbone": {"name": "a", "path": ""}}, "backbone.dtype is missing"),
    ({"optax": {"learning_rate": 0.1, "b3": 1}}, "optax.b3 is unknown"),
    ({"optax_name": "adan_"}, "no optimizer 'adan_'"),
    ({"schedule": {"name": "step"}}, "schedule.name .*one of constant, cosine"),
  ],
)
def test_the_message_has_the_value_and_the_need(change, message):
  config = config_files.load("anomalyclip").unlock()
  for key, value in change.items():
    del config[key]
    config[key] = value
  with pytest.raises(ValueError, match=f"config.*{message}"):
    check(config)


@pytest.mark.parametrize(
  "group, message",
  [
    ({"learning_rate": 0.1}, r"x.params is None, but must be a regular"),
    ({"params": "("}, r"x.params is '\(', but must be a regular"),
    ({"params": "a", "b3": 1}, "x.b3 is unknown; .*l2_weight_decay.*b1"),
    ({"params": "a", "learning_rate": 0}, "x.learning_rate is 0, but must be"),
    ({"params": "a", "l2_weight_decay": -1}, "x.l2_weight_decay is -1, but"),
  ],
)
def test_settings_of_a_group_of_parameters_are_checked(group, message):
  config = config_files.load("anomalyclip").unlock()
  config.param_groups.x = {"params": ".*/bias", "learning_rate": 0.1}
  check(config)
  config.param_groups.x = group
  with pytest.raises(ValueError, match=f"config.param_groups.{message}"):
    check(config)


def test_an_image_is_a_whole_number_of_patches(small_clip):
  config = config_files.load("clip").unlock()
  config.image_size = 100
  with pytest.raises(ValueError, match="image_size is 100.*8: 96 or 104"):
    backbone.check_image_size(config, small_clip)


# ---- Files of a run.


def write_run(folder):
  config = config_files.load("anomalyclip")
  text = config.to_json_best_effort(indent=1, sort_keys=True)
  (folder / "config.json").write_text(text)
  threshold.Threshold(0.5, 0.1, 0.9, "test").write(folder)


READERS = {
  "config.json": run_lib.read_config,
  "threshold.json": threshold.read,
}


@pytest.mark.parametrize("file", READERS)
@given(st.data())
@hypothesis_settings(max_examples=50, deadline=None)
def test_a_damaged_file_is_named_or_still_valid(tmp_path_factory, file, data):
  folder = tmp_path_factory.mktemp("run")
  write_run(folder)
  path = folder / file
  whole = path.read_bytes()
  kind = data.draw(st.sampled_from(["cut", "flip", "other", "value"]))
  if kind == "cut":
    new = whole[: data.draw(st.integers(0, len(whole)))]
  elif kind == "flip":
    at, byte = (
      data.draw(st.integers(0, len(whole) - 1)),
      data.draw(st.binary(min_size=1, max_size=1)),
    )
    new = whole[:at] + byte + whole[at + 1 :]
  elif kind == "other":
    others = [b"", b"\0" * 99, b"[]", b"null", b"3", b"<html>", b'{"a": 1}']
    others += [b"\xff\xfe{}"]
    new = data.draw(st.sampled_from(others) | st.binary(max_size=50))
  else:
    document = json.loads(whole)
    name = data.draw(st.sampled_from(sorted(document)))
    value = data.draw(
      st.sampled_from(
        [None, "x", -1, math.nan, 10**400, [], [[1]], {}, {"a": 1}]
      )
    )
    document[name] = value
    if data.draw(st.booleans()):
      del document[name]
    new = json.dumps(document).encode()
  path.write_bytes(new)
  try:
    READERS[file](folder)
  except ValueError as error:
    assert str(path) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
  "text, message",
  [
    ('{"image_score": 0.5}', "map_low is missing"),
    (
      '{"image_score": 0.5, "image_score": 0.6}',
      '"image_score" is listed twice',
    ),
    ('{"image_score": "a"}', "image_score is 'a', expected a finite number"),
    ('{"image_score": NaN}', "image_score is 'nan', expected a finite number"),
  ],
)
def test_a_field_of_a_threshold_is_named(tmp_path, text, message):
  (tmp_path / "threshold.json").write_text(text)
  with pytest.raises(ValueError, match=f"threshold.json.*{message}.*calibrate"):
    threshold.read(tmp_path)


def test_a_missing_field_of_a_configuration_is_named(tmp_path):
  write_run(tmp_path)
  document = json.loads((tmp_path / "config.json").read_text())
  document["smooth_sigm"] = document.pop("smooth_sigma")
  (tmp_path / "config.json").write_text(json.dumps(document))
  with pytest.raises(
    ValueError,
    match="config.json: config.smooth_sigma is missing .is it 'smooth_sigm'",
  ):
    run_lib.read_config(tmp_path)


def test_a_threshold_that_is_not_finite_is_not_written(tmp_path):
  limits = threshold.Threshold(math.nan, 0.0, 1.0, "test")
  with pytest.raises(ValueError, match="image_score is nan"):
    limits.write(tmp_path)
  assert not list(tmp_path.iterdir())
