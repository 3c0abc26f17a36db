"""What the package exports, and what its files may import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_model

import sam_hf
from sam_hf import SamHfImageProcessor, SamHfProcessor

PACKAGE = Path(sam_hf.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")
EXAMPLES = sorted((PACKAGE.parents[1] / "examples").glob("*.py"))
# What lies flat is what `push_to_hub` copies next to the weights, where the package is absent.
HUB_FILES = sorted(path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
HUB_LIBRARIES = {"torch", "torchvision", "numpy", "PIL", "transformers", "huggingface_hub"}
TRAIN_EXTRA = ["accelerate", "datasets", "evaluate", "matplotlib", "peft", "pycocotools", "scipy", "skimage"]
TRAIN_EXTRA += ["tensorboard"]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_from_package(path: Path) -> set[tuple[str, str]]:
    """(module of the package, name) of everything that a file imports from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            folder = path.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            module = ".".join([*folder, *([node.module] if node.module else [])])
            if module.split(".")[0] == "sam_hf":
                found |= {(module, alias.name) for alias in node.names}
    return found


def isort_style(name: str) -> tuple[int, str]:
    """Constants, classes, functions, as ruff sorts them (RUF022)."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_all_is_sorted_and_exists(path):
    if not path.read_text().strip():
        return
    module = importlib.import_module(name_of(path))
    assert list(module.__all__) == sorted(set(module.__all__), key=isort_style)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", [*MODULES, *EXAMPLES], ids=lambda path: "/".join(path.parts[-2:]))
def test_all_is_complete(path):
    """What one file takes from another is public there: `__all__` says what a change must keep."""
    for module, name in imports_from_package(path):
        assert name in importlib.import_module(module).__all__, f"{path.name} takes {name} from {module}"


def test_short_names_are_the_same_objects():
    for short in ("SamConfig", "SamImageProcessor", "SamModel", "SamProcessor"):
        assert getattr(sam_hf, short) is getattr(sam_hf, short.replace("Sam", "SamHf"))
        # transformers takes a class of a name that it has for its own.
        assert getattr(sam_hf, short).__name__ != short


def test_flat_files_are_those_that_go_to_the_hub(tmp_path):
    """transformers copies what the classes import: a flat file that none of them needs belongs into a folder."""
    tiny_model().save_pretrained(tmp_path, include_code=True)
    SamHfProcessor(SamHfImageProcessor()).save_pretrained(tmp_path, include_code=True)
    assert sorted(path.name for path in tmp_path.glob("*.py")) == HUB_FILES


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_files_import_what_the_hub_has(name):
    tree = ast.parse((PACKAGE / name).read_text())
    # transformers does not ask for what a file imports within `try`.
    optional = {node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if node in optional:
            continue
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module != "__future__", "annotations as strings hide the config class from transformers"
            roots = {node.module.split(".")[0]}
            if roots == {"huggingface_hub"}:
                assert node.module == "huggingface_hub.dataclasses"
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` and deeper paths are not copied.
            assert node.level == 1 and node.module and "." not in node.module
            roots = set()
        else:
            continue
        assert roots <= HUB_LIBRARIES | set(sys.stdlib_module_names), f"{name}, line {node.lineno}"


@pytest.mark.parametrize("name", HUB_FILES)
def test_no_line_of_a_hub_file_looks_like_an_import(name):
    """transformers searches for imports by a regular expression that reads docstrings too."""
    text = (PACKAGE / name).read_text()
    imports = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for number in range(node.lineno, node.end_lineno + 1)
    }
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip().startswith(("import ", "from .")):
            assert number in imports, f"{name}, line {number}: {line}"


def run_without(modules: list[str], code: str) -> subprocess.CompletedProcess:
    """Run code in a process where importing any of the modules fails."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, timeout=120)


def test_the_package_works_without_the_train_extra():
    code = """
import numpy as np
import torch
import sam_hf
from sam_hf import SamHfConfig, SamImageProcessor, SamModel, SamProcessor

config = SamHfConfig.from_preset("small", image_size=32)
processor = SamProcessor(SamImageProcessor(size={"longest_edge": 32}))
inputs = processor(np.zeros((20, 30, 3), np.uint8), input_points=[[5, 5]], input_labels=[1])
with torch.no_grad():
    output = SamModel(config)(**inputs)
masks = processor.post_process_masks(output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
assert masks[0].shape == (1, 4, 20, 30)
print("fine")
"""
    result = run_without(TRAIN_EXTRA, code)
    assert result.returncode == 0 and result.stdout.strip() == "fine", result.stderr
