"""Checkpoints: atomic, asynchronous, by Orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from zsad_jax.types import Params

KEEP = 2  # The last one and, in case it is corrupt, the one before.


class Checkpoints:
  """Numbered checkpoints of named trees in a folder.

  A checkpoint is written in the background into a temporary folder that is
  renamed when complete: every listed checkpoint is complete, even if the
  process is killed.

  Args:
    folder: of the checkpoints; created if missing.
    keep: number of checkpoints to keep.
  """

  def __init__(self, folder: str | pathlib.Path, *, keep: int = KEEP) -> None:
    self._folder = pathlib.Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint; None where there is none."""
    return self._manager.latest_step()

  def save(self, step: int, meta: dict[str, Any], **trees: Params) -> None:
    """Start to write named trees; return once the arrays are copied.

    Args:
      step: number of the checkpoint.
      meta: JSON values to store with it.
      **trees: trees of arrays by name.
    """
    if step == self.latest_step:
      return  # The run was stopped right after it had saved.
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
    self._manager.save(step, args=args)

  def restore(self, **like: Params) -> tuple[dict[str, Params], dict[str, Any]]:
    """Read the named trees of the newest checkpoint, and its metadata.

    Args:
      **like: for each name a tree of arrays with the structure, shapes, types
        and shardings of the result.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it holds other trees, of another method or other settings.
    """
    step = self.latest_step
    if step is None:
      raise FileNotFoundError(f"{self._folder} holds no complete checkpoint.")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {name: ocp.args.StandardRestore(a) for name, a in abstract.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
    try:
      found = self._manager.restore(step, args=args)
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"{self._folder / str(step)} does not fit this configuration; use "
        f"another --workdir, or the settings it was made with. ({error})"
      ) from error
    return {name: found[name] for name in like}, found["meta"]

  def meta(self) -> dict[str, Any]:
    """Read the metadata of the newest checkpoint."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self._manager.restore(self.latest_step, args=args)["meta"]

  def wait(self) -> None:
    """Wait until everything is written."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait, and stop the background threads."""
    self.wait()
    self._manager.close()
