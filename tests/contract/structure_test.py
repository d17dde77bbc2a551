"""Rules about the form of the code: imports, tables, lengths, annotations."""

import ast
import importlib
import operator
import pathlib
import re
import shutil

import pytest

import zsad_jax
from configs import common
from tests.helpers import imports
from zsad_jax import backbones
from zsad_jax.runs import run as run_lib

ROOT = pathlib.Path(zsad_jax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
METHODS = sorted(p.stem for p in (ROOT / "methods").glob("[a-z]*.py"))

LONG = {"train.py": 150, "pretrain.py": 120}  # The loops are one function.


def test_imports_go_to_lower_levels_without_circles():
  assert imports.violations(ROOT) == []


@pytest.mark.parametrize(
  ("folder", "line", "message"),
  [
    ("layers", "from zsad_jax.methods import adaclip", "no lower level"),
    ("losses", "import zsad_jax.metrics.exact", "no lower level"),
    ("metrics", "from zsad_jax.datasets import index", "no lower level"),
    ("datasets", "def f():\n  from zsad_jax import train", "no lower level"),
    ("metrics", "from zsad_jax.metrics import planted", "one another"),
  ],
)
def test_a_planted_violation_is_found(folder, line, message, tmp_path):
  root = tmp_path / "zsad_jax"
  shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("*.safetensors"))
  if folder == "losses":
    (root / "losses.py").write_text(line + "\n")
  else:
    (root / folder / "planted.py").write_text(line + "\n")
  if message == "one another":
    (root / folder / "planted.py").write_text(
      f"from zsad_jax.{folder} import other\n"
    )
    (root / folder / "other.py").write_text(line + "\n")
  found = imports.violations(root)
  assert found and all(message in sentence for sentence in found)


def test_the_root_holds_commands_and_two_modules():
  modules = {path.stem for path in ROOT.glob("*.py")}
  assert len(modules) <= 10, sorted(modules)


def public_functions(tree):
  """Functions of a module and methods of its classes that are not private."""
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from public_functions(node)
    elif isinstance(node, ast.FunctionDef):
      if not node.name.startswith("_") or node.name == "__init__":
        yield node


def unannotated(path):
  """Public functions whose arguments or result have no annotation."""
  for node in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    named += [a for a in (given.vararg, given.kwarg) if a]
    missing = [
      a.arg
      for a in named
      if a.annotation is None and a.arg not in ("self", "cls")
    ]
    if node.returns is None and node.name != "__init__":
      missing.append("return")
    if missing:
      yield f"{node.name}: {', '.join(missing)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_are_annotated(path):
  """Keeps the interfaces of all modules typed; see pyrightconfig.json."""
  assert list(unannotated(path)) == []


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
def test_equation_table_matches_the_docstrings(name):
  module = importlib.import_module(f"zsad_jax.methods.{name}")
  rows = ROW.findall(module.__doc__)
  assert rows, f"methods/{name}.py needs an equation table in its docstring."
  for paper, target in rows:
    thing = operator.attrgetter(target)(module)
    assert f"({paper}" in thing.__doc__, f"{target} does not cite {paper}."


def test_no_library_module_chooses_the_platform():
  for path in FILES:
    if path.name == "environment.py":
      continue  # It names the variable in an error message.
    assert "JAX_PLATFORMS" not in path.read_text(encoding="utf-8")


CONFIGS = {name: importlib.import_module(f"configs.{name}") for name in METHODS}


def variants(name):
  """Return all variants of a configuration, and ablations of the protocol."""
  module = CONFIGS[name]
  # A backbone of other sizes is a variant of the protocol alone.
  alone = [a for a in module.ABLATIONS if not a.startswith("b16")]
  return [*common.BASES, *alone, *(f"paper,{a}" for a in module.ABLATIONS)]


@pytest.mark.parametrize("name", METHODS)
def test_configs_build_a_method_and_are_locked(name):
  workdirs = set()
  for variant in variants(name):
    config = CONFIGS[name].get_config(variant).lock()
    method = run_lib.make_method(config.method_name, config.method.to_dict())
    assert config.method_name == name
    workdirs.add(config.name)
    for field, value in config.method.items():
      assert getattr(method, field) == value
    with pytest.raises(AttributeError):
      config.learning_rate = 1.0
  assert len(workdirs) == len(variants(name))  # No run overwrites another.


