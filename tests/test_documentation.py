"""What the pages say is there: code, commands with their options, links, files and names.

Pages are read as Markdown in fences, indented commands, links and `code spans`. Placeholders in capitals are what a
person would type there; `...` stands for anything.
"""

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import groupby
from pathlib import Path
from types import ModuleType

import PIL.Image
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from sam2_models import SIDE, sam2_model
from torch.distributed.run import get_args_parser as torchrun_parser
from transformers import Sam2ImageProcessor, Sam2Processor
from transformers import SamConfig as StockConfig
from transformers import SamImageProcessor as StockImageProcessor
from transformers import SamModel as StockModel
from transformers import SamVisionConfig as StockVisionConfig

import sam_hf
from sam_hf.annotate.command import parse_arguments as parse_annotate
from sam_hf.convert.command import parse_arguments as parse_convert
from sam_hf.evaluation import EvaluationOptions, parse_evaluation_options
from sam_hf.onnx.command import parse_arguments as parse_onnx
from sam_hf.training import RECIPES
from sam_hf.training.options import Options

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sam_hf.__file__).parent
CARD = next(path for path in (ROOT / "model_card.md", PACKAGE / "training" / "model_card.md") if path.exists())
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
PAGES += [] if CARD in PAGES else [CARD]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
# Names in these are of their time.
OF_NOW = [page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")]
# Names of others that no file of ours has.
FOREIGN = {"SamPredictor", "save_to_disk", "frPyObjects"}
FOLDERS = (".ci", "benchmarks", "docs", "examples", "src", "tests")
# Commands whose arguments are not looked at.
OTHERS = {"cp", "git", "hf", "npm", "nuctl", "python3", "ruff", "sed", "sort", "source"}
RUNNERS = {"accelerate", "bash", "pip", "pytest", "python", "torchrun"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fenced(page: Path, *languages: str) -> list[str]:
    """The blocks of code in these languages; "" for those of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """The content of all `code spans`, those too that go on in the next line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def shell_blocks(page: Path) -> list[str]:
    """Blocks in fences, and paragraphs that are indented by four spaces."""
    indented = re.findall(r"(?:^\n)((?:^    \S.*\n(?:^    .*\n)*)+)", prose(page), re.MULTILINE)
    return [*fenced(page, "bash", "sh"), *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command of a page, without comments and environment variables."""
    lines = [line for block in shell_blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    for text in [*lines, *(span for span in spans(page) if span.split()[0] in RUNNERS)]:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_between, group in groupby(lexer, lambda word: word in ("&&", ";", "|")):
            words = [word for word in group if word != "..."]
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and not is_between and not words[0].startswith("{{"):
                yield words


@cache
def script(path: str) -> ModuleType:
    spec = spec_from_file_location(f"documented_{Path(path).stem}", ROOT / path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(train, monkeypatch):
    """Functions that raise SystemExit for arguments that a program would not take."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def check_train(arguments: list[str]) -> None:
        if "--help" in arguments:
            return
        if arguments and arguments[0].startswith("runs/"):  # the options of a run that a reader has
            arguments = arguments[1:]
        train.parse_options(arguments)

    def check_launched(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        if arguments:
            launch = parser.parse_args(arguments)
            checks = {"examples/train.py": check_train, "examples/evaluate.py": parse_evaluation_options}
            checks[launch.training_script](launch.training_script_args)

    def check_python(arguments: list[str]) -> None:
        match arguments:
            case ["-m", "venv" | "pip" | "http.server", *_] | []:
                return
            case ["-m", "sam_hf.convert", *rest]:
                parse_convert(rest or ["SOURCE", "TARGET"])
            case ["-m", "sam_hf.annotate", *rest]:
                parse_annotate(rest or ["--model", "MODEL", "--images", "FOLDER"])
            case ["-m", "sam_hf.onnx", *rest]:
                parse_onnx(rest or ["MODEL", "FOLDER"])
            case ["-m", "sam_hf.data", *rest]:
                importlib.import_module("sam_hf.data.__main__")._parser().parse_args(rest or ["check", "PATH"])
            case ["examples/train.py", *rest]:
                check_train(rest)
            case ["examples/evaluate.py", *rest]:
                parse_evaluation_options(rest)
            case ["benchmarks/quality.py" | "benchmarks/stock_training.py" as path, *rest]:
                script(path).arguments(rest)
            case ["examples/predict.py", *rest]:
                script("examples/predict.py").parse_arguments(rest)
            case ["examples/label_studio.py", *rest]:
                script("examples/label_studio.py").parse_arguments(rest)
            case ["benchmarks/run.py", *rest]:
                monkeypatch.setattr(sys, "argv", ["benchmarks/run.py", *rest])
                script("benchmarks/run.py").parse_arguments()
            case [path] if path.startswith("tests/"):
                assert (ROOT / path).exists(), path
            case _:
                raise AssertionError(f"no test knows python {arguments}")

    def check_command(words: list[str]) -> None:
        match words:
            case ["accelerate", "launch", *rest]:
                check_launched(launch_command_parser(), rest)
            case ["torchrun", *rest]:
                parser = torchrun_parser()
                launch = parser.parse_args(rest)
                assert launch.training_script == "examples/train.py"
                check_train(launch.training_script_args)
            case ["python", *rest]:
                check_python(rest)
            case ["pytest", *rest]:
                paths = [word for word in rest if word.startswith("tests/")]
                assert all((ROOT / path).exists() for path in paths), paths
            case ["bash", path, *words]:
                assert all(f"{word}) " in (ROOT / path).read_text() for word in words), words
            case ["pip", "install", *rest]:
                extras = {extra for word in rest for extra in re.findall(r"\[(\w+)\]", word)}
                assert all(re.search(rf"^{extra} = ", project(), re.MULTILINE) for extra in extras), extras
            case ["pip", "wheel", path, *_]:
                assert (ROOT / path / "pyproject.toml").exists()
            case [program, *_]:
                assert program in OTHERS, f"no test knows {words}"

    return check_command


def project() -> str:
    return (ROOT / "pyproject.toml").read_text()


@every_page
def test_python_can_be_parsed_and_imports_exist(page):
    for block in fenced(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def save_for_documentation(folder: Path) -> None:
    """A small model and pictures where the pages say that they are."""
    torch.manual_seed(0)
    model = sam_hf.SamHfModel(sam_hf.SamHfConfig.from_preset("small", 64)).eval()
    processor = sam_hf.SamHfProcessor(
        sam_hf.SamHfImageProcessor(size={"longest_edge": 64}, mask_size={"longest_edge": 32})
    )
    for part in (model, processor):
        part.save_pretrained(folder / "runs/scenes/best")
    vision = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 32, "window_size": 2, "num_hidden_layers": 8}
    config = StockConfig(vision_config=StockVisionConfig(**vision, global_attn_indexes=[7]).to_dict())
    StockModel(config).save_pretrained(folder / "facebook/sam-vit-base")
    StockImageProcessor().save_pretrained(folder / "facebook/sam-vit-base")
    sam2_model().save_pretrained(folder / "facebook/sam2.1-hiera-tiny")
    sizes = Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})
    Sam2Processor(sizes).save_pretrained(folder / "facebook/sam2.1-hiera-tiny")
    for name in ("photo.jpg", "image.png"):
        PIL.Image.effect_noise((400, 300), 60).save(folder / name)


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", DOCS / "trainer.md", DOCS / "training.md", DOCS / "weights.md", CARD],
    ids=lambda page: page.name,
)
def test_python_runs_as_written(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other; those of docs/hub.md are run in `test_hub.py`."""
    save_for_documentation(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "boxes", RECIPES["fast"])  # taken out again, whatever the page puts in
    names = {}
    for block in fenced(page, "python"):
        exec(block.replace("{{ model_id }}", "runs/scenes/best"), names)
    if "masks" in names:
        masks = names["masks"][0] if isinstance(names["masks"], list) else names["masks"]
        assert masks.dtype == torch.bool and masks.shape == (1, 4, 300, 400)


@every_page
def test_shell_can_be_parsed(page):
    for block in shell_blocks(page):
        run = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert run.returncode == 0 and not run.stderr, f"{run.stderr}\n{block}"


@every_page
def test_commands_have_the_options_that_are_given(page, check):
    for words in commands(page):
        try:
            check(words)
        except SystemExit as error:
            assert not error.code, f"{shlex.join(words)} is refused"


def test_arguments_of_the_results_table_exist(train, monkeypatch):
    """The table of the README gives what follows `accelerate launch examples/train.py`."""
    monkeypatch.chdir(ROOT)
    found = [span for span in spans(ROOT / "README.md") if span.startswith("examples/configs/")]
    assert len(found) >= 2
    for span in found:
        train.parse_options(shlex.split(span))


def test_a_wrong_option_would_be_found(check):
    for text in (
        "python -m sam_hf.convert a b --too x",
        "python -m sam_hf.data check folder --imagecolumn x",
        "accelerate launch --num_process 8 examples/train.py",
        "accelerate launch examples/train.py examples/configs/scenes.yaml --max_step 3",
        "python examples/predict.py --model a --image b --points 1,2",
        "python benchmarks/run.py --rows decode-all",
    ):
        with pytest.raises((SystemExit, ValueError)):
            check(shlex.split(text))


@pytest.mark.parametrize("page", OF_NOW, ids=lambda page: page.name)
def test_options_that_are_named_exist(page):
    """Options that stand alone in the text, such as `--resume`, of whatever command."""
    text = "\n".join(path.read_text() for path in sources())
    known = {f"--{item.name}" for cls in (Options, EvaluationOptions) for item in fields(cls)}
    known |= set(re.findall(r'"(--[\w-]+)"', text))
    for span in spans(page):
        if span.startswith("--"):
            assert [option for option in re.findall(r"--[\w-]+", span) if option not in known] == []


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        if page == CARD and not linked.exists():
            continue  # written beside the card of a trained model
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


@every_page
def test_files_that_are_named_exist(page):
    for span in spans(page):
        if re.fullmatch(r"[\w./-]+", span) and (
            span.split("/")[0] in FOLDERS and "/" in span or re.search(r"\.(py|md|toml|cff)$", span)
        ):
            assert any((place / span).exists() for place in (ROOT, page.parent, PACKAGE)), span


@cache
def sources() -> list[Path]:
    folders = ("src", "examples", "benchmarks")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]


@cache
def words_of_the_sources() -> frozenset[str]:
    tests = [path for path in (ROOT / "tests").glob("*.py") if path != Path(__file__)]
    return frozenset(word for path in [*sources(), *tests] for word in re.findall(r"\w+", path.read_text()))


@pytest.mark.parametrize("page", OF_NOW, ids=lambda page: page.name)
def test_names_of_code_exist(page):
    """Spans that look like a name of code, `like_this`, `LikeThis` or `like.this`, are words of a source file."""
    known = words_of_the_sources() | FOREIGN
    for span in spans(page):
        name = re.sub(r"\(.*\)$|=.*$", "", span)
        if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z_]\w*)*", name) or name.endswith((".py", ".md")):
            continue
        last = name.split(".")[-1]
        if "." in name or "_" in name or re.search(r"[a-z][A-Z]", name):
            exists = last in known or any((place / name).exists() for place in (ROOT, PACKAGE))
            assert exists or is_written(name), f"`{span}`"


def is_written(name: str) -> bool:
    """Whether it is a file that one of ours writes or reads, such as `log.jsonl`."""
    return any(name in path.read_text() for path in sources())


def is_public(name: str) -> bool:
    """Whether a dotted name is that of a module, or in the `__all__` of one."""
    module, _, attribute = name.rpartition(".")
    try:
        return attribute in importlib.import_module(module or name).__all__ or bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", OF_NOW, ids=lambda page: page.name)
def test_names_of_the_package_exist(page):
    for span in spans(page):
        if found := re.fullmatch(r"(sam_hf(\.\w+)+)(\(.*\))?", span):
            assert is_public(found[1]), span


def moved() -> list[tuple[list[str], list[str]]]:
    """Names of the rows of the table of moves in CHANGELOG.md, before and now."""
    rows = re.findall(r"^\| (`sam_hf.*?) \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    return [tuple(re.findall(r"`(sam_hf[\w.]*)`", cell) for cell in row) for row in rows]


def test_moves_are_from_what_is_gone_to_what_is_there():
    assert len(moved()) > 10
    for before, now in moved():
        assert before and now
        assert [name for name in now if not is_public(name)] == []
        assert [name for name in before if is_public(name)] == []


def named_in_architecture() -> dict[str, set[str]]:
    """Files of the tree in ARCHITECTURE.md by folder, relative to the package."""
    (tree,) = fenced(ARCHITECTURE, "")
    folders: dict[str, set[str]] = {"": set()}
    place: list[str] = []
    for line in tree.splitlines()[1:]:
        if not line.startswith(" "):
            break  # what follows the package
        if found := re.match(r"( +)(\w+)/ ", line):
            place = [*place[: len(found[1]) // 4 - 1], found[2]]
            folders["/".join(place)] = set()
        elif re.match(r" {4}\w+\.py ", line):
            place = []
        folders["/".join(place)] |= set(re.findall(r"(?<![\w/])\w+\.(?:py|md|js)\b", line))
    return folders


def test_architecture_names_every_file():
    files: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".md", ".js") and (path.name != "__init__.py" or path.parent == PACKAGE):
            if path.stem == path.parent.name:
                continue  # a module of `evaluate`, each in a folder of its name
            folder = path.parent.relative_to(PACKAGE).as_posix()
            files.setdefault("" if folder == "." else folder, set()).add(path.name)
    assert named_in_architecture() == files


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key, name in (("title", "name"), ("version", "version"), ("license", "license")):
        assert f'\n{name} = "{citation[key]}"\n' in project()
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
    for reference in citation["references"]:
        assert reference["url"] in (ROOT / "README.md").read_text()
