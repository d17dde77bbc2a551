"""Tests of `zsad_jax.runtime.hub` against a server of its protocol."""

import pathlib

import huggingface_hub
import pytest
from absl import flags
from huggingface_hub import file_download

from tests.helpers.local_hub_client import hub  # noqa: F401
from zsad_jax.runtime import hub as hub_lib
from zsad_jax.runtime import hub_cache

REPO = "owner/model"
WEIGHTS = bytes(range(256)) * 4000  # 1 MB.
FILES = {
  "config.json": b'{"a": 1}',
  "model.safetensors": WEIGHTS,
  "sub/notes.txt": b"",
}


def fetch(*patterns, **options):
  choose = lambda names: hub_lib.matching(names, patterns or ["*"])
  return hub_lib.fetch(REPO, choose, **options)


def contents(snapshot):
  return {n: (snapshot.path / n).read_bytes() for n in snapshot.files}


def test_files_are_verified_and_downloaded_once(hub):  # noqa: F811
  commit = hub.add(REPO, FILES)
  hub.licences[REPO] = "mit"
  found = fetch()
  assert (found.commit, found.licence) == (commit, "mit")
  assert contents(found) == FILES
  # As `git hash-object` prints it.
  git = "4a036f56bb619924ec4189bd84ed716c766971ae"
  assert found.files["config.json"].digest == git
  assert contents(fetch()) == FILES
  assert hub.downloads("model.safetensors")[1:] == [""]  # resolve, storage
  hub.log.clear()
  assert contents(fetch(offline=True)) == FILES
  assert not hub.log


def test_only_chosen_files_are_downloaded(hub):  # noqa: F811
  hub.add(REPO, FILES)
  assert [*fetch("*.json").files] == ["config.json"]
  assert not hub.downloads("model.safetensors")
  with pytest.raises(
    hub_lib.HubError, match="none of the files needed; it has"
  ):
    fetch("*.bin")
  # What was not downloaded is not there without a network.
  with pytest.raises(hub_lib.HubError, match="model.safetensors of owner/mod"):
    fetch("model*", offline=True)


def test_a_stopped_download_continues_in_the_next_call(
  hub,  # noqa: F811
  monkeypatch,
):
  """The first call is stopped after 300,000 bytes."""
  hub.add(REPO, FILES)
  hub.cut["model.safetensors"] = 300_000

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(file_download.time, "sleep", killed)
    with pytest.raises(KeyboardInterrupt):
      fetch()
  (part,) = pathlib.Path(hub_cache.Cache(REPO).blobs).glob("*.part")
  there = part.stat().st_size
  assert 0 < there <= 300_000
  hub.log.clear()
  assert contents(fetch()) == FILES
  assert set(hub.downloads("model.safetensors")) == {f"bytes={there}-"}
  assert not part.exists()


def test_a_connection_that_breaks_is_continued(hub, monkeypatch):  # noqa: F811
  hub.add(REPO, FILES)
  hub.cut["model.safetensors"] = 500_000
  monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
  assert contents(fetch()) == FILES
  assert any(r.startswith("bytes=") for r in hub.downloads("model.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_wrong_content_is_refused_and_removed(hub, name):  # noqa: F811
  hub.add(REPO, FILES)
  hub.corrupt.add(name)
  message = f"{name} of owner/model has the hash [0-9a-f]*, but the hub states"
  with pytest.raises(ValueError, match=message):
    fetch(name)
  cache = hub_cache.Cache(REPO)
  assert [*cache.blobs.iterdir()] == []
  assert not cache.snapshots.exists()
  hub.corrupt.clear()
  assert contents(fetch(name)) == {name: FILES[name]}


def test_a_copy_that_changed_is_removed(hub):  # noqa: F811
  hub.add(REPO, FILES)
  found = fetch()
  (found.path / "model.safetensors").write_bytes(bytes(len(WEIGHTS)))
  with pytest.raises(ValueError, match="had changed and was removed: run the"):
    fetch()
  assert contents(fetch()) == FILES


def test_a_new_commit_reuses_files_that_are_the_same(hub):  # noqa: F811
  old = hub.add(REPO, FILES)
  fetch()
  new = hub.add(REPO, {"config.json": b"{}"})
  hub.log.clear()
  found = fetch()
  assert found.commit == new != old
  assert contents(found) == FILES | {"config.json": b"{}"}
  assert not hub.downloads("model.safetensors")
  assert contents(fetch(revision=old)) == FILES


def test_files_of_the_cache_of_huggingface_hub_are_used(hub):  # noqa: F811
  hub.add(REPO, FILES)
  for name in FILES:
    huggingface_hub.hf_hub_download(REPO, name)
  hub.log.clear()
  assert contents(fetch("*.*", offline=True)) == FILES
  assert not hub.log
  assert contents(fetch()) == FILES
  assert not hub.downloads("model.safetensors")


def test_errors_name_the_remedy(hub):  # noqa: F811
  with pytest.raises(hub_lib.HubError, match="does not exist on the hub, or"):
    fetch()
  hub.add(REPO, FILES)
  with pytest.raises(hub_lib.HubError, match="no such revision"):
    fetch(revision="v2")
  hub.gated.add(REPO)
  with pytest.raises(hub_lib.HubError, match="is gated: accept its conditions"):
    fetch()
  hub.gated.clear()
  hub.private.add(REPO)
  assert fetch().commit
  assert not hub.leaked  # The storage is another host.
  hub.token = "another"
  with pytest.raises(hub_lib.HubError, match="log in by `hf auth login`"):
    fetch()


def test_without_a_network_the_last_copy_is_used(
  hub,  # noqa: F811
  monkeypatch,
  capsys,
):
  hub.add(REPO, FILES)
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(hub_lib.HubError, match="could not be fetched") as error:
    fetch()
  assert error.value.unreachable
  monkeypatch.setattr(constants, "ENDPOINT", hub.url)
  fetch()
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
  assert contents(fetch()) == FILES
  assert "The copy of commit" in capsys.readouterr().out


def test_names():
  assert hub_lib.split("hf:owner/name") == ("owner/name", "main")
  assert hub_lib.split("hf:owner/name@v1.0") == ("owner/name", "v1.0")
  for other in ("runs/a", "hf://owner/name", "hf:/owner/name"):
    assert hub_lib.split(other) is None
  for wrong in ("hf:owner", "hf:a/b/c", "hf:../name", "hf:a/b@"):
    with pytest.raises(ValueError, match="names no repository of the hub"):
      hub_lib.split(wrong)


def test_only_workdir_of_reading_commands_may_be_on_the_hub():
  options = flags.FlagValues()
  flags.DEFINE_string("workdir", "hf:a/b", "", flag_values=options)
  flags.DEFINE_list("ensemble", [], "", flag_values=options)
  hub_lib.refuse(options, reads_runs=True)
  message = "zsad weights get hf:a/b --output=runs/b"
  with pytest.raises(ValueError, match=message):
    hub_lib.refuse(options, reads_runs=False)
  options["workdir"].value, options["ensemble"].value = "", ["runs/a", "hf:a/b"]
  with pytest.raises(ValueError, match="--ensemble=hf:a/b"):
    hub_lib.refuse(options, reads_runs=True)
