"""Test architecture."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "finetune"


COMMANDS = "commands"
"""The room of the files at the top, and of `python -m finetune.models`."""


ROOMS = (
    COMMANDS, "cli", "reporting", "tracking", "exporting", "inspection", "inference", "training", "data", "models", "checkpoints",
    "metrics", "images", "io", "runtime",
)  # fmt: skip
"""From the top; a room imports only those after it."""


MAX_FOLDERS, MAX_ROOM_FLOORS, MAX_FILE_FLOORS = 14, 9, 13


MAX_FILE, MAX_MODULE, MAX_DATA_MODULE, MAX_FUNCTION = 300, 250, 300, 60
"""Lines of code: without docstrings, comments and blank lines."""


MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def room(module: str) -> str:
    return module.split(".")[0] if "." in module and not module.endswith("__main__") else COMMANDS


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, within functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            base = str(node.module).removeprefix("finetune").removeprefix(".")
            for name in node.names:
                inner = f"{base}.{name.name}".removeprefix(".")
                yield from (m for m in (inner, base) if m in MODULES)
        if isinstance(node, ast.Import):
            yield from (n.name.removeprefix("finetune.") for n in node.names if n.name.startswith("finetune."))


def hidden_imports(path: Path) -> Iterator[str]:
    """Yield the imports whose target `imported` cannot tell: relative ones, and names taken from the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [name.name for name in node.names if name.name not in MODULES]
            if node.level or (node.module == "finetune" and names):
                yield ast.unparse(node)
        if isinstance(node, ast.Import) and any(name.name == "finetune" for name in node.names):
            yield ast.unparse(node)


@cache
def file_graph() -> dict[str, set[str]]:
    return {module: set(imported(path)) - {module} for module, path in MODULES.items()}


@cache
def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module, targets in file_graph().items():
        graph[room(module)] |= {room(target) for target in targets} - {room(module)}
    return graph


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return on which floor each node stands: one above all that it imports.

    Raises:
        ValueError: there is a circle; names it.
    """
    found: dict[str, int] = {}

    def floor(node: str, above: tuple[str, ...]) -> int:
        if node in above:
            raise ValueError(f"circle: {' - '.join((*above[above.index(node) :], node))}")
        if node not in found:
            found[node] = 1 + max((floor(target, (*above, node)) for target in graph.get(node, ())), default=0)
        return found[node]

    for node in graph:
        floor(node, ())
    return found


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code."""
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


# --- the checks see what they look for ---------------------------------------------------------------------------


def test_floors_count_from_below_and_name_a_circle() -> None:
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}
    with pytest.raises(ValueError, match="circle: b - c - b"):
        floors({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_code_lines_leave_out_docstrings_comments_and_blank_lines() -> None:
    assert code_lines('"""Doc."""\n\n# why\nx = 1  # and\n\ndef f():\n    """Two\n    lines."""\n    return (\n        x\n    )\n') == {
        4, 6, 9, 10, 11,
    }  # fmt: skip


def test_imports_are_seen_within_functions_and_for_types(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "from finetune.io import paths\nif TYPE_CHECKING:\n    from finetune.io.store import Cache\n"
        "def f():\n    import finetune.data.loaders\n"
    )
    assert set(imported(file)) == {"io.paths", "io.store", "data.loaders"}


@pytest.mark.parametrize(
    "line", ["from . import store", "from ..io import paths", "from finetune import FineTuner", "import finetune"]
)
def test_imports_that_hide_their_target_are_found(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.py"
    file.write_text(f"from finetune import compare\nfrom finetune.io import paths\ndef f():\n    {line}\n")
    assert list(hidden_imports(file)) == [line]


# --- the package -------------------------------------------------------------------------------------------------


def test_there_are_few_rooms_and_all_are_known() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "conf")}
    assert folders == set(ROOMS) - {COMMANDS}
    assert len(folders) <= MAX_FOLDERS


@pytest.mark.parametrize("module", MODULES)
def test_files_name_the_file_that_they_import(module: str) -> None:
    assert list(hidden_imports(MODULES[module])) == []


def test_rooms_import_downwards_only_and_without_circles() -> None:
    upwards = [
        f"{module} imports {target}"
        for module, targets in file_graph().items()
        for target in targets
        if ROOMS.index(room(target)) < ROOMS.index(room(module))
    ]
    assert upwards == []
    assert max(floors(room_graph()).values()) <= MAX_ROOM_FLOORS
    assert max(floors(file_graph()).values()) <= MAX_FILE_FLOORS


@pytest.mark.parametrize("name", [name for name in ROOMS if name != COMMANDS])
def test_rooms_import_nothing_by_themselves(name: str) -> None:
    assert (PACKAGE / name / "__init__.py").read_text() == ""


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_can_be_read(module: str) -> None:
    source = MODULES[module].read_text()
    lines = code_lines(source)
    most = {"training.module": MAX_MODULE, "data.datamodule": MAX_DATA_MODULE}.get(module, MAX_FILE)
    assert len(lines) <= most, f"{module} has {len(lines)} lines of code"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            assert length <= MAX_FUNCTION, f"{module}.{node.name} has {length} lines of code"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == COMMANDS])
def test_commands_are_short_stories(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 75
    assert len(code_lines(MODULES[module].read_text())) <= 60


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_of_properties_begin_with_a_verb(module: str) -> None:
    """Of other functions, ruff's D401 sees to it."""
    first = {
        node.name: (ast.get_docstring(node) or "Return").split()[0]
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(d) for d in node.decorator_list)
    }
    assert set(first.values()) <= {"Return"}, first


def test_only_one_room_spells_what_a_checkpoint_says() -> None:
    """A field of a checkpoint is a field of a dataclass; nothing else writes its name as a key."""
    keys = (
        "hyper_parameters", "validation", "validated", "metric_state", "start_epochs", "feature_boundary", "weights_source",
        "sums", "starts",
    )  # fmt: skip
    pattern = re.compile(rf"""\[["']({"|".join(keys)})["']\]|\.get\(["']({"|".join(keys)})["']""")
    found = {
        m: hits
        for m, path in MODULES.items()
        if room(m) != "checkpoints" and (hits := pattern.findall(path.read_text()))
    }
    allowed = {"training.checkpointing"}  # hands Lightning's own entry over, see `save_weights`
    assert set(found) <= allowed, found
