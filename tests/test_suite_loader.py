"""A release of transformers that nobody has judged makes no test fail, unless it is to be judged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import suite_loader

TESTS = Path(__file__).parent
SUITE = """
import suite_loader

class ModelSuite:
    def test_config(self):
        for part in ("vision", "prompts"):
            with self.subTest(part):
                assert part == "vision"

    def test_of_another_day(self):
        assert False

class ConfigurationTest(ModelSuite, suite_loader.SuiteTestCase):
    def test_that_is_our_own(self):
        assert "{fate}" == "passes"
"""


def run(folder: Path, version: str, fate: str, **environment: str) -> tuple[int, str]:
    """A suite of which one test is judged and one is not, under a version of transformers."""
    patch = f"import transformers\ntransformers.__version__ = {version!r}\npytest_plugins = ['suite_loader']\n"
    (folder / "conftest.py").write_text(patch)
    (folder / "test_sample.py").write_text(SUITE.format(fate=fate))
    (folder / "pytest.ini").touch()
    path = os.pathsep.join([str(TESTS), *sys.path])
    command = [sys.executable, "-m", "pytest", "-rsx", "-p", "no:cacheprovider", str(folder)]
    settings = {"PYTHONPATH": path, "SAM_HF_JUDGE_SUITES": "", "COLUMNS": "200", **environment}
    result = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
    return result.returncode, result.stdout


def test_an_unjudged_release_fails_only_where_it_is_judged(tmp_path):
    code, output = run(tmp_path, "99.0", "passes")
    assert code == 0, output
    assert "new in transformers 99.0, not judged yet; `.ci/run newest` runs it" in output
    assert f"transformers 99.0 is newer than {suite_loader.JUDGED_VERSION}, the last one judged" in output
    code, output = run(tmp_path, "99.0", "fails", SAM_HF_JUDGE_SUITES="1")
    assert code == 1 and "skipped" not in output and "xfailed" not in output, output
    assert "3 failed" in output


def test_what_is_judged_may_not_fail(tmp_path):
    code, output = run(tmp_path, suite_loader.JUDGED_VERSION, "fails")
    print(output)
    assert code == 1 and "1 skipped" in output and "xfailed" not in output, output


@pytest.mark.parametrize("version", ["99.0", suite_loader.JUDGED_VERSION])
def test_suites_that_cannot_be_loaded(version, monkeypatch):
    monkeypatch.setattr(suite_loader.transformers, "__version__", version)
    monkeypatch.delenv("SAM_HF_JUDGE_SUITES", raising=False)
    assert suite_loader.excuse_for_absence(suite_loader.SuitesUnavailable("no index")) == "no index"
    if version == "99.0":
        assert "newer than" in suite_loader.excuse_for_absence(ImportError("moved"))
        monkeypatch.setenv("SAM_HF_JUDGE_SUITES", "1")
    with pytest.raises(ImportError, match="moved"):
        suite_loader.excuse_for_absence(ImportError("moved"))
