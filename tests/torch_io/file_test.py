"""Tests of `zsad_jax.torch_io.file`."""

import io
import os
import pathlib
import pickle
import pickletools
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from zsad_jax.torch_io import file as torch_file

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
JIT = GOLDENS / "clip_micro_openai_jit.pt"
STATE_DICT = GOLDENS / "clip_micro_openai_state_dict.pt"


def _write_archive(path, content, files=()):
  """Write a zip file as torch does, with a pickle of `content`."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", pickle.dumps(content, protocol=2))
    for name, data in files:
      archive.writestr(f"model/{name}", data)


def _edit_archive(source, target, change):
  """Copy a zip file; `change` maps (name, data) to data, or to None."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
    for name in old.namelist():
      data = change(name, old.read(name))
      if data is not None:
        new.writestr(name, data)


def _assert_equal(found, expected):
  """Check for equal names, shapes, data types and values."""
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


def test_both_torch_formats_hold_the_tiny_clip():
  state, jit = torch_file.read(STATE_DICT), torch_file.read(JIT)
  sizes = {n: jit.pop(n).item() for n in jit.keys() - state.keys()}
  assert sizes == dict(input_resolution=56, context_length=77, vocab_size=256)
  _assert_equal(jit, state)
  with np.load(GOLDENS / "clip_tiny.npz") as tiny:
    for name, x in state.items():  # Two blocks a tower, 256 rows of tokens.
      rows = slice(256) if name == "token_embedding.weight" else ...
      np.testing.assert_array_equal(x, tiny[f"w/{name}"][rows], err_msg=name)
  assert state["visual.conv1.weight"].dtype == np.float16
  assert state["visual.ln_pre.weight"].dtype == np.float32


def test_tensors_as_torch_saves_them(tmp_path):
  torch = pytest.importorskip("torch")
  x = torch.arange(24.0).reshape(2, 3, 4)
  tensors = {
    "permuted": x.permute(2, 0, 1),
    "sliced": x[1, ::2, 1:],
    "expanded": x[:1].expand(5, 3, 4),
    "parameter": torch.nn.Parameter(x),
    "bfloat16": x.bfloat16(),
    "bool": x > 3,
    "int8": x.to(torch.int8),
    "float64": x.double(),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
  }
  path = tmp_path / "checkpoint.pth"
  torch.save({"epoch": 3, "adapter": {"deep": tensors}}, path)
  state = torch_file.read(path)
  assert list(state) == [f"adapter.deep.{name}" for name in tensors]
  for name, expected in tensors.items():
    found = state[f"adapter.deep.{name}"]
    assert str(expected.dtype) == f"torch.{found.dtype}"
    np.testing.assert_array_equal(
      found.astype(np.float64), expected.detach().double().numpy()
    )


def test_training_checkpoint_is_unwrapped(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "epoch_1.pt"
  state = {"module.a": torch.ones(2), "module.b.c": torch.zeros(3)}
  optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}}
  torch.save({"epoch": 1, "state_dict": state, "optimizer": optimizer}, path)
  assert list(torch_file.read(path)) == ["a", "b.c"]


def test_torchscript_names_are_those_of_torch(tmp_path):
  torch = pytest.importorskip("torch")
  module = torch.nn.Sequential(
    torch.nn.Linear(3, 4), torch.nn.TransformerEncoderLayer(4, 2)
  ).eval()
  module.sizes = [1, 2]
  path = tmp_path / "model.pt"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchScript is deprecated.
    torch.jit.save(torch.jit.trace(module, torch.ones(2, 5, 3)), path)
  _assert_equal(
    torch_file.read(path),
    {name: x.numpy() for name, x in module.state_dict().items()},
  )


