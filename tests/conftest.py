"""Fixtures shared by all tests: a place for real data that may be absent."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tiny_runs import load_example, small_config

pytest_plugins = ["suite_loader"]
# Names that transformers' own suites mark their tests with.
SUITE_MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")

# Two threads that compete for a busy core are several times slower than one.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The options of `addopts` that are of pytest-xdist are no errors without it: `-p no:xdist` is one process."""
    if not pluginmanager.hasplugin("xdist"):
        for name in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(name)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """One process where files are named, since others take longer to start, and where prints are to be seen (`-s`).

    `-n 2` is obeyed; the `auto` of `addopts` is for all tests.
    """
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if config.option.numprocesses == "auto" and (not is_whole or config.option.capture == "no"):
        config.option.numprocesses = 0


def pytest_configure(config: pytest.Config) -> None:
    for name in SUITE_MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' suites")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images with masks; never part of the repository."""
    path = Path(os.environ.get("SAM_HF_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data is absent: {path} (set SAM_HF_DATA to a folder that holds dsb2018/)")
    return path


@pytest.fixture(autouse=True, scope="session")
def one_core() -> Iterator[None]:
    """Training scripts run inside a test take one thread: worker processes forked after several have run may hang."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        yield


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate remembers its first device in each process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def train() -> ModuleType:
    return load_example()


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration without weights; drop path makes training depend on torch's random numbers."""
    folder = tmp_path_factory.mktemp("untrained")
    small_config(drop_path_rate=0.3).save_pretrained(folder)
    return folder


@pytest.fixture
def no_common_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that `datasets` makes of Parquet files go to the folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
