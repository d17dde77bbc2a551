"""Reads and writes tensors of torch files, without torch.

Nothing in a file is run.

A torch file is a zip archive: `NAME/data.pkl`, a pickle that describes the
tensors, and one raw file `NAME/data/KEY` per storage. A pickle is a program,
so `_Unpickler` resolves the few names below to inert stand-ins and refuses
every other one. Read are

  `torch.save` of a state dict, or of dicts of them (training checkpoints);
  TorchScript archives, such as OpenAI's CLIP models.

Written are the former.
"""

import collections
import functools
import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from zsad_jax.runtime import files

# Storage classes of module `torch`, by the dtype of their elements.
_DTYPES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a torch file under the names of its state dict.

  Names of nested dicts and modules are joined by dots. Of a checkpoint with
  an entry `state_dict`, that entry alone is read; a `module.` that begins
  every name (distributed training) is cut off. Values that are not tensors
  (an epoch, a class name) are left out.

  Args:
    path: file written by `torch.save` (torch 1.6 or later) or `torch.jit.save`.

  Returns:
    Read-only arrays in the dtype of the file; bfloat16 is `ml_dtypes`'.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, is no torch file, refers to anything but
      tensors, or holds none.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file.")
  try:
    with zipfile.ZipFile(path) as archive:
      content = _Unpickler(path, archive).load()
    if isinstance(content, dict) and "state_dict" in content:
      content = content["state_dict"]
    state = dict(_named_tensors(content))
  except (_FileError, OSError):
    raise
  except zipfile.BadZipFile as error:
    raise ValueError(_why_no_zip(path, error)) from error
  except Exception as error:  # Damaged bytes can make a pickle raise anything.
    raise ValueError(
      f"{path} is damaged: its data.pkl does not describe tensors "
      f"({type(error).__name__}: {error}). Fetch the file again."
    ) from error
  if not state:
    raise ValueError(f"{path} holds no named tensors; expected a state dict.")
  if all(name.startswith("module.") for name in state):
    state = {name.removeprefix("module."): x for name, x in state.items()}
  return state


