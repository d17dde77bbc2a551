r"""Pretraining of a small CLIP on synthetic images and captions.

python -m zsad_jax.pretrain --config=configs/tiny_clip.py --workdir=runs/clip

The command can be stopped at any time; run again, it resumes and gives the
same result. The weights are written to WORKDIR/weights.safetensors.
"""

import contextlib
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

from zsad_jax.backbones.clip import tiny
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.pretraining import batches, captions, measure, synthetic_pairs
from zsad_jax.pretraining.objective import Objective, assemble, init
from zsad_jax.runs import checkpoint, lock, logger, settings
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import (
  cli,
  config_files,
  copies,
  distributed,
  environment,
  stopping,
)

WEIGHTS = "weights.safetensors"


def optimizer(config: Any) -> optax.GradientTransformation:
  """Return Muon for the matrices of the blocks and AdamW for all else.

  Muon is that of Jordan et al., 2024, with updates scaled as in Liu et al.,
  arXiv:2502.16982.

  Args:
    config: see configs/tiny_clip.py.
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


def pretrain(config: Any, workdir: pathlib.Path) -> bool:
  """Pretrain a CLIP, or resume its pretraining.

  Args:
    config: see configs/tiny_clip.py.
    workdir: folder of the run; a stopped run in it is resumed.

  Returns:
    True at the end of training, False if a signal stopped it after a step,
    whose state is stored.

  Raises:
    stopping.Stopped: a signal stopped it before its first step, or during an
      evaluation.
    ValueError: the workdir holds a run of another configuration, the loss
      is not finite, or another process trains in this workdir.
  """
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.hold(workdir))
    return _pretrain(config, workdir, stack)


def _pretrain(config, workdir, stack):
  # ---- Devices, data, model.
  settings.check_pretraining(config)
  jax.config.update("jax_default_matmul_precision", config.matmul_precision)
  mesh = distributed.make_mesh()
  replicated = NamedSharding(mesh, P())
  sizes = ClipConfig(**config.model)
  objective = Objective(**config.objective)
  pairs = _pairs(config.pairs, sizes, seed=config.seed)
  held_out = _pairs(config.held_out, sizes, seed=config.seed + 1)
  vocabulary = captions.vocabulary()
  trainable, table = init(sizes, vocabulary, config.seed)
  table = jax.device_put(table, replicated)

  # ---- Optimizer, state; resume if a run exists.
  tx = optimizer(config)
  run_lib.save_config(workdir, config)
  state = {"params": trainable, "opt": tx.init(trainable), "step": np.int32(0)}
  state = jax.device_put(state, replicated)
  saved = checkpoint.Checkpoints(workdir / "checkpoints")
  stack.callback(saved.close)
  meta = {}
  if saved.latest_step is not None:
    found, meta = saved.restore(state=state)
    state = found["state"]
  first_step = step = int(state["step"])
  if step == config.steps and (workdir / WEIGHTS).is_file():
    print(f"The pretraining was finished before: {workdir / WEIGHTS}")
    return True

  print(_summary(config, sizes, trainable, vocabulary), flush=True)

  # ---- One step, logging, evaluation.
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

  log = logger.Writer(
    workdir,
    first_step=step,
    total_steps=config.steps,
    drop_extra=step == config.steps or not meta.get("measured", True),
  )
  pending = logger.from_meta(meta.get("pending", {}))

  def flush():
    if not pending:
      return
    means = logger.means(pending)
    log.progress(max(pending), means["loss"], config.batch_size)
    log.write(max(pending), means)
    pending.clear()

  def evaluate():
    model = assemble(state["params"], table, vocabulary, sizes)
    metrics = measure.measure(model, held_out, seed=config.seed)
    print("  ".join(f"{k} {v:.1f}" for k, v in metrics.items()), flush=True)
    return model, metrics

  def save(measured=True):
    meta = {"step": step, "pending": logger.to_meta(pending)}
    saved.save(step, meta | {"measured": measured}, state=state)

  def evaluate_now(stop):
    """Log an evaluation; if stopped, a resumed run repeats it."""
    flush()
    try:
      with stop.interruptible():
        log.write(step, evaluate()[1])
    except stopping.Stopped:
      save(measured=False)
      saved.wait()
      raise

  # ---- Loop.
  stop = stack.enter_context(stopping.Deferred())
  if not meta.get("measured", True) and step < config.steps:
    evaluate_now(stop)
  while step < config.steps and not stop.reached():
    first = step == first_step  # Nothing to store yet; compiles.
    with stop.interruptible() if first else contextlib.nullcontext():
      batch = batches.make(
        pairs,
        step,
        batch_size=config.batch_size,
        patch_size=sizes.patch_size,
        pixels=sizes.pixels,
        keep=config.keep if step < config.steps - config.whole_steps else None,
        states=config.states,
        seed=config.seed,
      )
      state, pending[step + 1] = update(state, table, batch)
      # The host prepares one batch ahead of the device, and stops promptly.
      jax.block_until_ready(pending[step + 1] if first else pending.get(step))
    step += 1
    if step % config.log_steps == 0 or step == config.steps:
      flush()
    if step % config.measure_steps == 0 and step < config.steps:
      evaluate_now(stop)
    if step % config.checkpoint_steps == 0:
      flush()
      save()

  # ---- Final evaluation, weights.
  save()
  saved.wait()
  if step < config.steps:
    return False
  with stop.interruptible():
    model, metrics = evaluate()
  log.write(step, metrics)
  about = {"config": config.name, "steps": step, **metrics}
  _save_weights(workdir / WEIGHTS, model, vocabulary, config.seed, about)
  return True


def _pairs(count, sizes, *, seed):
  """Return pairs of images from the cache; generate the missing ones."""
  folder = environment.default_cache_dir()
  return synthetic_pairs.ensure(folder, count, size=sizes.image_size, seed=seed)


def _summary(config, sizes, trainable, vocabulary):
  """Return the line to print before training."""
  num_params = sum(x.size for x in jax.tree.leaves(trainable["clip"]))
  return (
    f"Pretraining {config.name}: {num_params:,} parameters and "
    f"{len(vocabulary)} of {sizes.vocab_size:,} rows of the token table, on "
    f"{config.pairs:,} pairs of images; {len(jax.devices())} x "
    f"{jax.devices()[0].device_kind}"
  )


def _save_weights(path, model, vocabulary, seed, source):
  """Write the weights and print their digest."""
  digest = tiny.save(
    path, model, vocabulary=vocabulary, seed=seed, about={"source": source}
  )
  print(f"Weights: {path}, {path.stat().st_size:,} bytes, SHA-256 {digest}")


def define_flags() -> None:
  """Define the flags of the command."""
  config_files.define_flag(required=True)
  flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/<config.name>."
  )


def main(options: Any) -> int:
  """Pretrain; return the exit status."""
  config = options.config
  workdir = pathlib.Path(options.workdir or f"runs/{config.name}")
  try:
    if not pretrain(config, workdir):
      raise stopping.Stopped(stopping.received())
  except stopping.Stopped as error:
    where = copies.origin(workdir)
    error.add_note(f"The same command resumes the run in {where}.")
    raise
  return 0


if __name__ == "__main__":
  cli.run(main, define_flags, alone=True)
