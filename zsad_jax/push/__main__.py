r"""Upload a run to the Hugging Face hub, or write the folder that would be.

python -m zsad_jax.push --workdir=runs/adaclip --repo=OWNER/NAME \
    --dry_run --output=upload
python -m zsad_jax.push --workdir=runs/adaclip --repo=OWNER/NAME

The repository holds the trained parameters and running statistics
(model.safetensors), the configuration without private paths, the thresholds,
and a model card. The backbone's weights are named, with a hash, and not
uploaded. --calibration=NAME adds a calibration of the run, which includes its
reference images. A new repository is private unless --public is given. The
login is that of `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another hub.

The run is read back by zsad_jax.load("hf:OWNER/NAME"), and by predict and
serve with --workdir=hf:OWNER/NAME. The folder of --dry_run is a --workdir, too.
"""

import pathlib
import tempfile
from typing import Any

from absl import flags

from zsad_jax.push import folder
from zsad_jax.runs import ensemble, lock
from zsad_jax.runtime import cli, copies, hub, hub_errors


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string(
    "repo", None, "Repository on the hub, OWNER/NAME.", required=True
  )
  flags.DEFINE_string(
    "license",
    None,
    "Licence of the trained parameters in the hub's spelling, such as "
    "apache-2.0. It can be left out for a run on the embedded data with the "
    "embedded backbone: apache-2.0.",
  )
  flags.DEFINE_string(
    "calibration", None, "Calibration to add, with its reference images."
  )
  flags.DEFINE_bool("dry_run", False, "Write --output, and upload nothing.")
  flags.DEFINE_string("output", None, "Folder to write with --dry_run.")
  flags.DEFINE_bool("public", False, "Let everybody read a new repository.")


def check_options(options: Any) -> None:
  """Check the flags before anything is read.

  Raises:
    ValueError: a flag is missing or invalid.
  """
  if not hub.NAME.fullmatch(options.repo) or ".." in options.repo:
    raise ValueError(
      f"--repo={options.repo} is no name on the hub; expected OWNER/NAME, of "
      "letters, digits, dots, hyphens and underscores."
    )
  if options.dry_run and not options.output:
    raise ValueError("--output is missing: the folder that --dry_run writes.")
  if options.output and not options.dry_run:
    raise ValueError("--output is for --dry_run, which uploads nothing.")


def main(options: Any) -> None:
  """Run the command.

  Raises:
    ValueError: see `check_options` and `folder.build`.
    OSError: a file cannot be read or written, or the hub refuses the upload.
  """
  check_options(options)
  lock.check(pathlib.Path(options.workdir))
  run = ensemble.load(options.workdir)
  with tempfile.TemporaryDirectory() as temporary:
    output = pathlib.Path(options.output or f"{temporary}/upload")
    built = folder.build(
      run,
      output,
      repo=options.repo,
      licence=options.license,
      calibration=options.calibration,
    )
    for name in built.names:
      print(f"  {name}")
    total = f"{len(built.names)} files, {copies.in_bytes(built.size)}"
    if built.num_references:
      total += f", {built.num_references} reference images among them"
    if options.dry_run:
      print(f"Wrote {output}: {total}. Nothing was uploaded.")
      return
    url = upload(output, options.repo, public=options.public)
  print(f"Uploaded {total}: {url}")
  print(f'Read it by zsad_jax.load("hf:{options.repo}").')


def upload(path: pathlib.Path, repo: str, *, public: bool) -> str:
  """Upload a folder in one commit; return its URL.

  Args:
    path: the folder.
    repo: owner/name; it is created if missing.
    public: whether everybody can read a repository that is created.

  Raises:
    OSError: the hub cannot be reached or refuses it.
  """
  import huggingface_hub  # Slow to import.

  api = huggingface_hub.HfApi(library_name="zsad_jax")
  with hub_errors.explained(repo, upload=True):
    api.create_repo(repo, private=not public, exist_ok=True)
    done = api.upload_folder(
      repo_id=repo,
      folder_path=path,
      commit_message="Upload a run of zsad_jax",
    )
  return str(done.commit_url)


if __name__ == "__main__":
  cli.run(main, define_flags, alone=True)
