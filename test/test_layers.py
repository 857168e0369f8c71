"""Package layout: import directions, circles, sizes, forwarding modules, docstrings."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "speechllm"
SHIM = PACKAGE / "model" / "nue_asr.py"  # old import path of models.nue_asr
MAX_LINES = 500
MAX_QUESTION_SHARE = 0.005
QUESTION_WORDS = ("what", "how", "where", "which", "whether")

# Package or top-level module -> packages that it may import, lowest layer first.
ALLOWED: dict[str, set[str]] = {"utils": set()}
ALLOWED |= dict.fromkeys(("text", "audio", "pretrained"), {"utils"})
ALLOWED["data"] = {"audio", "text", "utils"}
ALLOWED["models"] = {"audio", "pretrained", "text", "utils"}
ALLOWED["model"] = {"models"}
ALLOWED["corpora"] = {"audio", "data", "pretrained", "text", "utils"}
ALLOWED["evaluation"] = {"data", "text", "utils"}
ALLOWED["decoding"] = {"audio", "models", "text", "utils"}
ALLOWED["training"] = {"audio", "models", "pretrained", "text", "utils"}
ALLOWED["inference"] = {"decoding", "data"} | ALLOWED["models"] | {"models"}
ALLOWED["__init__"] = {"inference"} | ALLOWED["inference"]
TOP = {"export", "baselines", "benchmarks", "demo"}
ALLOWED |= dict.fromkeys(TOP, set(ALLOWED) - {"__init__", "model"} | TOP)
ALLOWED["serving"] = {"inference"} | ALLOWED["inference"]
ALLOWED |= dict.fromkeys(("cli", "bin"), set(ALLOWED) | {"bin"})

TREES = {
    path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): (
        path
    )
    for path in TREES
}


def imported_files(path: Path) -> set[Path]:
    """Return the files of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if n in MODULES else str(node.module) for n in names]
        else:
            continue
        found |= {MODULES[name] for name in names if name in MODULES}
    return found - {path}


def package_of(path: Path) -> str:
    """Return the package of a file, or its stem if it is directly in ``speechllm``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_packages_import_lower_layers_only():
    for path in TREES:
        package = package_of(path)
        for target in imported_files(path):
            assert package_of(target) in ALLOWED[package] | {package}, (
                f"{path} may not import {target}; see 'ALLOWED' here"
            )


def test_files_do_not_import_each_other_in_circles():
    graph = {path: imported_files(path) for path in TREES}
    circle: list[Path] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
    assert not circle, " imports ".join(str(p.relative_to(PACKAGE)) for p in circle)


def test_readme_lists_every_module():
    readme = (PACKAGE / "README.md").read_text("utf-8")
    folder, listed = "", []
    for line in readme.split("```")[1].splitlines():
        if found := re.match(r"  ((\w+/)+)", line):
            folder = found[1]
        elif found := re.match(r"  (  )?(\w+\.py) +\S", line):
            listed.append((folder if found[1] else "") + found[2])
    modules = {path.relative_to(PACKAGE).as_posix() for path in TREES}
    modules -= {f"{package}/__init__.py" for package in ALLOWED}
    assert sorted(listed) == sorted(modules), "update the map in speechllm/README.md"


def test_package_root_has_two_modules():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "cli.py"}


def test_files_are_short():
    lengths = {p: len(p.read_text("utf-8").splitlines()) for p in TREES}
    assert {p: n for p, n in lengths.items() if n > MAX_LINES} == {}


def test_modules_do_more_than_forward():
    for path, tree in TREES.items():
        if path.name == "__init__.py" or path == SHIM:
            continue
        code = [
            node
            for node in tree.body[ast.get_docstring(tree) is not None :]
            if not isinstance(node, (ast.Import, ast.ImportFrom))
            and not (isinstance(node, ast.Assign) and "__all__" in ast.unparse(node))
        ]
        assert code, f"{path} only imports names; import them from their own module"


def test_docstrings_do_not_begin_as_questions():
    docstrings = [
        (f"{path.relative_to(ROOT)}:{node.body[0].lineno}", docstring)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        )
        and (docstring := ast.get_docstring(node))
    ]
    questions = [
        f"{place}: {docstring.splitlines()[0]}"
        for place, docstring in docstrings
        if docstring.split()[0].rstrip(":,").lower() in QUESTION_WORDS
    ]
    share = len(questions) / len(docstrings)
    print(f"{share:.2%} of {len(docstrings)} docstrings begin as questions")
    assert share < MAX_QUESTION_SHARE, "\n".join(questions)
