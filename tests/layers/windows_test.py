"""Tests of layers/windows.py: features and values of windows of patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import image_only
from zsad_jax.layers import windows


def test_harmonic_means_of_an_example_by_hand():
  """Four windows of 2 x 2 in 3 x 3 patches; the centre is in all of them."""
  values = jnp.array([[1.0, 0.75, 0.5, 0.25]])
  found = windows.to_patches(values, 2, mean="harmonic")
  expected = [
    [1.0, 0.8571, 0.75],
    [0.6667, 0.48, 0.375],
    [0.5, 0.3333, 0.25],
  ]
  np.testing.assert_allclose(found.reshape(3, 3), expected, atol=5e-5)


def containing(side, size):
  """Yield each patch with the numbers of the windows that contain it."""
  edge = side - size + 1
  for row in range(side):
    for column in range(side):
      yield [
        top * edge + left
        for top in range(edge)
        for left in range(edge)
        if top <= row < top + size and left <= column < left + size
      ]


@pytest.mark.parametrize(("side", "size"), [(5, 2), (6, 3), (4, 4), (3, 1)])
def test_values_of_patches_are_means_over_their_windows(side, size):
  rng = np.random.default_rng(size)
  values = rng.uniform(0.01, 1, (2, (side - size + 1) ** 2)).astype("f")
  rows = list(containing(side, size))
  for mean, function in {
    "arithmetic": np.mean,
    "harmonic": lambda x, axis: 1 / np.mean(1 / x, axis),
  }.items():
    expected = [function(values[:, row], axis=1) for row in rows]
    found = windows.to_patches(jnp.asarray(values), size, mean=mean)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-6)
  # A patch is in a window where the window has the patch.
  chosen = windows.patches(side, size)
  members = [list(np.flatnonzero((chosen == i).any(1))) for i in range(side**2)]
  assert members == rows
  assert windows.side_of(len(chosen), size) == side


def test_a_value_of_zero_makes_the_harmonic_mean_zero():
  values = jnp.array([[0.0, 0.5, 0.5, 0.5]])
  found = windows.to_patches(values, 2, mean="harmonic").reshape(3, 3)
  assert np.isfinite(found).all()
  assert (found[:2, :2] == 0).all() and (found[2] == 0.5).all()


@pytest.mark.parametrize("size", [2, 3])
def test_features_are_those_of_each_window_encoded_alone(size, small_clip):
  """The comparison drops all other patches from an ordinary pass."""
  rng = np.random.default_rng(0)
  # Of another size than the position table.
  image = jnp.asarray(rng.standard_normal((2, 40, 40, 3)), jnp.float32)
  chosen = windows.patches(5, size)
  hooks = dict(activation="gelu_erf", pos_resize="bicubic")
  found = jax.jit(lambda clip: clip.windows(image, chosen, **hooks))(small_clip)

  @jax.jit
  def alone(clip, keep):
    return clip.image(image, keep=jnp.stack([keep, keep]), **hooks)[0]

  for i, keep in enumerate(chosen):
    np.testing.assert_allclose(
      found[:, i], alone(small_clip, jnp.asarray(keep)), atol=2e-6
    )
  assert found.shape == (2, (6 - size) ** 2, small_clip.embed_dim)


def test_a_window_has_to_fit_into_the_image():
  with pytest.raises(ValueError, match="scales: a window of 5 x 5.* of 4 x 4"):
    windows.patches(4, 5)


def test_a_backbone_without_windows_is_an_error(small_clip):
  assert windows.require(small_clip) is small_clip
  with pytest.raises(ValueError, match="choose a backbone with a vision"):
    windows.require(image_only.ImageOnly(small_clip))
