"""Tests of the CLIP towers: hooks against direct formulas, sizes, counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.clip import config, model, tokenizer
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip.vision import VisionTower
from zsad_jax.layers import kernels

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@functools.partial(
  jax.jit, static_argnames=("activation", "vv_from", "pos_resize")
)
def image(clip, pixels, **hooks):
  return clip.image(pixels, **hooks)


@functools.partial(jax.jit, static_argnames=("prompt_mode", "round_fp16"))
def text(clip, embeds, end, **hooks):
  return clip.text(embeds, end, **hooks)


def layer_norm(x, params):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def test_layers_are_numbered_from_one_and_give_the_embedding(small_clip):
  embed, out = image(small_clip, normal(2, 32, 32, 3))
  assert {k for k in out if k.startswith("block")} == {
    "block01",
    "block02",
    "block03",
  }
  np.testing.assert_array_equal(out["class"], out["block03"][:, 0])
  params = small_clip.params["visual"]
  direct = layer_norm(np.asarray(out["class"]), params["ln_post"])
  np.testing.assert_allclose(embed, direct @ params["proj"], atol=1e-5)
  projected = small_clip.project(out["class"], ln_post=False)
  direct = out["class"] @ params["proj"]
  np.testing.assert_allclose(projected, direct, atol=1e-5)


def test_dual_path_is_a_sum_of_value_attention(small_clip):
  _, out = image(small_clip, normal(2, 32, 32, 3), vv_from=2)
  expected = np.asarray(out["block01"])
  for i in (1, 2):
    block = small_clip.params["visual"][f"resblocks_{i}"]
    x = layer_norm(np.asarray(out[f"block{i:02d}"]), block["ln_1"])
    attn = block["attn"]
    v = (x @ attn["in_proj"]["kernel"] + attn["in_proj"]["bias"])[..., -64:]
    weights = jax.nn.softmax(v @ np.swapaxes(v, 1, 2) / 8.0)
    expected = expected + (
      weights @ v @ attn["out_proj"]["kernel"] + attn["out_proj"]["bias"]
    )
    layer = out[f"vv/block{i + 1:02d}"]
    np.testing.assert_allclose(layer, expected, atol=2e-5)
  assert "vv/block01" not in out


def test_dual_path_does_not_change_the_main_stream(small_clip):
  pixels = normal(2, 32, 32, 3)
  embed, out = image(small_clip, pixels)
  embed_dual, out_dual = image(small_clip, pixels, vv_from=1)
  # Not equal in the last bit on GPUs, where other operations are fused.
  np.testing.assert_allclose(embed, embed_dual, atol=1e-6)
  np.testing.assert_allclose(out["block03"], out_dual["block03"], atol=1e-5)


def test_visual_prompts_are_replaced_then_kept(small_clip):
  pixels, prompts = normal(2, 32, 32, 3), normal(2, 2, 3, 64)
  _, out = image(small_clip, pixels, prompts=prompts)
  assert out["block03"].shape == (2, 17, 64)  # Without prompts.
  # The second block's prompts replace those of the first, whose effect on the
  # patches remains. With one prompted block, its prompts are kept to the end.
  first_only = prompts.at[:, 1].set(0.0)
  _, changed = image(small_clip, pixels, prompts=first_only)
  np.testing.assert_array_equal(out["block01"], changed["block01"])
  assert np.abs(np.asarray(out["block02"] - changed["block02"])).max() > 1e-4
  _, carried = image(small_clip, pixels, prompts=prompts[:, :1])
  np.testing.assert_array_equal(carried["block01"], out["block01"])
  assert np.abs(np.asarray(carried["block02"] - out["block02"])).max() > 1e-4


def test_remat_changes_no_number(small_clip):
  pixels, prompts = normal(1, 32, 32, 3), normal(1, 2, 3, 64)

  def total(prompts, remat):
    return small_clip.image(pixels, prompts=prompts, remat=remat)[0].sum()

  for remat in (False, True):
    step = jax.jit(jax.value_and_grad(total), static_argnums=1)
    value, grad = step(prompts, remat)
    if not remat:
      expected = value, grad
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  np.testing.assert_allclose(grad, expected[1], atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (8, 16)])
def test_sides_are_any_multiples_of_the_patch_size(small_clip, size):
  for method in ("bilinear", "bicubic", "bicubic_antialias"):
    embed, _ = image(small_clip, normal(1, *size, 3), pos_resize=method)
    assert embed.shape == (1, 32) and np.isfinite(embed).all()


def test_errors_of_the_image_tower(small_clip):
  with pytest.raises(ValueError, match="30 x 32.*patch size, 8"):
    small_clip.image(normal(1, 30, 32, 3))
  with pytest.raises(ValueError, match="'relu'"):
    small_clip.image(normal(1, 32, 32, 3), activation="relu")


def test_tokens_after_the_end_do_not_change_the_embedding(small_clip):
  texts = ["a photo of a bottle.", "a damaged cable with a long description"]
  ids, end = small_clip.tokenize(texts)
  assert ids.shape[1] == end.max() + 1 < 77
  whole = tokenizer.encode(texts)
  short, _ = text(small_clip, small_clip.embed_tokens(ids), end)
  full, _ = text(small_clip, small_clip.embed_tokens(whole), end)
  np.testing.assert_allclose(short, full, atol=1e-5)


def test_text_prompts_overwrite_tokens_of_the_prompted_blocks(small_clip):
  ids, end = small_clip.tokenize(["a photo of a bottle.", "a broken cable end"])
  embeds, prompt = small_clip.embed_tokens(ids), normal(1, 2, 64)
  run = functools.partial(text, small_clip, embeds, end)
  plain, out = run()
  # Prompts equal to the tokens that they replace change nothing.
  same = {1: out["block01"][:, 1:3]}
  np.testing.assert_allclose(run(prompts=same)[0], plain, atol=1e-5)
  changed, _ = run(prompts={1: prompt})
  assert np.abs(np.asarray(changed - plain)).max() > 1e-4
  # The same prompts for all texts, or for each.
  each, _ = run(prompts={1: jnp.repeat(prompt, 2, axis=0)})
  np.testing.assert_allclose(each, changed, atol=1e-6)


def test_text_prompts_can_be_inserted(small_clip):
  ids, end = small_clip.tokenize(["a photo of a bottle."])
  embeds, prompt = small_clip.embed_tokens(ids), normal(1, 2, 64)
  hooks = {"prompts": {1: prompt, 2: prompt}, "prompt_mode": "insert"}
  embed, out = text(small_clip, embeds, end, **hooks)
  length = ids.shape[1]
  assert out["block01"].shape[1] == length
  assert out["block02"].shape[1] == out["block03"].shape[1] == length + 2
  # No token is lost: the words follow the inserted prompts.
  last = small_clip.params["text"]["text_projection"]
  direct = out["tokens"][:, end[0] + 2] @ last
  np.testing.assert_allclose(embed, direct, atol=1e-5)
  with pytest.raises(ValueError, match="prompt_mode"):
    text(small_clip, embeds, end, prompts={1: prompt}, prompt_mode="append")


def test_rounding_to_float16_reaches_value_and_gradient(small_clip):
  ids, end = small_clip.tokenize(["a photo of a bottle."])
  embeds, prompt = small_clip.embed_tokens(ids), normal(1, 2, 64)

  def total(prompt, **hooks):
    return text(small_clip, embeds, end, prompts={1: prompt}, **hooks)[0].sum()

  rounded = prompt.astype(jnp.float16).astype(jnp.float32)
  grads = jax.value_and_grad(total)
  value, grad = grads(prompt, round_fp16=True)
  expected, exact = grads(rounded, round_fp16=False)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  as_half = exact.astype(jnp.float16).astype(jnp.float32)
  np.testing.assert_allclose(grad, as_half, atol=1e-5)
  np.testing.assert_array_equal(grad, grad.astype(jnp.float16))


def test_error_if_the_token_table_is_too_small(small_clip):
  sizes = config.ClipConfig(32, 32, 8, 64, 1, 64, 1, vocab_size=256)
  with pytest.raises(ValueError, match="256 rows"):
    model.random_clip(sizes, 0).tokenize(["a bottle"])


def test_param_shapes_lists_every_parameter(small_clip):
  found = {
    k: x.shape for k, x in clip_convert.flatten(small_clip.params).items()
  }
  assert found == clip_convert.param_shapes(small_clip.config)


def test_parameter_count_of_vit_l():
  sizes = config.MODELS["ViT-L-14-336"]
  shapes = clip_convert.param_shapes(sizes).values()
  count = sum(int(np.prod(shape)) for shape in shapes)
  assert count == 427_944_193
  resized = (37**2 - 24**2) * sizes.vision_width
  assert count + resized == 428_756_225


@pytest.mark.parametrize("name", config.MODELS)
def test_named_sizes_build(name):
  sizes = config.MODELS[name]
  image = jnp.zeros((1, sizes.image_size, sizes.image_size, 3))
  tower = VisionTower(sizes, sizes.activation, "bilinear")
  shapes = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
  found = {
    f"visual/{k}": x.shape for k, x in clip_convert.flatten(shapes).items()
  }
  assert found == {
    k: v for k, v in clip_convert.param_shapes(sizes).items() if k in found
  }


def test_bfloat16_is_close_and_returns_float32(small_clip):
  half = small_clip.with_dtype("bfloat16")
  kernels = [
    x.dtype
    for path, x in jax.tree_util.tree_leaves_with_path(half.params)
    if path[-1].key == "kernel"
  ]
  assert set(kernels) == {jnp.dtype("bfloat16")}
  pixels, (ids, end) = normal(2, 32, 32, 3), small_clip.tokenize(["a photo."])
  encode_text = lambda clip: text(clip, clip.embed_tokens(ids), end)
  encode_image = functools.partial(image, pixels=pixels, vv_from=2)
  for run in (encode_image, encode_text):
    found, wanted = run(half), run(small_clip)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
      assert a.dtype == jnp.float32
      difference = np.linalg.norm(a - b) / np.linalg.norm(b)
      assert 1e-5 < difference < 2e-2 or np.array_equal(a, b)
  assert not np.array_equal(encode_image(half)[0], encode_image(small_clip)[0])
  again = half.with_dtype("bfloat16")
  np.testing.assert_array_equal(encode_image(again)[0], encode_image(half)[0])


def test_normalize():
  image = np.array([[[0, 255, 51]]], np.uint8)
  expected = (np.array([0, 1, 0.2]) - config.MEAN) / config.STD
  for array in (image, jnp.asarray(image), image[None]):
    result = model.normalize(array)
    assert result.dtype == np.float32 and result.shape == array.shape
    np.testing.assert_allclose(result.reshape(3), expected, rtol=1e-6)


def test_the_vision_tower_alone_has_the_choice_of_attention(
  small_clip, monkeypatch
):
  asked = []

  def choose(q, k, *, causal, flash):
    asked.append((causal, flash))
    return "xla"

  monkeypatch.setattr(kernels, "attention_kernel", choose)
  layers = small_clip.config.vision_layers
  for attention in ("exact", "flash"):
    clip = small_clip.with_attention(attention)
    pixels, (ids, end) = jnp.zeros((1, 32, 32, 3)), clip.tokenize(["a photo."])
    jax.eval_shape(clip.image, pixels)
    jax.eval_shape(clip.text, clip.embed_tokens(ids), end)
    assert asked[:layers] == [(False, attention == "flash")] * layers
    assert set(asked[layers:]) == {(True, False)}
    asked.clear()
