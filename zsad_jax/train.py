r"""Train a method and evaluate it.

python -m zsad_jax.train --config=adaclip --workdir=runs/adaclip

  --config=adaclip:paper                a variant of the configuration
  --config=FOLDER/FILE.py:VARIANT       another configuration file
  --config.optax.learning_rate=0.005    any field, see configs/common.py
  --config.method.temperature=0.1       any field of the method

A run can be stopped at any time: the same command resumes it, to the same
numbers.
"""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import time

import jax
import numpy as np
import optax
from absl import flags

from zsad_jax import backbones, types
from zsad_jax.datasets import pipeline
from zsad_jax.evaluation import calibration, evaluator, protocol
from zsad_jax.inference import predictor
from zsad_jax.reporting import report, writer
from zsad_jax.runs import checkpoint, logger
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli, config_files, distributed
from zsad_jax.training import batch_source, optimizer, selection, summary


def train(config: types.Config, workdir: pathlib.Path) -> bool:
  """Train `config.method`.

  Args:
    config: see configs/common.py.
    workdir: folder of the run; an interrupted run in it is resumed.

  Returns:
    False when a signal stopped the run before the last step.

  Raises:
    ValueError: a setting is invalid, a file cannot be read, or the loss is not
      finite.
  """
  # The threads of the checkpoints have to end in any case.
  with contextlib.ExitStack() as stack, distributed.exit_on_peer_failure():
    return _train(config, workdir, stack)


def _train(config, workdir, stack):
  """Train, from top to bottom; see `train`."""
  # ---- Settings that can be checked before anything is read.
  method = run_lib.make_method(config.method_name, config.method.to_dict())
  selection.check(config.selection)
  protocol.check_names(config)

  # ---- Mesh: images are split over "data", everything else is replicated.
  jax.config.update("jax_default_matmul_precision", config.matmul_precision)
  mesh = distributed.make_mesh()
  if config.batch_size % jax.device_count():
    raise ValueError(
      f"config.batch_size is {config.batch_size}, but must be a multiple "
      f"of the number of devices, {jax.device_count()}. Set another batch "
      "size, or use fewer devices (CUDA_VISIBLE_DEVICES)."
    )

  # ---- Data: test images of the auxiliary sets; their anomalies have masks.
  datasets = [run_lib.open_dataset(config, name) for name in config.train_data]
  if config.mosaic_prob is not None:
    datasets = [
      dataclasses.replace(d, mosaic_prob=config.mosaic_prob) for d in datasets
    ]
  names = sum(
    (evaluator.prompt_names(d, config.prompt_names) for d in datasets), ()
  )
  images = sum(len(d.test) for d in datasets)
  per_epoch = pipeline.steps_per_epoch(images, config.batch_size)
  total_steps = per_epoch * config.epochs

  # ---- Frozen backbone, trainable parameters.
  backbone = backbones.load(**config.backbone)
  rng_init, rng_loop = jax.random.split(jax.random.key(config.seed))
  params, stats = jax.jit(method.init)(rng_init, backbone)
  trainable = method.trainable_mask(params)
  aux = distributed.replicate(method.prepare(backbone, names), mesh)
  backbone = distributed.replicate(backbone, mesh)

  # ---- Optimizer and state; a checkpoint in workdir replaces the fresh state.
  run_lib.save_config(workdir, config)
  tx = optimizer.make(config.optax_name, config.optax.to_dict(), trainable)
  state = {
    "model": {"params": params, "stats": stats},
    "training": {"opt": tx.init(params), "step": np.int32(0)},
  }
  state = distributed.replicate(state, mesh)
  saved = checkpoint.Checkpoints(workdir / "checkpoints")
  stack.callback(saved.close)
  start = time.perf_counter()
  if saved.latest_step is not None:
    state, meta = saved.restore(**state)
    start -= meta.get("seconds", 0.0)  # Of the interrupted run.
  step = int(state["training"]["step"])
  summary.log(config, datasets, method, backbone, params)

  # ---- Update step.
  @functools.partial(jax.jit, donate_argnums=0)
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

  # ---- Actions between steps.
  log = logger.Writer(
    workdir,
    first_step=step,
    total_steps=total_steps,
    tensorboard=config.tensorboard,
  )
  stop = cli.StopSignal()
  select = selection.make(config, workdir, method, backbone, mesh, stack)
  pending = {}  # Measurements since the last flush, still on the device.

  def flush():
    """Fetch measurements, stop on NaN, write their means."""
    if not pending:
      return
    fetched = jax.device_get(pending)
    logger.check_finite(fetched)
    mean = lambda key: float(np.mean([m[key] for m in fetched.values()]))
    means = {key: mean(key) for key in fetched[max(fetched)]}
    speed = log.progress(max(fetched), means["loss"], config.batch_size)
    log.write(max(fetched), {**means, "images_per_second": speed})
    pending.clear()

  def save():
    """Write a checkpoint, of finite parameters only."""
    flush()
    seconds = time.perf_counter() - start
    meta = {"step": step, "epoch": step // per_epoch, "seconds": seconds}
    saved.save(step, meta, **state)

  # ---- Loop.
  source = batch_source.make(config, method, backbone, mesh, datasets)
  batches = source.batches(start_step=step)
  while step < total_steps and not distributed.any_of(stop.requested):
    batch = next(batches)
    batch.pop("index", None)
    batch = predictor.put_batch(batch, mesh)
    state, pending[step + 1] = update(state, backbone, aux, batch, rng_loop)
    step += 1
    if step % config.log_steps == 0 or step == total_steps:
      flush()
    if step % per_epoch == 0:
      flush()
      log.write(step, select(step, **state["model"]))
    if step % config.checkpoint_steps == 0:
      save()
  save()
  report.log_skipped(source.skipped)
  return step == total_steps


def define_flags() -> None:
  """Define the command's flags; called only when it is run."""
  config_files.define_flag(required=True)
  flags.DEFINE_string(
    "workdir", None, "Folder of the run; default runs/<config.name>."
  )


def main(options: flags.FlagValues) -> int:
  """Run the command; return its exit status."""
  config = options.config
  workdir = pathlib.Path(options.workdir or f"runs/{config.name}")
  start = time.perf_counter()
  if not train(config, workdir):
    print(f"Stopped. The same command resumes the run in {workdir}.")
    return 128 + signal.SIGTERM
  print(f"Trained in {time.perf_counter() - start:.0f} s.", flush=True)
  run = run_lib.load(workdir)
  calibration.store(run)
  how = protocol.Protocol.from_config(
    config, allow_trained=config.allow_trained
  )
  names = writer.names(config, workdir / "evaluation")
  for data in dict.fromkeys(config.test_data):
    writer.evaluate(run, data, workdir / "evaluation", how, names=names)
  report.log_cache_size(config.decoded_cache)
  return 0


if __name__ == "__main__":
  cli.run(main, define_flags)
