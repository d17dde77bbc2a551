"""Rules about the code's own form: imports, tables, lengths, configs."""

import ast
import importlib
import operator
import pathlib
import re

import pytest

import zsad_jax
from configs import adaclip as adaclip_config
from zsad_jax import runs

ROOT = pathlib.Path(zsad_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
METHODS = sorted(p.stem for p in (ROOT / "methods").glob("[a-z]*.py"))

# Imports go to strictly lower numbers, or stay inside a folder of its level.
LEVELS = {
    "api": 0, "files": 0,
    "losses": 1, "layers": 1, "optim": 1, "checkpoint": 1, "writer": 1,
    "threshold": 1,
    "clip": 2, "methods": 2, "datasets": 2, "evaluation": 2, "cli": 2,
    "predictor": 3, "runs": 3, "evaluator": 4, "selection": 5, "calibration": 5,
    "report": 5, "parity": 6, "train": 6, "evaluate": 6, "predict": 6,
    "convert": 6,
}  # fmt: skip
LONG = {"train.py": 150}  # The one long function: the train loop.


def top(module):
  """The part of a module's name that has a level."""
  return module.split(".")[1] if "." in module else "zsad_jax"


def imports(path):
  """Modules of the package that a file imports, wherever in the file."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "zsad_jax":
        yield from (f"zsad_jax.{alias.name}" for alias in node.names)
      elif node.module.startswith("zsad_jax."):
        yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
  relative = path.relative_to(ROOT).with_suffix("")
  mine = relative.parts[0]
  if mine == "__init__":
    return
  for module in imports(path):
    theirs = top(module)
    same_folder = theirs == mine and mine != "methods"
    lower = theirs in LEVELS and LEVELS[theirs] < LEVELS[mine]
    assert same_folder or lower, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
  text = path.read_text(encoding="utf-8")
  limit = 350 if path.parent.name == "methods" else 400
  assert text.count("\n") <= limit
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      documented = isinstance(node.body[0], ast.Expr) and len(node.body) > 1
      first = node.body[1 if documented else 0].lineno
      lines = node.end_lineno - first + 1
      assert lines <= LONG.get(path.name, 45), f"{node.name}: {lines} lines"


ROW = re.compile(r"^  ((?:Eq|Sec|App|Fig)\. [\d.]+|Code) +(\w[\w.]*)$", re.M)


@pytest.mark.parametrize("name", METHODS)
def test_equation_table_is_true(name):
  module = importlib.import_module(f"zsad_jax.methods.{name}")
  rows = ROW.findall(module.__doc__)
  assert rows, f"methods/{name}.py needs an equation table in its docstring."
  for paper, target in rows:
    thing = operator.attrgetter(target)(module)
    assert f"({paper}" in thing.__doc__, f"{target} does not cite {paper}."


def test_no_library_module_chooses_the_platform():
  for path in FILES:
    assert "JAX_PLATFORMS" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", ["embedded", "paper", "paper_mvtec"])
def test_configs_build_a_method_and_are_locked(variant):
  config = adaclip_config.get_config(variant).lock()
  method = runs.make_method(config.method_name, config.method.to_dict())
  assert method.taps == tuple(config.method.taps)
  with pytest.raises(AttributeError):
    config.learning_rate = 1.0


def test_the_paper_config_is_the_authors_recipe():
  config = adaclip_config.get_config("paper")
  # train.py and README of the official code.
  assert (config.batch_size, config.epochs, config.seed) == (1, 5, 111)
  assert config.train_data == ("mvtec", "colondb")
  assert config.optax.to_dict() == dict(
      learning_rate=0.01, b1=0.5, b2=0.999, eps=1e-8, weight_decay=0.01
  )
  assert config.selection == "official"
  assert adaclip_config.get_config("paper_mvtec").train_data == (
      "visa", "clinicdb"
  )  # fmt: skip
  # Everything else of the method is its default, the authors' values.
  method = runs.make_method("adaclip", config.method.to_dict())
  assert method == type(method)()


def test_unknown_names_are_errors_that_list_what_there_is():
  with pytest.raises(ValueError, match="embedded.*paper_mvtec"):
    adaclip_config.get_config("papers")
  with pytest.raises(ValueError, match="methods/adaklip.py"):
    runs.make_method("adaklip", {})
  with pytest.raises(ValueError, match="config.method.tap.*taps"):
    runs.make_method("adaclip", {"tap": 1})
  with pytest.raises(ValueError, match="ViT-L-14-336"):
    runs.load_backbone("ViT-L-14-335", "")
  with pytest.raises(FileNotFoundError, match="zsad_jax.convert"):
    runs.load_backbone("ViT-L-14-336", "nowhere.safetensors")
