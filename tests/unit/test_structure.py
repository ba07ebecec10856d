"""The structure of the code: folder and module sizes, import cycles, docstrings."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAX_MODULES = 25
MAX_LINES = 400
PACKAGES = ("graph", "db", "agent")


def list_modules(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path.name != "__init__.py"]


def find_imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that the module imports anywhere, also under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ["graph", "db"])
def test_no_folder_has_more_modules_than_the_limit(package: str) -> None:
    counts = Counter(path.parent.relative_to(ROOT) for path in list_modules(package))
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_longer_than_the_limit(package: str) -> None:
    lines = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in list_modules(package)
    }
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_cycle(package: str) -> None:
    """Imports under TYPE_CHECKING and within functions count, too."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
               for path in list_modules(package)}  # fmt: skip
    imports = {
        module: {
            imported
            for name in find_imports(path)
            for imported in (name, name.rpartition(".")[0])
            if imported in modules and imported != module
        }
        for module, path in modules.items()
    }
    while leaves := {module for module, targets in imports.items() if not targets & imports.keys()}:
        imports = {module: targets for module, targets in imports.items() if module not in leaves}
    assert imports == {}, "each of these is in a circle, or leads to one"


def test_no_test_module_imports_another() -> None:
    imports = {
        path.relative_to(ROOT): [
            name
            for name in find_imports(path)
            if name.split(".")[0] == "tests" and not name.startswith("tests.support.")
        ]
        for path in list_modules("tests")
    }
    assert {path: names for path, names in imports.items() if names} == {}


CONTINUES_THE_NAME = {
    "Of",
    "That",
    "To",
    "By",
    "As",
    "With",
    "From",
    "On",
    "Those",
    "Nothing",
    "Until",
}


@pytest.mark.parametrize("package", [*PACKAGES, "bench"])
def test_no_docstring_continues_the_name_that_it_describes(package: str) -> None:
    first_lines = [
        (path.relative_to(ROOT), docstring.split("\n")[0])
        for path in list_modules(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
        and (docstring := ast.get_docstring(node))
    ]
    assert [
        first_line for first_line in first_lines if first_line[1].split()[0] in CONTINUES_THE_NAME
    ] == []
