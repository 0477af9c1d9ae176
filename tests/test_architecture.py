"""Imports point in one direction, and tests share code through helpers only."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "mnist_lit"
MODEL = ("augment", "backbones", "classifier", "describe", "inputs", "metrics", "preprocess")
LEVELS: list[tuple[str, ...]] = [
    ("mnist_lit",),
    ("extras", "files", "signals"),
    ("command_parser",),
    ("command_options",),
    ("commands",),
    ("data", "model"),
    ("checkpoints",),
    ("callbacks",),
    ("run",),
    ("experiments", "evaluation", "photos", "benchmark"),
    ("cli",),
    ("__main__",),
]
"""Rooms (subpackages and modules) by level: a room imports itself and rooms of lower levels only."""

LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
LAZY = ("cv2", "onnx", "onnxruntime", "optuna", "ray", "mnist_lit.experiments.ray_runs")
"""Packages of extras, and modules that import them, which functions may import."""


def imports(tree: ast.AST) -> Iterator[str]:
    """The names that a module imports, as dotted paths."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str:
    """The module of this package that a dotted path names, such as mnist_lit.data.official for its function `read`."""
    path = PACKAGE.parent / name.replace(".", "/")
    return name if path.is_dir() or path.with_suffix(".py").exists() else name.rpartition(".")[0]


def room(module: str) -> str:
    name = [*module.split("."), "mnist_lit"][1]
    return "model" if name in MODEL else name


def test_imports_point_in_one_direction() -> None:
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        names = imports(ast.parse(path.read_text()))
        graph[module] = {module_of(name) for name in names if name.startswith("mnist_lit")} - {module}
    edges = [(room(module), room(other), module, other) for module, others in graph.items() for other in others]
    wrong = [
        f"{module} imports {other}" for own, its, module, other in edges if own != its and LEVEL[own] <= LEVEL[its]
    ]
    assert not wrong, "\n".join(sorted(wrong))
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_functions_import_extras_only() -> None:
    functions = [
        (path, node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    names = {(path.name, name) for path, node in functions for name in imports(node)}
    wrong = [f"{path}: {name}" for path, name in names if not name.startswith(LAZY)]
    assert not wrong, "\n".join(sorted(wrong))


def test_test_modules_import_no_other() -> None:
    modules = {path.stem for path in TESTS.rglob("*.py") if path.parent.name != "helpers"}
    for path in TESTS.rglob("*.py"):
        names = {part for name in imports(ast.parse(path.read_text())) for part in name.split(".")[:1]}
        assert not names & modules, path
