"""Configurations of the rows of the papers' tables."""

from zsad_jax.evaluation import paper_results, recipes
from zsad_jax.evaluation.recipes import Recipe


def test_a_row_has_the_configuration_of_its_method():
  for printed, shots, expected in (
    ("AdaCLIP", "0", Recipe("adaclip")),
    ("AdaCLIP [HSF K=20]", "0", Recipe("adaclip", "k20")),
    ("AnomalyCLIP+", "4", Recipe("anomalyclip")),
    ("AnomalyCLIP Ensemble*", "0", Recipe("anomalyclip", "ensemble")),
    ("AnomalyCLIP Ensemble", "0", Recipe("anomalyclip", runs=10)),
    ("AdaptCLIP+", "1", None),
    ("PatchCore", "full", None),
    ("WinCLIP", "0", Recipe("winclip", "anomalyclip")),
    ("WinCLIP+", "1", Recipe("winclip", "anomalyclip")),
    ("CLIP-AC", "0", Recipe("clip", "ac")),
    ("TCP_V2", "0", Recipe("tcp", "v2")),
  ):
    assert recipes.find(printed, shots, "adaptclip") == expected
  caoyunkang = Recipe("winclip", "caoyunkang")
  assert recipes.find("WinCLIP", "0", "adaclip") == caoyunkang


def test_no_configuration_is_tested_on_what_it_was_trained_on():
  adaclip, anomalyclip = Recipe("adaclip", "k20"), Recipe("anomalyclip")
  assert adaclip.base_for("visa") == "paper"
  assert adaclip.base_for("colondb") == "paper_mvtec"
  assert adaclip.base_for("mvtec") == "paper_mvtec"
  assert anomalyclip.base_for("colondb") == "paper"
  assert adaclip.spec("paper") == "adaclip:paper,k20"


def test_the_list_has_the_configurations_of_each_row():
  text = recipes.list_tables(paper_results.read())
  entry = text[text.index("adaclip, Table 10:") :].splitlines()
  assert "--table=adaclip/10: 312 numbers" in entry[1]
  assert "data visa; shots 0" in entry[1]
  assert "  AdaCLIP: adaclip:paper" in entry[2:8]
  entry = text[text.index("faprompt, Table 2:") :].splitlines()
  row = "  FAPrompt: faprompt:paper, faprompt:paper_mvtec"
  assert row in entry[2:11]
  averages = text[text.index("faprompt, Table 3:") :]
  assert "Ensemble: anomalyclip:paper, mean of 10 seeds" in averages


def test_few_shot_is_defined_by_the_method_or_the_tables():
  cells = paper_results.read()
  found = {
    name
    for name in ("clip", "adaclip", "anomalyclip", "adaptclip")
    if recipes.has_few_shot(name, cells)
  }
  assert found == {"anomalyclip", "adaptclip"}
