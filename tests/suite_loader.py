"""transformers' own test suites, from the source distribution of the installed version.

They are no part of the wheel and are not copied into this repository: the first use downloads the source distribution
with pip, in the version that is installed, and keeps its `tests` folder in the user's cache.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

PACKAGE = "transformers_suites"

# The source distribution leaves sub-folders of `tests` out. These stand for the few names taken from them.
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = "
    '{"return_dict": False, "output_hidden_states": True, "dtype": "float16", "architectures": ["Other"],'
    ' "id2label": {0: "label"}, "label2id": {"label": "0"}, "problem_type": "regression"}\n',
    "../fetch_hub_objects_for_ci.py": "def url_to_local_path(url): return url\n",
}


class SuitesUnavailable(Exception):
    """The suites are neither in the cache nor could they be downloaded; the message says why."""


def make_suites_importable() -> None:
    """Put the folder that holds the package `transformers_suites` on `sys.path`.

    Raises:
        SuitesUnavailable: without cached copy and without package index.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_hf"
    folder = cache / f"transformers-{transformers.__version__}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            unpack(download(Path(temporary)), Path(temporary) / "complete")
            try:
                (Path(temporary) / "complete").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    # What the suites call slow takes no time with a tiny model, or is skipped for a better reason.
    os.environ.setdefault("RUN_SLOW", "yes")


def download(folder: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    command += ["--retries", "1", "--dest", str(folder), requirement]
    run = subprocess.run(command, capture_output=True, text=True)
    archive = next(folder.glob("*.tar.gz"), None)
    if archive is None:
        reason = (run.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise SuitesUnavailable(f"the source distribution of {requirement} could not be downloaded: {reason}")
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """The `tests` of a source distribution as a package, with what they import from elsewhere."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if Path(member.name).parts[1:2] == ("tests",)]
        tar.extractall(folder, members, filter="data")
    tests = next(folder.glob("*/tests"), None)
    if tests is None:
        raise SuitesUnavailable(f"{archive.name} holds no tests.")
    package = folder / PACKAGE
    tests.rename(package)
    shutil.rmtree(next(folder.glob("transformers-*")))
    for name, text in STAND_INS.items():
        path = (package / name).resolve()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (folder / "__init__.py").unlink()
    (package / "__init__.py").touch()
