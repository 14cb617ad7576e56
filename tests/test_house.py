"""The house: who may import whom, which names stand where, how long things get."""

import ast
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vis_d2"
FILES = sorted(PACKAGE.rglob("*.py"))

# layer -> what it may import of the package, besides itself and compat
LAYERS = {
    "config": set(),
    "compat": set(),
    "checkpoint": set(),
    "utils": set(),
    "structures": set(),
    "layers": set(),
    "inference": {"structures"},
    "modeling": {"config", "structures", "layers"},
    "meta_arch": {"config", "structures", "layers", "inference", "modeling"},
    "data": {"config", "utils", "structures"},
    "evaluation": {"structures"},
    "visualization": {"utils", "structures"},
    "engine": {"config", "utils", "structures", "inference", "data", "evaluation"},
}
TOP = {"tools", "cli", "__init__"}  # may import everything
PAPERS = ("sgnet", "sg_net", "efficientvis", "efficient_vis", "ttspn", "tt_spn", "hitf", "ms_sts")
NO_FILES = {"cv2", "json", "PIL", "av"}
MOST_FILE_LINES, MOST_FUNCTION_LINES, LINE_LENGTH = 350, 80, 100


def parts_of(path: Path) -> Tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


def imports(path: Path) -> Iterator[List[str]]:
    """Dotted names that a file imports, relative ones made absolute."""
    here = ["vis_d2", *parts_of(path)]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = node.module.split(".") if node.module else []
            if node.level:
                stem = here[: len(here) - node.level] + stem
            yield from (stem + [alias.name] for alias in node.names)


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    layer = parts_of(path)[0]
    if layer in TOP:
        return
    assert layer in LAYERS, f"{layer} is not a layer of the house"
    for module in imports(path):
        if module[0] != "vis_d2" or len(module) < 2 or module[1] not in LAYERS:
            assert module[0] != "vis_d2" or module[1] not in TOP - {"__init__"}, module
            continue
        allowed = LAYERS[layer] | {layer, "compat"}
        assert module[1] in allowed, f"{layer} may not import {'.'.join(module)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_are_sealed(path):
    parts = parts_of(path)
    if parts[0] != "meta_arch" or len(parts) < 3:
        return
    for module in imports(path):
        if module[:2] == ["vis_d2", "meta_arch"] and len(module) > 3:
            assert module[2] == parts[1], f"{parts[1]} reaches into {module[2]}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_library_names_no_paper(path):
    if parts_of(path)[0] in {"meta_arch", "__init__"}:
        return
    text = path.read_text().lower()
    assert not [paper for paper in PAPERS if paper in text]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_models_open_no_file(path):
    if parts_of(path)[0] not in {"modeling", "layers", "meta_arch"}:
        return
    assert not {module[0] for module in imports(path)} & NO_FILES
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert "open" not in {getattr(call.func, "id", None) for call in calls}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_budgets(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= MOST_FILE_LINES
    assert not [i for i, line in enumerate(lines, 1) if len(line) > LINE_LENGTH]
    long = {
        f.name: f.end_lineno - f.lineno + 1
        for f in functions(path)
        if f.end_lineno - f.lineno + 1 > MOST_FUNCTION_LINES
    }
    assert not long


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_signature_is_annotated(path):
    bare = []
    for function in functions(path):
        arguments = function.args.args + function.args.kwonlyargs
        named = [a for a in arguments if a.arg not in ("self", "cls")]
        if function.returns is None or any(a.annotation is None for a in named):
            bare.append(f"{function.name} (line {function.lineno})")
    assert not bare


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_loading_is_safe(path):
    """No eval, no exec, no pickle; torch.load names weights_only."""
    assert "pickle" not in {module[0] for module in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        assert getattr(node.func, "id", None) not in {"eval", "exec"}
        if ast.unparse(node.func) == "torch.load":
            assert "weights_only" in {k.arg for k in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_has_a_test_file(path):
    parts = parts_of(path)
    if parts[-1] == "__init__" or parts[-1] in {"categories"}:
        return
    tests = [p.stem for p in (ROOT / "tests").rglob("test_*.py")]
    room = parts[1] if parts[0] == "meta_arch" and len(parts) > 2 else None
    wanted = f"test_{room or parts[-1]}"
    assert [t for t in tests if t.startswith(wanted)], f"no tests/**/{wanted}*.py"


def test_projects_are_not_imported():
    for path in FILES:
        assert not [m for m in imports(path) if m[0] == "projects"], path