def write(path: str | pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes what `torch.save` makes of dicts of tensors.

  Args:
    path: the file; it appears complete or not at all.
    content: arrays by name, or dicts of them. An array that stands under two
      names is stored once.

  Raises:
    ValueError: an array has a type that torch has not.
    OSError: the file cannot be written.
  """
  pickler = _Pickler()
  program = b"\x80\x02" + pickler.value(content) + b"."
  folder, buffer = pathlib.Path(path).stem, io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:  # Stored, not compressed.
    archive.writestr(f"{folder}/data.pkl", program)
    archive.writestr(f"{folder}/byteorder", "little")
    for key, x in pickler.storages.values():
      data = x.astype(x.dtype.newbyteorder("<")).tobytes()
      archive.writestr(f"{folder}/data/{key}", data)
    archive.writestr(f"{folder}/version", "3\n")
  files.write_bytes(path, buffer.getvalue())


class _Pickler:
  """Opcodes of pickle's protocol 2 that build a value in torch.

  Pickle's own writer would have to import the names it writes.
  """

  def __init__(self):
    self.storages = {}  # id(array) -> (key, array)

  def value(self, x) -> bytes:
    """The opcodes of a dict, an array, or a part of them."""
    if isinstance(x, Mapping):
      pairs = [self.value(part) for pair in x.items() for part in pair]
      return b"}(" + b"".join(pairs) + b"u"
    if isinstance(x, tuple):
      return b"(" + b"".join(map(self.value, x)) + b"t"
    if isinstance(x, str):
      text = x.encode("utf-8")
      return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(x, int):
      return b"\x8a\x08" + struct.pack("<q", x)
    return self._tensor(x)

  def _tensor(self, x):
    kinds = [name for name, dtype in _DTYPES.items() if x.dtype == dtype]
    if not kinds:
      raise ValueError(f"torch has no tensors of {x.dtype}.")
    key, _ = self.storages.setdefault(id(x), (str(len(self.storages)), x))
    strides = np.cumprod((1, *x.shape[:0:-1]), dtype=int)[::-1][: x.ndim]
    storage = (
      b"("
      + self.value("storage")
      + _name("torch", kinds[0])
      + b"".join(map(self.value, (key, "cpu", x.size)))
      + b"tQ"  # Q: to be found under this persistent id.
    )
    return (
      _name("torch._utils", "_rebuild_tensor_v2")
      + b"("
      + storage
      + b"".join(map(self.value, (0, x.shape, tuple(strides.tolist()))))
      + b"\x89"  # No gradient.
      + _name("collections", "OrderedDict")
      + b")RtR"  # No hooks; R calls the name before a tuple.
    )


def _name(module, name):
  return f"c{module}\n{name}\n".encode()


class _FileError(ValueError):
  """A message for the user, complete with the file's name."""


class _Module:
  """Stands for a TorchScript object: it only remembers its attributes."""

  __slots__ = ("attributes",)

  def __setstate__(self, state):
    self.attributes = state


class _Storage(NamedTuple):
  """The raw bytes of one or more tensors, and how to read them."""

  data: bytes
  dtype: np.dtype


class _Unpickler(pickle.Unpickler):
  """Unpickles `data.pkl` of an open archive; see the module's docstring."""

  def __init__(self, path, archive):
    self._path = path
    self._read = functools.cache(archive.read)  # Tensors can share storage.
    self._folder = _find_folder(path, archive)
    # Made anew for each file: a pickle can set attributes of what it is given.
    self._allowed = {
      ("collections", "OrderedDict"): collections.OrderedDict,
      ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(*args),
      ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
      # Attributes of TorchScript modules beside their tensors.
      ("torch", "device"): lambda *_: None,
      ("torch.jit._pickle", "build_intlist"): lambda data: data,
      ("torch.jit._pickle", "build_doublelist"): lambda data: data,
      ("torch.jit._pickle", "build_boollist"): lambda data: data,
      ("torch.jit._pickle", "build_tensorlist"): lambda data: data,
      ("torch.jit._pickle", "restore_type_tag"): lambda data, _: data,
    }
    super().__init__(archive.open(f"{self._folder}/data.pkl"))

  def find_class(self, module, name):
    """Returns the stand-in for a name that the pickle refers to."""
    if module == "torch" and name in _DTYPES:
      return name  # A string can be neither called nor changed.
    if module.split(".")[0] == "__torch__":
      return type("Module", (_Module,), {"__slots__": ()})
    if (module, name) in self._allowed:
      return self._allowed[module, name]
    raise _FileError(
      f"{self._path} would run code: it refers to `{module}.{name}`; only "
      "tensors are read. If you trust the file, load it in torch and save "
      "its state_dict() alone."
    )

  def persistent_load(self, pid):
    """Returns a storage: `pid` is (kind, class, key, device, elements)."""
    _, storage_class, key, _, size = pid
    dtype = np.dtype(_DTYPES[storage_class])
    name = f"{self._folder}/data/{key}"
    try:
      data = self._read(name)
    except KeyError:
      raise _FileError(
        f"{self._path} is incomplete: {name}, the data of a tensor, is "
        "missing. Fetch the file again."
      ) from None
    if len(data) != size * dtype.itemsize:
      raise _FileError(
        f"{self._path} is damaged: {name} has {len(data)} bytes, expected "
        f"{size} elements of {dtype}. Fetch the file again."
      )
    return _Storage(data, dtype)


def _tensor(storage, offset, shape, strides, requires_grad, hooks):
  """Returns a view of a storage; numpy checks that it stays inside."""
  del requires_grad, hooks
  data, dtype = storage
  return np.ndarray(
    shape,
    dtype,
    buffer=data,
    offset=offset * dtype.itemsize,
    strides=[stride * dtype.itemsize for stride in strides],
  )


def _find_folder(path, archive):
  """Returns NAME of an archive of torch; all its entries lie below it."""
  entries = archive.namelist()
  found = [entry.split("/") for entry in entries]
  folders = [parts[0] for parts in found if parts[1:] == ["data.pkl"]]
  if len(folders) != 1:
    raise _FileError(
      f"{path} is a zip file but not one of torch: expected one "
      f"NAME/data.pkl in it, found {len(folders)}."
    )
  order = f"{folders[0]}/byteorder"  # Not written before torch 2.1.
  if order in entries and archive.read(order) != b"little":
    raise _FileError(
      f"{path} is not little-endian, the only byte order that is read. "
      "Load it in torch and save it again on a little-endian machine."
    )
  return folders[0]


def _named_tensors(value, prefix=""):
  """Yields `(dotted name, array)` of each tensor below dicts and modules."""
  if isinstance(value, _Module):
    value = value.attributes
  if isinstance(value, dict):
    for name, child in value.items():
      yield from _named_tensors(child, f"{prefix}.{name}" if prefix else name)
  elif isinstance(value, np.ndarray) and prefix:
    yield prefix, value


def _why_no_zip(path, error):
  """Returns what is wrong with a file that is not a whole zip archive."""
  with path.open("rb") as f:
    start = f.read(24)
  if start.startswith(_ZIP_START):
    return (
      f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): "
      f"{error}. Fetch the file again."
    )
  if start.startswith(_PICKLE_START):
    return (
      f"{path} is in torch's old format, from before version 1.6. Load it "
      "in a recent torch and save it again with torch.save."
    )
  return f"{path} is not a torch file: expected a zip, it begins with {start}."
