"""Nothing that a bundle holds is unpickled, evaluated or imported: read from the sources, not hoped for."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy", "yaml"}

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}

FORBIDDEN_ATTRIBUTES = {"load_module", "exec_module", "import_module", "spec_from_file_location", "system", "popen"}

ALLOWED = {
    "engines/plan_process.py": {"pickle"},  # to and from a child of its own, by pipes of its own
    "taylorseer/cli.py": {"import_module"},  # commands, by a constant list of names
    "taylorseer/cuda.py": {"import_module"},  # one constant name
    "taylorseer/tensorrt_library.py": {"import_module"},  # one of two constant names
}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("taylorseer", "taylorseer/commands", "runtime", "engines")
    for path in (ROOT / folder).glob("**/*.py" if folder in ("runtime", "engines") else "*.py")
)


def suspicious(tree: ast.AST) -> Iterator[str]:
    """Yield the names of all that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                name for name in (alias.name.partition(".")[0] for alias in node.names) if name in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call):
            yield from suspicious_call(node)


def suspicious_call(node: ast.Call) -> Iterator[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in FORBIDDEN_CALLS:
        yield name
    if attribute in FORBIDDEN_ATTRIBUTES:
        yield attribute
    owner = node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
    if owner in ("np", "numpy") and attribute == "load":
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        pickles = given.get("allow_pickle")
        if not (isinstance(pickles, ast.Constant) and pickles.value is False):
            yield "np.load without allow_pickle=False"
    if owner == "torch" and attribute == "load":
        yield "torch.load"
    shell = next((keyword.value for keyword in node.keywords if keyword.arg == "shell"), None)
    if shell is not None:
        yield "shell"


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 80 and "runtime/words.py" in FILES and "taylorseer/bundle.py" in FILES


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_is_read_can_run(name: str) -> None:
    found = set(suspicious(ast.parse((ROOT / name).read_text("utf-8"))))
    assert found <= ALLOWED.get(name, set())


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import load", "eval(x)", "exec(x)", "importlib.import_module(x)", "np.load(x)"),
        *("np.load(x, allow_pickle=True)", "torch.load(x)", "subprocess.run(x, shell=True)", "__import__(x)"),
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert list(suspicious(ast.parse(source)))


def test_what_is_allowed_is_still_there() -> None:
    for name, allowed in ALLOWED.items():
        assert allowed <= set(suspicious(ast.parse((ROOT / name).read_text("utf-8")))), name
