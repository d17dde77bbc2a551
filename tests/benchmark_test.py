"""Tests of benchmark/: candidates that are compared give the same numbers."""

import dataclasses
import functools
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from zsad_jax.backbones.clip import model as clip_model
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.benchmark import (
  breakdown,
  data,
  epochs,
  methods,
  metrics,
  roofline,
  scale,
  scaling,
  steps,
)
from zsad_jax.datasets import preprocess
from zsad_jax.methods import single_image_names as method_names
from zsad_jax.metrics import variants


def test_all_metrics_candidates_agree():
  _, streaming = metrics.streaming(2)
  _, exact = metrics.exact(2)
  _, peers = metrics.scikit_learn(2)
  _, slow = metrics.thresholds_200(2)
  for name in ("auroc", "ap", "aupro"):
    sorted_ = exact[f"pixel_{name}"]
    np.testing.assert_allclose(streaming[name], sorted_, atol=1e-4)
  np.testing.assert_allclose(peers["auroc"], exact["pixel_auroc"])
  np.testing.assert_allclose(peers["ap"], exact["pixel_ap"])
  masks, maps = (np.concatenate(x) for x in zip(*metrics.images(2)))
  np.testing.assert_allclose(
    slow["aupro_200"], variants.aupro_200(masks, maps), rtol=1e-6
  )


def test_ratios_are_printed_and_written(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(
    metrics,
    "_run",
    lambda f, n: (
      {"streaming": 1.0}.get(f.__name__, 5.0),
      {"auroc": 0.5},
      100.0,
    ),
  )
  path = tmp_path / "numbers.json"
  options = dict(images=3, alone=False, slow=True, json=str(path))
  metrics.main(types.SimpleNamespace(**options))
  out = capsys.readouterr().out
  assert "scikit_learn / streaming: 5.0" in out
  assert "scikit_learn + thresholds_200 / streaming: 10.0" in out
  assert json.loads(path.read_text())["pixels"] == 3 * 518**2


@pytest.mark.slow
def test_a_failing_candidate_is_named():
  with pytest.raises(RuntimeError, match="fail ended with 1"):
    metrics._run(fail, 1)


def fail(number):
  raise SystemExit(number)


@pytest.mark.slow
def test_all_readers_give_the_same_batches(tmp_path, capsys):
  samples = data.write(tmp_path, 10)
  (batch, last) = data._batches(samples)
  assert last["weight"].sum() == 2
  for i, sample in enumerate(samples[: data.BATCH]):
    image, mask = preprocess.load_pair(sample, data.SIZE)
    np.testing.assert_array_equal(batch["image"][i], image)
    np.testing.assert_array_equal(batch["mask"][i], mask)
    assert mask.any() == bool(sample.label)
  (tmp_path / "again").mkdir()
  found = data._measure(tmp_path / "again", 8, 16)
  assert len(found["images_per_second"]) == 4
  assert "pipeline, cached" in capsys.readouterr().out


DEEP = ClipConfig(  # As many layers as the methods' defaults need.
  embed_dim=32,
  image_size=28,
  patch_size=14,
  vision_width=64,
  vision_layers=24,
  text_width=64,
  text_layers=12,
)
SHALLOW = dataclasses.replace(DEEP, vision_layers=4, text_layers=9)


def test_flops_equal_those_of_xla():
  config = dataclasses.replace(DEEP, vision_layers=3, vision_width=256)
  model = clip_model.random_clip(config, 0)
  image = jnp.zeros((1, 140, 140, 3))
  tower = jax.jit(lambda m, x: m.image(x)[0])
  # Few keys: no loop over attention, of which XLA counts one iteration.
  compiled = tower.lower(model, image).compile()
  np.testing.assert_allclose(
    roofline.flops(tower, model, image),
    compiled.cost_analysis()["flops"],
    rtol=0.05,
  )


def test_flops_of_loops_branches_and_convolutions():
  a, b = jnp.ones((3, 4)), jnp.ones((4, 4))
  product = 2 * 3 * 4 * 4
  repeated = lambda a: jax.lax.fori_loop(0, 5, lambda i, a: a @ b, a)
  assert roofline.flops(repeated, a) == 5 * product
  either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a)
  assert roofline.flops(either, a) == product
  again = jax.checkpoint(lambda a: jnp.sin(a @ b).sum())
  assert roofline.flops(jax.grad(again), a) == 3 * product
  image, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 5))
  convolve = lambda x: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert roofline.flops(convolve, image) == 2 * 2 * 6 * 6 * 5 * 3 * 3 * 3


def test_bytes_are_those_of_operands_and_results():
  a, b = jnp.ones((3, 4)), jnp.ones((4, 5), jnp.bfloat16)
  product = lambda a, b: jnp.matmul(a.astype(jnp.bfloat16), b)
  assert roofline.moved(product, a, b) == 2 * (3 * 4 + 4 * 5 + 3 * 5)
  repeated = lambda a: jax.lax.fori_loop(0, 5, lambda i, a: a @ a.T @ a, a)
  assert roofline.moved(repeated, a) == 5 * 4 * (2 * 12 + 9 + 9 + 2 * 12)


