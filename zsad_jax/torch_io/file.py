"""Reader and writer of torch files that does not need torch.

A torch file is a zip archive: `NAME/data.pkl`, a pickle that describes the
tensors, and one raw file `NAME/data/KEY` per storage. A pickle is a program.
No code in it is executed: `_Unpickler` resolves an allow-list of names to
harmless replacements and rejects all other names. Supported are

  reading   `torch.save` of a state dict, or of dicts of them (training
            checkpoints); TorchScript archives, such as OpenAI's CLIP models
  writing   state dicts, or dicts of them
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
  """Read the tensors of a torch file under the names of its state dict.

  Names of nested dicts and modules are joined by dots. If a checkpoint has an
  entry `state_dict`, only that entry is read. A prefix `module.` common to all
  names (distributed training) is removed. Values that are no tensors (an
  epoch, a class name) are skipped.

  Args:
    path: file written by `torch.save` (torch 1.6 or later) or
      `torch.jit.save`.

  Returns:
    Read-only arrays by name, in the data types of the file; bfloat16 is that
    of `ml_dtypes`.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is corrupt, is no torch file, refers to names outside
      the allow-list, or holds no tensors.
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
    raise ValueError(_describe_bad_zip(path, error)) from error
  except Exception as error:  # Corrupt bytes can make a pickle raise anything.
    raise ValueError(
      f"{path} is corrupt: its data.pkl does not describe tensors "
      f"({type(error).__name__}: {error}). Fetch the file again."
    ) from error
  if not state:
    raise ValueError(f"{path} holds no named tensors; expected a state dict.")
  if all(name.startswith("module.") for name in state):
    state = {name.removeprefix("module."): x for name, x in state.items()}
  return state


def write(path: str | pathlib.Path, content: Mapping[str, Any]) -> None:
  """Write dicts of arrays as `torch.save` writes dicts of tensors.

  Args:
    path: the file; it is written atomically.
    content: arrays by name, or dicts of them. An array with several names is
      stored once.

  Raises:
    ValueError: torch does not support the data type of an array.
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
  """Writer of pickle opcodes (protocol 2) that build tensors in torch.

  The standard pickler would import the names that it writes, hence torch.
  """

  def __init__(self):
    # id(array) -> (key, array)
    self.storages: dict[int, tuple[str, np.ndarray]] = {}

  def value(self, x: Any) -> bytes:
    """Return the opcodes of a dict, an array, or a part of them."""
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
      + b"tQ"  # Q: look up this persistent id.
    )
    return (
      _name("torch._utils", "_rebuild_tensor_v2")
      + b"("
      + storage
      + b"".join(map(self.value, (0, x.shape, tuple(strides.tolist()))))
      + b"\x89"  # requires_grad=False.
      + _name("collections", "OrderedDict")
      + b")RtR"  # No hooks; R calls a name with the tuple after it.
    )


def _name(module, name):
  return f"c{module}\n{name}\n".encode()


class _FileError(ValueError):
  """Error whose message is complete and contains the name of the file."""


class _Module:
  """Replacement of a TorchScript object; stores its attributes."""

  __slots__ = ("attributes",)

  def __setstate__(self, state):
    self.attributes = state


class _Storage(NamedTuple):
  """Raw bytes of one or more tensors and the type of their elements."""

  data: bytes
  dtype: np.dtype


class _Unpickler(pickle.Unpickler):
  """Restricted unpickler of an archive's `data.pkl`."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    self._path = path
    self._read = functools.cache(archive.read)  # Tensors can share storage.
    self._folder = _find_folder(path, archive)
    # A new table for each file: a pickle can set attributes of these objects.
    self._allowed = {
      ("collections", "OrderedDict"): collections.OrderedDict,
      ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(*args),
      ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
      # Attributes of TorchScript modules that are no tensors.
      ("torch", "device"): lambda *_: None,
      ("torch.jit._pickle", "build_intlist"): lambda data: data,
      ("torch.jit._pickle", "build_doublelist"): lambda data: data,
      ("torch.jit._pickle", "build_boollist"): lambda data: data,
      ("torch.jit._pickle", "build_tensorlist"): lambda data: data,
      ("torch.jit._pickle", "restore_type_tag"): lambda data, _: data,
    }
    super().__init__(archive.open(f"{self._folder}/data.pkl"))

  def find_class(self, module: str, name: str) -> Any:
    """Return the replacement of a name; reject names not on the allow-list."""
    if module == "torch" and name in _DTYPES:
      return name  # A string can be neither called nor changed.
    if module.split(".")[0] == "__torch__":
      return type("Module", (_Module,), {"__slots__": ()})
    if (module, name) in self._allowed:
      return self._allowed[module, name]
    tensors = module == "torch" and name.endswith("Storage")
    if tensors or name.startswith("_rebuild_") or name.startswith("float8_"):
      raise _FileError(
        f"{self._path} holds tensors of a kind that is not read: `{module}."
        f"{name}`. Load it in torch and save its state_dict() with dense "
        "tensors of float16, bfloat16 or float32."
      )
    raise _FileError(
      f"{self._path} would run code: it refers to `{module}.{name}`, but only "
      "tensors can be read. If you trust the file, load it in torch and save "
      "only its state_dict()."
    )

  def persistent_load(self, pid: Any) -> _Storage:
    """Return a storage; `pid` is (kind, class, key, device, elements)."""
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
        f"{self._path} is corrupt: {name} has {len(data)} bytes, expected "
        f"{size} elements of {dtype}. Fetch the file again."
      )
    return _Storage(data, dtype)


def _tensor(storage, offset, shape, strides, requires_grad, hooks):
  """Return a view of a storage; NumPy checks that it lies inside."""
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
  """Return NAME, the folder that holds all entries of a torch archive."""
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
      f"{path} is not little-endian, the only supported byte order. "
      "Load it in torch and save it again on a little-endian machine."
    )
  return folders[0]


def _named_tensors(value, prefix=""):
  """Yield `(dotted name, array)` of each tensor in dicts and modules."""
  if isinstance(value, _Module):
    value = value.attributes
  if isinstance(value, dict):
    for name, child in value.items():
      yield from _named_tensors(child, f"{prefix}.{name}" if prefix else name)
  elif isinstance(value, np.ndarray) and prefix:
    yield prefix, value


def _describe_bad_zip(path, error):
  """Return the error message for a file that is no complete zip archive."""
  with path.open("rb") as f:
    start = f.read(24)
  other = files.other_kind(path)
  if start.startswith(_ZIP_START):
    return (
      f"{path} is corrupt or truncated ({path.stat().st_size:,} bytes): "
      f"{error}. Fetch the file again."
    )
  if start.startswith(_PICKLE_START):
    return (
      f"{path} is in torch's old format, from before version 1.6. Load it "
      "in a recent torch and save it again with torch.save."
    )
  return (
    f"{path} is not a torch file: expected a zip, it begins with {start}. "
    f"{other}"
  ).rstrip()