# train.py and README of the official code: batch, epochs, seed, sigma.
RECIPES = {
  "adaclip": (1, 5, 111, 4.0),
  "anomalyclip": (8, 15, 111, 4.0),
  "faprompt": (8, 7, 111, 10.0),
  "adaptclip": (8, 15, 10, 4.0),
  "clip": (8, 0, 111, 4.0),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_paper_config_is_the_authors_recipe(name):
  config = CONFIGS[name].get_config("paper")
  recipe = dict(learning_rate=0.001, b1=0.5, b2=0.999, eps=1e-8)
  batch, epochs, seed, sigma = RECIPES[name]
  data = {"paper": ("mvtec",), "paper_mvtec": ("visa",)}
  if name == "adaclip":
    recipe |= dict(learning_rate=0.01, weight_decay=0.01)
    data = {"paper": ("mvtec", "colondb"), "paper_mvtec": ("visa", "clinicdb")}
  assert (config.batch_size, config.epochs) == (batch, epochs)
  assert (config.seed, config.smooth_sigma) == (seed, sigma)
  assert config.optax.to_dict() == recipe
  assert config.optax_name == ("adamw" if name == "adaclip" else "adam")
  assert config.selection == ("official" if name == "adaclip" else "last")
  assert config.image_size == 518
  for variant, train_data in data.items():
    other = CONFIGS[name].get_config(variant)
    assert other.train_data == train_data
    assert not set(other.train_data) & set(other.test_data)
  # Everything else of the method is its default, the authors' values.
  method = run_lib.make_method(name, config.method.to_dict())
  assert method == type(method)()


# configs and trainers of the authors' code; batch and epochs are those that
# FAPrompt's methods share.
DASSL = dict(name="cosine", warmup_epochs=1, warmup_learning_rate=1e-5)
SGD = ("sgd", dict(learning_rate=0.002, momentum=0.9))
ADAM = ("adam", dict(learning_rate=0.002, b1=0.9, b2=0.999, eps=1e-3))


@pytest.mark.parametrize(
  "name, recipe", [("coop", SGD), ("cocoop", SGD), ("tcp", ADAM)]
)
def test_the_paper_config_has_the_optimizer_of_dassl(name, recipe):
  for variant in ("paper", "paper_mvtec", "embedded"):
    config = CONFIGS[name].get_config(variant)
    assert (config.optax_name, config.optax.to_dict()) == recipe
    assert config.schedule.to_dict() == DASSL
    assert config.l2_weight_decay == 5e-4
    assert (config.batch_size, config.epochs) == (8, 15)
    assert (config.smooth_sigma, config.selection) == (4.0, "last")
  config = CONFIGS[name].get_config("paper")
  assert (config.train_data, config.test_data) == (("mvtec",), ("visa",))
  method = run_lib.make_method(name, config.method.to_dict())
  assert method == type(method)()


def test_unknown_names_are_errors_that_list_the_known_ones():
  with pytest.raises(ValueError, match="embedded.*paper_mvtec"):
    CONFIGS["adaclip"].get_config("papers")
  with pytest.raises(ValueError, match="exclude one another"):
    CONFIGS["faprompt"].get_config("paper,paper_mvtec")
  with pytest.raises(ValueError, match="methods/adaklip.py"):
    run_lib.make_method("adaklip", {})
  with pytest.raises(
    ValueError, match="config.method.feature_layer.*feature_layers"
  ):
    run_lib.make_method("adaclip", {"feature_layer": 1})
  with pytest.raises(ValueError, match="ViT-L-14-336"):
    backbones.load("ViT-L-14-335", "")
  with pytest.raises(FileNotFoundError, match="zsad convert"):
    backbones.load("ViT-L-14-336", "nowhere.safetensors")
  with pytest.raises(ValueError, match="config.backbone.dtype is one of float"):
    backbones.load("embedded", "", "float16")
