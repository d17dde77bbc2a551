"""Update step of training: one compiled function."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from zsad_jax import types
from zsad_jax.inference import predictor

# (state, backbone, aux, batch, rng) -> (state, measurements), see `make`.
Update = Callable[..., tuple[dict[str, Any], dict[str, jax.Array]]]


def make(method: types.Method, tx: optax.GradientTransformation) -> Update:
  """Return the update step of a method, compiled; it donates its state.

  Args:
    method: the method.
    tx: optimizer of the trainable parameters.

  Returns:
    A function of `state`, "model" (params and stats) and "training" (opt and
    step), the backbone, the result of `method.prepare`, a batch as
    `predictor.encode` takes it together with its labels, and a key, into which
    the step is folded. It returns the next state and named scalars, "loss"
    among them.
  """

  def update(state, backbone, aux, batch, rng):
    params, stats = state["model"]["params"], state["model"]["stats"]
    step = state["training"]["step"]
    encoded = predictor.encode(method, backbone, batch)
    (loss, (parts, stats)), grads = jax.value_and_grad(
      method.loss, has_aux=True
    )(
      params,
      stats,
      backbone,
      aux,
      encoded,
      batch,
      jax.random.fold_in(rng, step),
    )
    updates, opt = tx.update(grads, state["training"]["opt"], params)
    norms = {"l2_grads": grads, "l2_updates": updates}
    norms = {name: optax.tree.norm(tree) for name, tree in norms.items()}
    state = {
      "model": {"params": optax.apply_updates(params, updates), "stats": stats},
      "training": {"opt": opt, "step": step + 1},
    }
    return state, {"loss": loss, **norms, **parts}

  return jax.jit(update, donate_argnums=0)
