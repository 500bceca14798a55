"""The shape of the project: which package may import which, and that what is written about it is true."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "genetic_algorithm": set(),
    "models": set(),
    "evaluation": {"models", "genetic_algorithm"},
    "model_preparation": {"models", "evaluation", "genetic_algorithm"},
}
"""Besides itself; entry points wire packages together, but only inside functions."""
ENTRY_POINTS = {
    "evaluation/doctor.py",
    "genetic_algorithm/report/__main__.py",
    "genetic_algorithm/run_search.py",
    "genetic_algorithm/wiring.py",
    "models/tiny_pair/__main__.py",
}
"""May import anything of ours inside functions and under `if __name__ == "__main__"`."""
MAX_LINES = 400


def tracked(*patterns: str, new: bool = True) -> list[Path]:
    """Files of the project by pattern: those in git and, with `new`, those that could be added."""
    others = ["--others", "--exclude-standard"] if new else []
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", *others, *patterns]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        listed = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.rglob(pattern)]
    found = sorted({ROOT / name for name in listed if name and not name.startswith((".", "results/"))})
    return [path for path in found if path.is_file()]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each package of ours that a file imports, and whether that happens when the file itself is imported."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            at_import = False
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            at_import = False
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        for name in names:
            if (package := name.partition(".")[0]) in MAY_IMPORT:
                yield package, at_import
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    against = []
    for path in tracked(f"{package}/*.py"):
        name = path.relative_to(ROOT).as_posix()
        for imported, at_import in imports(path):
            excused = not at_import and name in ENTRY_POINTS
            if imported not in allowed and not excused:
                against.append(f"{name} imports {imported}")
    assert not against


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, where nothing has been imported yet."""
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_search_loads_no_torch() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in tracked("genetic_algorithm/*.py")]
    modules = ", ".join(".".join(path.parts) for path in paths if path.name != "__init__")
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib'}"
    done = run_python(f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_what_import_torch_imports_of_ours_is_light() -> None:
    code = "import sys, model_preparation.saved_model; print(len({'torch', 'numpy', 'models'} & set(sys.modules)))"
    assert run_python(code).stdout == "0\n"


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in tracked("*.py", "*.sh")}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def readme_tree() -> list[str]:
    """Paths in the tree of the README, with those made at run time left out."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
    folder, paths = "", []
    for line in block.split("made at run time")[0].splitlines():
        if line.strip():
            names = line.strip().partition("  ")[0].split(", ")
            if not line.startswith(" "):
                folder = names[0] if names[0].endswith("/") else ""
            paths += [folder + name if line.startswith(" ") else name for name in names]
    return paths


def test_the_tree_of_the_readme_is_true() -> None:
    listed = readme_tree()
    assert not [path for path in listed if not (ROOT / path).exists()]
    tops = {path.relative_to(ROOT).parts[0] for path in tracked("*", new=False)}
    told = {path.split("/")[0] for path in listed}
    assert tops - told == set()
    scripts = {str(path.relative_to(ROOT)) for path in tracked("scripts/*.sh", "model_preparation/*.sh")}
    assert scripts <= set(listed)


def test_the_first_screen_of_the_readme_holds_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:20]
    assert any(line.startswith("./DEPLOY_TEST.sh") for line in first)
    assert any(line.startswith("./scripts/run_tests.sh") for line in first)


SHELL = [path for path in tracked("*.sh") if os.access(path, os.X_OK)]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_every_script_tells_how_it_is_used(path: Path) -> None:
    done = subprocess.run(
        [path, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert path.name in done.stdout.splitlines()[0]


TOOLS = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("model_preparation", "genetic_algorithm", "evaluation", "scripts", "models/tiny_pair")
    for path in tracked(f"{folder}/*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", TOOLS)
def test_every_tool_tells_how_it_is_used(module: str) -> None:
    command = [sys.executable, "-m", module.removesuffix(".__main__"), "--help"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


def test_files_with_a_shebang_can_be_run() -> None:
    scripts = [path for path in tracked("*") if path.read_bytes()[:2] == b"#!"]
    assert scripts
    assert not [str(path) for path in scripts if not os.access(path, os.X_OK)]


PUBLIC = {
    "genetic_algorithm": "Answers Evaluator LayerSet Score Search SearchConfig SearchError SearchSpace",
    "genetic_algorithm.strategies": "STRATEGIES Setting StageForecast Strategy check_name find_strategy make_strategy",
    "model_preparation": "get_model_modelscope load_model",
    "model_preparation.saved_model": "allow_in_weights_only_load",
    "models.modeling_llamba": "LlambaBlock LlambaForCausalLM LlambaMixer LlambaModel new_cache",
    "models.configuration_llamba": "LlambaConfig",
    "models.pairs": "PAIRS Pair get_pair make_pair",
    "evaluation.build": "build_evaluator",
    "evaluation.config": "EvalConfig",
    "evaluation.journal": "Journal",
}
"""Names that code outside this project may use: one that is renamed breaks it, and checkpoints name some of them."""


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_stay(module: str) -> None:
    found = importlib.import_module(module)
    names = set(PUBLIC[module].split())
    assert not {name for name in names if not hasattr(found, name)}
    if hasattr(found, "__all__"):
        assert set(found.__all__) == names


def test_the_types_of_every_package_are_checked_strictly() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["strict"] is True
    assert set(MAY_IMPORT) <= set(settings["files"])
    lax = [module for override in settings["overrides"] for module in override["module"] if "ignore_errors" in override]
    assert not lax
