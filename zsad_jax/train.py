r"""Train a method and evaluate it.

python -m zsad_jax.train --config=adaclip --workdir=runs/adaclip

  --config=adaclip:paper                a variant of the configuration
  --config=FOLDER/FILE.py:VARIANT       another configuration file
  --config.optax.learning_rate=0.005    any field, see configs/common.py
  --config.method.temperature=0.1       any field of the method

A run can be stopped at any time: the same command resumes it, to the same
numbers. A finished run is not evaluated again; `zsad_jax.evaluate` does that.
"""

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from zsad_jax import types
from zsad_jax.datasets import pipeline
from zsad_jax.evaluation import calibration, evaluator, protocol
from zsad_jax.inference import predictor
from zsad_jax.reporting import report, writer
from zsad_jax.runs import backbone as backbone_lib
from zsad_jax.runs import (
  categories,
  checkpoint,
  finished,
  lock,
  logger,
  optimizer_settings,
  peers,
  settings,
)
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import (
  cli,
  config_files,
  copies,
  distributed,
  processes,
  stopping,
)
from zsad_jax.training import (
  batch_size,
  batch_source,
  optimizer,
  per_category,
  selection,
  summary,
  update_step,
)

_THRESHOLDS = (threshold_lib.FILE, threshold_lib.FEW_SHOT_FILE)


def train(config: types.Config, workdir: pathlib.Path) -> bool:
  """Train `config.method`.

  Args:
    config: see configs/common.py.
    workdir: folder of the run; an interrupted run in it is resumed.

  Returns:
    False when a signal stopped the run after a step, whose state is stored.

  Raises:
    stopping.Stopped: a signal stopped the run before its first step, or the
      selection of an epoch.
    ValueError: a setting is invalid, a file cannot be read, the loss is not
      finite, or another process trains in this workdir.
  """
  # The threads of the checkpoints have to end in any case.
  with contextlib.ExitStack() as stack, processes.exit_on_peer_failure():
    stack.enter_context(lock.hold(workdir))
    return _train(config, workdir, stack)