class _Command:
  """Object whose pickle calls `os.system`."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_code_in_a_pickle_is_not_run(tmp_path):
  path, witness = tmp_path / "evil.pt", tmp_path / "witness"
  command = _Command(f"touch {witness}")
  _write_archive(path, {"weight": command})
  with pytest.raises(ValueError, match=r"evil.pt would run code: .*\.system`"):
    torch_file.read(path)
  assert not witness.exists()
  pickle.loads(pickle.dumps(command))  # The standard unpickler runs it.
  assert witness.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("builtins", "eval"),
    ("torch", "load"),
    ("torch.jit._pickle", "loads"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "namedtuple"),
    ("torch.storage", "_load_from_bytes"),
  ],
)
def test_other_names_are_refused(tmp_path, module, name):
  path = tmp_path / "other.pt"
  with zipfile.ZipFile(path, "w") as archive:
    program = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."
    archive.writestr("model/data.pkl", program)
  with pytest.raises(ValueError, match=f"refers to `{module}.{name}`"):
    torch_file.read(path)


@pytest.mark.parametrize("size", [10, 5_000, 1_289_000])
def test_truncated_torch_file(tmp_path, size):
  path = tmp_path / "cut.pt"
  path.write_bytes(STATE_DICT.read_bytes()[:size])
  with pytest.raises(ValueError, match=f"cut.pt is corrupt .*{size:,} bytes"):
    torch_file.read(path)


def test_incomplete_torch_file(tmp_path):
  path = tmp_path / "broken.pt"
  last = lambda name: name.endswith("/data/3")
  cases = {
    "data/3, the data of a tensor, is missing": lambda name, data: (
      None if last(name) else data
    ),
    "data/3 has 510 bytes, expected 128 elements of float32": lambda name, data: (
      data[:-2] if last(name) else data
    ),
    "data.pkl does not describe tensors": lambda name, data: (
      data[:-99] if name.endswith(".pkl") else data
    ),
    "not little-endian": lambda name, data: (
      b"big" if name.endswith("order") else data
    ),
    "expected one NAME/data.pkl in it, found 0": lambda name, data: (
      None if name.endswith(".pkl") else data
    ),
  }
  for message, change in cases.items():
    _edit_archive(STATE_DICT, path, change)
    with pytest.raises(ValueError, match=f"broken.pt .*{message}"):
      torch_file.read(path)


def test_a_view_cannot_leave_its_storage(tmp_path):
  path = tmp_path / "view.pt"
  # The only tensor of (77, 64) starts at element 0: let it start at 1.
  _edit_archive(
    STATE_DICT,
    path,
    lambda _, data: data.replace(b"K\x00KMK@\x86", b"K\x01KMK@\x86"),
  )
  with pytest.raises(ValueError, match="does not describe tensors"):
    torch_file.read(path)


def test_files_of_other_kinds(tmp_path):
  path = tmp_path / "other.pt"
  legacy = io.BytesIO()
  pickle.dump(0x1950A86A20F9469CFC6C, legacy, protocol=2)  # torch's magic.
  for data, message in [
    (legacy.getvalue(), "old format, .*save it again"),
    (b"version https://git-lfs", "not a torch file.*git-lfs"),
    (b"", "not a torch file"),
  ]:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
      torch_file.read(path)
  _write_archive(path, {"epoch": 3})
  with pytest.raises(ValueError, match="no named tensors"):
    torch_file.read(path)
  with pytest.raises(FileNotFoundError, match="absent.pt"):
    torch_file.read(tmp_path / "absent.pt")


# ---- Writing


def _arrays():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4)).astype(np.float32)
  types = ("float16", "float64", "int8", "int16", "int32", "uint8", "bool")
  return {
    "plain": x,
    "again": x,
    "transposed": x.T,
    "sliced": x[1, ::2, 1:],
    "count": np.array(2**40, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "bfloat16": x.astype(ml_dtypes.bfloat16),
    **{name: x.astype(name) for name in types},
  }


def test_round_trip(tmp_path):
  path, arrays = tmp_path / "folder" / "mine.pth", _arrays()
  torch_file.write(path, {"group": arrays, "flat": arrays["plain"][0]})
  found = torch_file.read(path)
  _assert_equal(
    found,
    {f"group.{name}": x for name, x in arrays.items()}
    | {"flat": arrays["plain"][0]},
  )
  with zipfile.ZipFile(path) as archive:
    entries = archive.infolist()
    assert {e.compress_type for e in entries} == {zipfile.ZIP_STORED}
    stored = [e.filename for e in entries if "/data/" in e.filename]
    assert len(stored) == len(arrays)  # "again" is "plain"; and "flat".
    assert archive.read("mine/byteorder") == b"little"
    program = archive.read("mine/data.pkl")
  # Opcodes that torch allows with weights_only, its default.
  assert {opcode.name for opcode, *_ in pickletools.genops(program)} == {
    "PROTO",
    "EMPTY_DICT",
    "MARK",
    "BINUNICODE",
    "GLOBAL",
    "LONG1",
    "TUPLE",
    "BINPERSID",
    "NEWFALSE",
    "EMPTY_TUPLE",
    "REDUCE",
    "SETITEMS",
    "STOP",
  }


def test_a_file_is_written_atomically(tmp_path, monkeypatch):
  path = tmp_path / "mine.pth"
  with pytest.raises(ValueError, match="torch has no tensors of complex64"):
    torch_file.write(path, {"a": np.zeros(2, np.complex64)})
  torch_file.write(path, {"a": np.zeros(2)})
  before = path.read_bytes()

  def full_disk(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full_disk)
  with pytest.raises(OSError, match="No space left"):
    torch_file.write(path, {"a": np.ones(2)})
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
