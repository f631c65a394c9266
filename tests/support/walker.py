"""Find what a source file imports, from its syntax tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOADERS = {"import_module", "__import__"}


def imported(source: str, package: str, loaded: bool = False) -> Iterator[str]:
    """Every module that `source` in `package` imports, in functions too; `from a import b` gives both `a` and `a.b`.

    With `loaded`, imports below `if TYPE_CHECKING` are left out. Lazy imports in a package's `__getattr__` are always
    left out, because the package repeats them for type checkers.

    Raises:
        ValueError: a module is imported by a computed name.
    """
    called = set()
    for node in walk(ast.parse(source), loaded):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = resolve_name("." * level + (module or ""), package)
                yield base
                yield from (f"{base}.{alias.name}" for alias in names)
                if any(alias.name in LOADERS and alias.asname for alias in names):
                    raise ValueError(f"line {node.lineno}: an import function under another name")
            case ast.Call(func=ast.Name() | ast.Attribute() as function) if name_of(function) in LOADERS:
                called.add(function)
                match node.args:
                    case [ast.Constant(value=str(name)), *_] if not name.startswith("."):
                        yield name
                    case _:
                        raise ValueError(f"line {node.lineno}: an import by a computed name")
            case ast.Name() | ast.Attribute() if name_of(node) in LOADERS and node not in called:
                raise ValueError(f"line {node.lineno}: an import function is passed on")


def walk(tree: ast.AST, loaded: bool) -> Iterator[ast.AST]:
    """All nodes below `tree` but those in `__getattr__`, and with `loaded` those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=orelse) if loaded:
                for other in orelse:
                    yield from walk(other, loaded)
            case ast.FunctionDef(name="__getattr__") if isinstance(tree, ast.Module):
                continue
            case _:
                yield node
                yield from walk(node, loaded)


def name_of(function: ast.Name | ast.Attribute) -> str:
    """The last part of a dotted name."""
    return function.id if isinstance(function, ast.Name) else function.attr


def file_of(module: str) -> Path | None:
    """The file of a module of this project; None for any other module."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def imports_of(path: Path, loaded: bool = False) -> set[str]:
    """The modules that a file of this project imports; see `imported`."""
    return set(imported(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts), loaded))


def closure(start: set[Path]) -> tuple[set[Path], set[str]]:
    """(files of this project that `start` loads, including packages' `__init__`; top-level names of other modules)."""
    files: set[Path] = set()
    others: set[str] = set()
    waiting = set(start)
    while waiting:
        path = waiting.pop()
        files.add(path)
        for module in imports_of(path, loaded=True):
            parts = module.split(".")
            ours = {file_of(".".join(parts[: i + 1])) for i in range(len(parts))} - {None}
            waiting |= {file for file in ours if file is not None and file not in files}
            if not ours:
                others.add(parts[0])
    return files, others


def new_modules(statement: str) -> set[str]:
    """The top-level names of the modules that a statement loads in a fresh interpreter."""
    code = (
        f"import sys; old = set(sys.modules); {statement}; print(*{{m.split('.')[0] for m in {{*sys.modules}} - old}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())