def _train(config, workdir, stack):
  """Train, from top to bottom; see `train`."""
  # ---- Settings that can be checked before anything is read.
  settings.check(config, settings.TRAINING)
  optimizer_settings.check(
    config.optax_name, config.optax.to_dict(), config.get("param_groups")
  )
  method = run_lib.make_method(config.method_name, config.method.to_dict())
  selection.check(config.selection)
  per_category.check(config, method)
  protocol.check_names(config)

  # ---- Mesh: images are split over "data", everything else is replicated.
  jax.config.update("jax_default_matmul_precision", config.matmul_precision)
  mesh = distributed.make_mesh()
  given, config = config, batch_size.scaled(config)

  # ---- Data: test images of the auxiliary sets; their anomalies have masks.
  datasets = _open_datasets(config)
  names = sum(
    (evaluator.prompt_names(d, config.prompt_names) for d in datasets), ()
  )
  images = sum(len(d.test) for d in datasets)
  per_epoch = pipeline.steps_per_epoch(images, config.batch_size)
  total_steps = per_epoch * config.epochs
  plan = per_category.plan(config, datasets)
  if plan:  # A set of parameters for each category; their steps in turn.
    names, per_epoch = plan.prompt_names, plan.steps
    total_steps = plan.steps * len(plan.names)
  rows = plan.batch_size if plan else config.batch_size
  batch_size.log_padding(rows, jax.device_count())

  # ---- Frozen backbone, trainable parameters.
  backbone = backbone_lib.load(config, method)
  backbone_lib.check_image_size(config, backbone)
  peers.check_training(config, workdir, datasets, backbone)
  rng_init, rng_loop = jax.random.split(jax.random.key(config.seed))
  if plan:
    params, stats = plan.initial(method, backbone, mesh)
    one, period = categories.row(params, 0), plan.steps_per_epoch
  else:
    params, stats = jax.jit(method.init)(rng_init, backbone)
    one, period = params, per_epoch
  trainable = method.trainable_mask(one)
  aux = distributed.replicate(method.prepare(backbone, names), mesh)
  backbone = distributed.replicate(backbone, mesh)

  # ---- Optimizer and state; a checkpoint in workdir replaces the fresh state.
  run_lib.save_config(workdir, given)
  if plan:
    plan.categories().write(workdir)
  tx = optimizer.from_config(config, trainable, period)
  state = {
    "model": {"params": params, "stats": stats},
    "training": {"opt": tx.init(one), "step": np.int32(0)},
  }
  state = distributed.replicate(state, mesh)
  make_update = plan.update if plan else update_step.make
  update = make_update(method, tx)
  saved = checkpoint.Checkpoints(workdir / "checkpoints")
  stack.callback(saved.close)
  start, meta = time.perf_counter(), {}
  if saved.latest_step is not None:
    state, meta = saved.restore(**state)
    start -= meta.get("seconds", 0.0)  # Of the interrupted run.
  first_step = step = int(state["training"]["step"])
  if step < total_steps:
    finished.reset(workdir)
  trained_on = plan.joint if plan else datasets
  summary.log(config, trained_on, method, backbone, one)

  # ---- Actions between steps.
  log = logger.Writer(
    workdir,
    first_step=step,
    total_steps=total_steps,
    tensorboard=config.tensorboard,
    drop_extra=not meta.get("selected", True),
  )
  stack.callback(log.close)
  select = selection.make(config, workdir, method, backbone, mesh, stack)
  # Measurements since the last line of the log, still on the device.
  pending = logger.from_meta(meta.get("pending", {}))

  def flush():
    """Fetch measurements, stop on NaN, write their means."""
    if not pending:
      return
    means = logger.means(pending)
    if plan:
      means = plan.named(max(pending), means)
    speed = log.progress(max(pending), means["loss"], rows)
    log.write(max(pending), {**means, "images_per_second": speed})
    pending.clear()

  def save(selected=True):
    """Write a checkpoint, of finite parameters only."""
    seconds = time.perf_counter() - start
    meta = {"step": step, "epoch": step // per_epoch, "seconds": seconds}
    meta["pending"] = logger.to_meta(pending)
    saved.save(step, meta | {"selected": selected}, **state)

  def end_epoch(stop):
    """Select the parameters of an epoch; if stopped, a resumed run does."""
    flush()
    try:
      with stop.interruptible():
        log.write(step, select(step, **state["model"]))
    except stopping.Stopped:
      save(selected=False)
      saved.wait()
      raise

  # ---- Loop.
  source: batch_source.BatchSource = (
    per_category.Source(plan, method, backbone, mesh)
    if plan
    else batch_source.make(config, method, backbone, mesh, datasets)
  )
  batches = source.batches(start_step=step)
  processes.stop_together()
  stop = stack.enter_context(stopping.Deferred())
  if not meta.get("selected", True):
    end_epoch(stop)
  while step < total_steps and not stop.reached():
    first = step == first_step  # Nothing to store yet; compiles.
    with stop.interruptible() if first else contextlib.nullcontext():
      batch = next(batches)
      batch.pop("index", None)
      batch = predictor.put_batch(batch, mesh)
      state, pending[step + 1] = update(state, backbone, aux, batch, rng_loop)
      if first:
        jax.block_until_ready(state["training"]["step"])
    step += 1
    if step % config.log_steps == 0 or step == total_steps:
      flush()
    if step % per_epoch == 0:
      end_epoch(stop)
    if step % config.checkpoint_steps == 0:
      flush()
      save()
  save()
  saved.wait()
  report.log_skipped(source.skipped)
  stopped = distributed.any_of(stop.requested)
  return step == total_steps and not stopped


def _open_datasets(config):
  """Open the auxiliary data sets."""
  datasets = [run_lib.open_dataset(config, name) for name in config.train_data]
  if config.mosaic_prob is None:
    return datasets
  return [
    dataclasses.replace(d, mosaic_prob=config.mosaic_prob) for d in datasets
  ]


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
  try:
    with lock.hold(workdir):
      start = time.perf_counter()
      if not train(config, workdir):
        raise stopping.Stopped(stopping.received(), together=True)
      print(f"Trained in {time.perf_counter() - start:.0f} s.", flush=True)
      _finish(config, workdir)
      _print_next(workdir)
  except stopping.Stopped as error:
    where = copies.origin(workdir)
    error.add_note(f"The same command resumes the run in {where}.")
    raise
  return 0


def _print_next(workdir):
  """Print the folder of the run and, if it has a threshold, what it is for."""
  where = copies.origin(workdir)
  print(f"Run: {where}")
  for name, flag in zip(_THRESHOLDS, ("", " --references=few_good/")):
    if (workdir / name).is_file():
      print(f"Use it: zsad predict --workdir={where}{flag} photos/")
      break


def calibrated(workdir: pathlib.Path) -> tuple[Any, finished.Stages]:
  """Load a trained run, and set its thresholds unless that was done before.

  Returns:
    The run, and its completed stages.
  """
  run = run_lib.load(workdir)
  stages = finished.Stages(workdir, run.step)
  if not stages.is_done("calibration"):
    _calibrate(run, stages)
  return run, stages


def _finish(config, workdir):
  """Calibrate and evaluate a trained run, unless that was done before."""
  run, stages = calibrated(workdir)
  how = protocol.Protocol.from_config(
    config, allow_trained=config.allow_trained
  )
  done, names = [], writer.names(config, workdir / "evaluation")
  for data in dict.fromkeys(config.test_data):
    if stages.is_done(f"evaluation of {data}"):
      done.append(data)
      continue
    _evaluate(run, data, how, stages, names)
  if done:
    print(
      f"The run was finished before: {', '.join(done)} is not evaluated "
      f"again, see {workdir / 'evaluation'}. To repeat it: python -m "
      f"zsad_jax.evaluate --workdir={copies.origin(workdir)}"
    )
  report.log_cache_size(config.decoded_cache)


def _calibrate(run, stages):
  """Store the thresholds of a run; print those that they replace."""
  paths = [run.workdir / name for name in _THRESHOLDS]
  before = {p: p.read_text(encoding="utf-8") for p in paths if p.is_file()}
  calibration.store(run)
  for path, text in before.items():
    if path.read_text(encoding="utf-8") != text:
      old = " ".join(text.split())
      print(f"note: {path} was replaced; it was of other parameters: {old}")
  # A run without thresholds is not calibrated again, either.
  written = [path for path in paths if path.is_file()]
  stages.mark("calibration", written or [run.workdir / "config.json"])


def _evaluate(run, data, how, stages, names):
  """Evaluate a run on a data set and write the tables."""
  folder = run.workdir / "evaluation"
  before = _times(folder)
  writer.evaluate(run, data, folder, how, names=names)
  written = [p for p, t in _times(folder).items() if before.get(p) != t]
  stages.mark(f"evaluation of {data}", written)


def _times(folder):
  """Return the times of the results below a folder, by path.

  Only the primary process, which writes them, needs them; to the others, files
  and folders may vanish at any time.
  """
  if not distributed.is_primary():
    return {}
  paths = sorted(folder.rglob("results.json"))
  return {path: path.stat().st_mtime_ns for path in paths}


if __name__ == "__main__":
  cli.run(main, define_flags)
