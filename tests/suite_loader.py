"""transformers' own test suites, from the source distribution of the installed version.

They are no part of the wheel and are not copied into this repository: the first use downloads the source distribution
with pip, in the version that is installed, and keeps its `tests` folder in the user's cache.

Whoever installs this package gets whatever release of transformers is the newest, and with it suites that nobody here
has seen. A test that is not in `judged_suite_tests.txt` is skipped, and in a release after `JUDGED_VERSION` a test
that fails is an expected failure; both say so. With `SAM_HF_JUDGE_SUITES=1`, as `.ci/run newest` sets it, they run and
fail as any other. To judge a release, make them pass there, set the version, and add the names to the file:

    pytest tests/test_transformers_suites.py --collect-only | sed -n "s/.*py:://p" | sort
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections.abc import Generator
from pathlib import Path

import pytest
import transformers
from filelock import FileLock
from packaging.version import Version

PACKAGE = "transformers_suites"
JUDGED_VERSION = "5.24.0"
JUDGED_TESTS = frozenset(Path(__file__).with_name("judged_suite_tests.txt").read_text().split())
IS_EXCUSED = pytest.StashKey[bool]()

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


def is_judging() -> bool:
    """Whether to run what nobody has judged."""
    return os.environ.get("SAM_HF_JUDGE_SUITES", "") not in ("", "0")


def excuse_for_failure() -> str | None:
    """Why a test of the suites may fail, or None where it may not."""
    if is_judging() or Version(transformers.__version__) <= Version(JUDGED_VERSION):
        return None
    return f"transformers {transformers.__version__} is newer than {JUDGED_VERSION}, the last one judged"


def excuse_for_absence(error: Exception) -> str:
    """Why the suites may be absent; raises the error where they may not."""
    excuse = None if isinstance(error, SuitesUnavailable) else excuse_for_failure()
    if not isinstance(error, SuitesUnavailable) and excuse is None:
        raise error
    return f"{excuse}: {error!r}" if excuse else str(error)


class SuiteTestCase(unittest.TestCase):
    """A test case that inherits from a suite; this file is a plugin of pytest that excuses its tests."""

    @classmethod
    def excuse_for_skipping(cls, name: str) -> str | None:
        """Why a test is not run, or None: what the class itself defines is, and what it inherits if it is judged."""
        if is_judging() or name in vars(cls) or f"{cls.__name__}::{name}" in JUDGED_TESTS:
            return None
        return f"new in transformers {transformers.__version__}, not judged yet; `.ci/run newest` runs it"


def is_of_suites(item: pytest.Item) -> bool:
    return issubclass(getattr(item, "cls", None) or object, SuiteTestCase)


def pytest_itemcollected(item: pytest.Item) -> None:
    if is_of_suites(item) and (excuse := item.cls.excuse_for_skipping(item.name)):
        item.add_marker(pytest.mark.skip(reason=excuse))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A subtest that fails raises nothing in its test, and pytest does not show it: the test is excused with it."""
    report = yield
    if not is_of_suites(item) or not (excuse := excuse_for_failure()):
        return report
    if report.failed or (report.when == "call" and item.stash.get(IS_EXCUSED, False)):
        item.stash[IS_EXCUSED] = True
        report.outcome, report.wasxfail = "skipped", excuse
    return report


def make_suites_importable() -> None:
    """Put the folder that holds the package `transformers_suites` on `sys.path`.

    Raises:
        SuitesUnavailable: without cached copy and without package index.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_hf"
    folder = cache / f"transformers-{transformers.__version__}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "lock"):
            if not folder.is_dir():  # else another process has downloaded them meanwhile
                fetch(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    # What the suites call slow takes no time with a tiny model, or is skipped for a better reason.
    os.environ.setdefault("RUN_SLOW", "yes")


def fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unpack(download(Path(temporary)), Path(temporary) / "complete")
        (Path(temporary) / "complete").rename(folder)


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