def test_flops_of_fused_attention(monkeypatch):
  """Traced as for a GPU; none is needed."""
  checks = "jax._src.cudnn.fused_attention_stablehlo.check_"
  monkeypatch.setattr(f"{checks}cudnn_version", lambda: 91000)
  monkeypatch.setattr(f"{checks}compute_capability", lambda wanted: True)
  q, k = (jnp.ones((2, t, 3, 8), jnp.bfloat16) for t in (6, 4))
  fused, plain = (
    lambda q, k, name=name: jax.nn.dot_product_attention(
      q, k, k, implementation=name
    ).sum()
    for name in ("cudnn", "xla")
  )
  assert roofline.flops(fused, q, k) == roofline.flops(plain, q, k)
  # XLA stores the weights; cuDNN recomputes them, a fifth product.
  backward = roofline.flops(jax.grad(plain, (0, 1)), q, k) / 6 * 7
  assert roofline.flops(jax.grad(fused, (0, 1)), q, k) == backward
  assert roofline.moved(fused, q, k) < roofline.moved(plain, q, k)


@pytest.mark.slow
def test_methods_with_cached_features_are_found_by_property():
  backbone = clip_model.random_clip(DEEP, 0)
  found = set(epochs.caching_methods(backbone, 42))
  assert found >= {"adaptclip", "anomalyclip", "faprompt"}
  # AdaCLIP keeps the pixels for its prompts; CLIP is not trained.
  assert not found & {"adaclip", "clip"}


@pytest.mark.parametrize("module", [methods, breakdown, scaling])
def test_every_method_is_measured_by_default(module, monkeypatch):
  defaults = {}
  for kind in ("string", "enum", "integer", "list", "bool"):
    record = lambda name, default, *_: defaults.update({name: default})
    monkeypatch.setattr(flags, f"DEFINE_{kind}", record)
  module.define_flags()
  assert defaults["methods"] == method_names()


@pytest.mark.parametrize(
  "layers, feature_layers, first",
  [
    (24, (6, 12, 18, 24), 6),
    (12, (3, 6, 9, 12), 4),
    (32, (8, 16, 24, 32), 9),
  ],
)
def test_methods_fit_towers_of_any_depth(layers, feature_layers, first):
  method = methods.make_method("adaptclip", layers)
  assert (method.feature_layers, method.vv_from) == (feature_layers, first)
  assert methods.make_method("anomalyclip", layers).feature_layers == (layers,)
  assert methods.make_method("faprompt", layers).feature_layer == layers
  assert methods.make_method(
    "adaclip", layers, feature_layers=(1,)
  ).feature_layers == (1,)
  assert methods.make_method("clip", layers) is not None


