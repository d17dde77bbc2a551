r"""Trains a small CLIP on drawn pictures and their captions.

python -m zsad_jax.pretrain --config=configs/tiny_clip.py --workdir=runs/clip

Stop it at any moment: the same command goes on to the same numbers. At the
end the weights are written to WORKDIR/weights.safetensors.
"""

import contextlib
import functools
import pathlib
import signal

import jax
import numpy as np
import optax
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

from zsad_jax.backbones.clip import tiny
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.pretraining import batches, captions, measure, pictures
from zsad_jax.pretraining.objective import Objective, assemble, init
from zsad_jax.runs import checkpoint, logger
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli, config_files, distributed, environment


def optimizer(config) -> optax.GradientTransformation:
  """Muon on the blocks' matrices, AdamW on everything else.

  Jordan et al., 2024, with the update's size of Liu et al., arXiv:2502.16982.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, config.warmup, config.steps
  )

  def matrices(params):
    is_matrix = lambda path, x: x.ndim == 2 and "kernel" in str(path[-1])
    return jax.tree_util.tree_map_with_path(
      lambda path, x: (
        contrib.MuonDimensionNumbers() if is_matrix(path, x) else None
      ),
      params,
    )

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      adam_weight_decay=0.0,
      adam_b2=0.98,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=matrices,
    ),
  )


def pretrain(config, workdir: pathlib.Path) -> bool:
  """Trains; returns False when it was stopped by a signal before the end.

  Args:
    config: see configs/tiny_clip.py.
    workdir: where the run is kept; one that was stopped there goes on.

  Raises:
    ValueError: a setting or the loss is not as it has to be.
  """
  with contextlib.ExitStack() as stack:
    return _pretrain(config, workdir, stack)


def _pretrain(config, workdir, stack):
  jax.config.update("jax_default_matmul_precision", config.matmul_precision)
  mesh = distributed.make_mesh()
  replicated = NamedSharding(mesh, P())
  sizes = ClipConfig(**config.model)
  objective = Objective(**config.objective)
  drawn = functools.partial(
    pictures.ensure, environment.default_cache_dir(), size=sizes.image_size
  )
  pairs = drawn(config.pairs, seed=config.seed)
  held_out = drawn(config.held_out, seed=config.seed + 1)
  vocabulary = captions.vocabulary()
  trainable, table = init(sizes, vocabulary, config.seed)
  table = jax.device_put(table, replicated)
  tx = optimizer(config)
  run_lib.save_config(workdir, config)
  state = {"params": trainable, "opt": tx.init(trainable), "step": np.int32(0)}
  state = jax.device_put(state, replicated)
  saved = checkpoint.Checkpoints(workdir / "checkpoints")
  stack.callback(saved.close)
  if saved.latest_step is not None:
    state = saved.restore(state=state)[0]["state"]
  step = int(state["step"])

  others = sum(x.size for x in jax.tree.leaves(trainable["clip"]))
  print(
    f"Pretraining {config.name}: {others:,} parameters and "
    f"{len(vocabulary)} of {sizes.vocab_size:,} rows of the token table, on "
    f"{config.pairs:,} pairs of pictures; {len(jax.devices())} x "
    f"{jax.devices()[0].device_kind}",
    flush=True,
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, table, batch):
    loss = lambda p: objective.loss(p, table, vocabulary, sizes, batch)
    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(
      state["params"]
    )
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    norms = {"l2_grads": optax.tree.norm(grads)}
    state = {"params": params, "opt": opt, "step": state["step"] + 1}
    return state, {"loss": value, **norms, **parts}

  log = logger.Writer(workdir, first_step=step, total_steps=config.steps)
  stop, pending = cli.StopSignal(), {}

  def look():
    if not pending:
      return
    fetched = jax.device_get(pending)
    logger.check_finite(fetched)
    means = {
      key: float(np.mean([m[key] for m in fetched.values()]))
      for key in fetched[max(fetched)]
    }
    log.progress(max(fetched), means["loss"], config.batch_size)
    log.write(max(fetched), means)
    pending.clear()

  def measured():
    model = assemble(state["params"], table, vocabulary, sizes)
    found = measure.measure(model, held_out, seed=config.seed)
    print("  ".join(f"{k} {v:.1f}" for k, v in found.items()), flush=True)
    return model, found

  while step < config.steps and not stop.requested:
    batch = batches.make(
      pairs,
      step,
      batch_size=config.batch_size,
      patch_size=sizes.patch_size,
      keep=config.keep if step < config.steps - config.whole_steps else None,
      states=config.states,
      seed=config.seed,
    )
    state, pending[step + 1] = update(state, table, batch)
    # One step ahead of the device: the batch is ready, and a stop is prompt.
    jax.block_until_ready(pending.get(step))
    step += 1
    if step % config.log_steps == 0:
      look()
    if step % config.checkpoint_steps == 0:
      look()
      saved.save(step, {"step": step}, state=state)
    if step % config.measure_steps == 0 and step < config.steps:
      log.write(step, measured()[1])
  look()
  saved.save(step, {"step": step}, state=state)
  if step < config.steps:
    return False
  model, found = measured()
  log.write(step, found)
  path = workdir / "weights.safetensors"
  digest = tiny.save(
    path,
    model,
    vocabulary=vocabulary,
    seed=config.seed,
    about={"source": {"config": config.name, "steps": step, **found}},
  )
  print(f"Weights: {path}, {path.stat().st_size:,} bytes, SHA-256 {digest}")
  return True


def define_flags():
  """The command's flags; defined only when it is run."""
  config_files.define_flag(required=True)
  flags.DEFINE_string("workdir", None, "Default runs/<config.name>.")


def main(options):
  config = options.config
  workdir = pathlib.Path(options.workdir or f"runs/{config.name}")
  if not pretrain(config, workdir):
    print(f"Stopped. The same command goes on; the run is kept in {workdir}.")
    return 128 + signal.SIGTERM
  return 0


if __name__ == "__main__":
  cli.run(main, define_flags)