@pytest.mark.slow
def test_methods_are_measured_in_passes(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(methods.MODELS, "shallow", SHALLOW)
  monkeypatch.setattr(methods, "torch_vision", lambda config, image: None)
  path = tmp_path / "numbers.json"
  methods.main(
    types.SimpleNamespace(
      model="shallow",
      dtype="float32",
      image_size=56,
      batch=2,
      rounds=1,
      shots=2,
      training=True,
      methods=["clip", "anomalyclip"],
      json=str(path),
    )
  )
  found = json.loads(path.read_text())
  assert {*found["rows"]} == {
    "matrix products",
    "vision tower",
    "clip",
    "anomalyclip",
    "anomalyclip, cached step",
    "anomalyclip, step",
  }
  tower = found["rows"]["vision tower"]
  assert tower["vision_passes"] == 1
  for work, rate, bound in (
    ("gflop", "matrix_gflops", "flop_seconds"),
    ("gbyte", "copy_gbytes", "byte_seconds"),
  ):
    np.testing.assert_allclose(tower[bound], 2 * tower[work] / found[rate])
  assert "vision tower / matrix products, rate" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_are_measured_in_passes(tmp_path, monkeypatch, capsys):
  small = dataclasses.replace(DEEP, vision_layers=2, text_layers=2)
  monkeypatch.setitem(methods.MODELS, "small", small)
  fields = dict(feature_layers=(1, 2), prompt_depth=2, hsf="none")
  monkeypatch.setattr(steps, "Case", functools.partial(methods.Case, **fields))
  path = tmp_path / "numbers.json"
  options = types.SimpleNamespace(
    model="small",
    dtype="bfloat16",
    image_size=28,
    batches=["2"],
    rounds=1,
    json=str(path),
  )
  steps.main(options)
  rows = {row.pop("name"): row for row in json.loads(path.read_text())["rows"]}
  assert list(rows) == [
    "plain pass",
    "forward",
    "gradient, recomputed",
    "gradient, stored",
  ]
  assert rows["plain pass"]["passes"] == 1
  assert all(row["seconds"] > 0 and row["gib"] > 0 for row in rows.values())
  monkeypatch.setattr(steps, "free_bytes", lambda: 0)
  steps.main(options)
  assert "not run: not enough free memory" in capsys.readouterr().out


@pytest.mark.slow
def test_stages_add_up_to_the_whole(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(methods.MODELS, "shallow", SHALLOW)
  path = tmp_path / "numbers.json"
  breakdown.main(
    types.SimpleNamespace(
      model="shallow",
      dtype="float32",
      image_size=56,
      batch=2,
      rounds=1,
      methods=["anomalyclip"],
      json=str(path),
    )
  )
  (row,) = json.loads(path.read_text())["rows"].values()
  assert set(row) == {*breakdown.STAGES, "gflop"} and row["decode"] > 0
  assert min(row["gflop"].values()) > 0
  assert "anomalyclip" in capsys.readouterr().out


@pytest.mark.slow
def test_a_skipped_tower_returns_the_same_shapes():
  model = clip_model.random_clip(SHALLOW, 0)
  image, (ids, end) = jnp.ones((2, 28, 28, 3)), model.tokenize(["a", "b c"])
  calls = {
    "image": lambda clip: clip.image(image, vv_from=3),
    "text": lambda clip: clip.text(clip.embed_tokens(ids), end),
  }
  for tower, call in calls.items():
    less = breakdown.WithoutTowers(model.params, SHALLOW, towers=(tower,))
    shapes = [
      jax.tree.map(lambda x: (x.shape, x.dtype), call(clip))
      for clip in (model, less)
    ]
    assert shapes[0] == shapes[1]
    flops = [
      jax.jit(call).lower(clip).compile().cost_analysis().get("flops", 0)
      for clip in (model, less)
    ]
    assert flops[1] < 0.01 * flops[0]


@pytest.mark.slow
def test_scaling_varies_one_quantity_at_a_time(tmp_path, monkeypatch, capsys):
  chosen = scaling.points([28, 56], [1, 4], devices=4)
  assert set(chosen) == {
    (1, 28, 1),
    (4, 28, 1),
    (1, 56, 1),
    (4, 28, 2),
    (4, 28, 4),
  }
  monkeypatch.setitem(methods.MODELS, "shallow", SHALLOW)
  path = tmp_path / "numbers.json"
  scaling.main(
    types.SimpleNamespace(
      model="shallow",
      dtype="float32",
      sizes=["28"],
      batches=["1", "2"],
      rounds=1,
      methods=["clip"],
      json=str(path),
    )
  )
  found = json.loads(path.read_text())
  assert [row["batch"] for row in found["rows"]][:2] == [1, 2]
  assert found["differences"] == {}  # There is one device.
  scores = {(2, 28, 1): np.ones(2), (2, 28, 2): np.array([1, 1.25])}
  assert scaling.difference(scores) == 0.25
  assert "batch   2" in capsys.readouterr().out


@pytest.mark.slow
def test_epochs_from_cached_features_have_the_losses_of_encoding(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(methods.MODELS, "shallow", SHALLOW)
  path = tmp_path / "numbers.json"
  epochs.main(
    types.SimpleNamespace(
      model="shallow",
      dtype="float32",
      image_size=56,
      methods=["adaptclip"],
      images=12,
      references=2,
      encoding=3,
      json=str(path),
    )
  )
  (row,) = json.loads(path.read_text())["rows"].values()
  assert len(row["steps"]) == len(row["losses"]) == 2 * epochs.EPOCHS
  assert len(row["encoding_steps"]) == 3 and 0 <= row["difference"] < 1e-4
  assert len(set(row["losses"])) == 4  # Parameters change.
  last = sum(row["steps"][2:])
  np.testing.assert_allclose(row["last_epoch"], last)
  np.testing.assert_allclose(row["ratio"], last / row["first_epoch"])
  assert "Features of 12 images and 2 references" in capsys.readouterr().out


@pytest.mark.slow
def test_many_images_pass_all_stages(tmp_path, capsys):
  rows = scale.measure(tmp_path, 120)
  assert list(rows) == [
    "index",
    "features",
    "epoch",
    "cached features",
    "evaluation",
  ]
  assert all(row["most_mib"] >= row["tenth_mib"] > 0 for row in rows.values())
  out = capsys.readouterr().out
  assert out.count("Features of 120 images") == 2 and "evaluation" in out


def test_the_benchmark_needs_no_tensorflow():
  code = (
    "import sys;"
    "from zsad_jax.benchmark import breakdown, methods, scaling, steps;"
    "import zsad_jax.benchmark.__main__;"
    "bad = {'tensorflow', 'ml_collections'} & {*sys.modules}; assert not bad"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
