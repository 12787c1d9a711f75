"""Run the command line where something is missing, wrong, full or forbidden, and see what it says and how it ends.

    python -m tools.environment_matrix BUNDLE

``BUNDLE`` is a tiny bundle of dit for ONNX Runtime.  Every case is a process of its own.  It has to end within two
seconds more than a start of Python with NumPy takes here, with the exit code of docs/exit-codes.md, and a mistake with
one message and no traceback.  The exit code is 0 if all do.
"""

import argparse
import dataclasses
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from tools.path_attacks import edit

__all__ = ["CASES", "Case", "Ending", "main", "run_case"]

_ROOT = pathlib.Path(__file__).parent.parent

_NOBODY = 65534

_SECONDS = 2.0
"""Until a typed error, beyond the start of the interpreter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One environment, and what has to come of a command in it."""

    arguments: Sequence[str]
    """Of ``python -m taylorseer``; ``{bundle}`` and ``{place}`` are filled in.  Or a program, after ``-c``."""
    message: str
    """A part of what is said; of a mistake on standard error, otherwise on either."""
    code: int = 1
    """How it ends."""
    modules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Files of Python that are found before the installed ones: path -> content."""
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """Variables that are set, or (None) removed."""
    limits: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """Of ``setrlimit``."""
    unprivileged: bool = False
    """Run as nobody, if this is root: root may read and write everything."""
    prepare: Callable[[pathlib.Path, pathlib.Path], object] = lambda bundle, place: None
    """Changes the copy of the bundle and the empty folder of the case."""
    output: str | None = None
    """Where standard output goes; None: it is read."""
    slow: bool = False
    """Whether it imports a large library."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    def wrong(self, case: Case) -> str:
        """Say what is not as the case wants it; '' if all is."""
        if self.code != case.code:
            return f"exit code {self.code} instead of {case.code}: {self.err[-600:]}"
        if case.message not in self.err + ("" if case.code else self.out):
            return f"{case.message!r} was not said: {self.err[-600:]}"
        if "Traceback" in self.err:
            return f"a traceback: {self.err[-600:]}"
        return ""


_GENERATE = ("generate", "{bundle}", "--prompt", "1", "--output", "{place}/image.png")

_TENSORRT = {"tensorrt_rtx.py": '__version__ = "1.7.0"\n'}

_CUDA = """
class cudaError_t(int): pass
def cudaGetDeviceCount(): return ({code}, 0)
def cudaDriverGetVersion(): return (0, {driver})
def cudaRuntimeGetVersion(): return (0, 13000)
def cudaGetErrorName(code): return (0, b"cudaErrorLaunchFailure")
"""


def _cuda(code: int, driver: int = 13000) -> dict[str, str]:
    return {
        **_TENSORRT,
        "cuda/__init__.py": "",
        "cuda/bindings/__init__.py": "",
        "cuda/bindings/runtime.py": _CUDA.format(code=code, driver=driver),
    }


def _raising(error: str) -> str:
    return f"raise {error}\n"


def _plans(bundle: pathlib.Path, place: pathlib.Path) -> None:
    """Say that the bundle was built for TensorRT-RTX."""
    edit(bundle, lambda data: data.update(engine={"backend": "tensorrt-rtx", "version": "1.7.0", "options": {}}))


def _other_provider(bundle: pathlib.Path, place: pathlib.Path) -> None:
    edit(bundle, lambda data: data["engine"].update(provider="CUDAExecutionProvider"))


def _unreadable(bundle: pathlib.Path, place: pathlib.Path) -> None:
    (bundle / "manifest.json").chmod(0)


def _read_only(bundle: pathlib.Path, place: pathlib.Path) -> None:
    (place / "store").mkdir()
    (place / "store").chmod(0o555)


_FORK = """
import os, sys
from taylorseer.bundle import open_bundle
from taylorseer.errors import BackendError
from taylorseer.runtime.generation import Generator
generator = Generator(open_bundle(sys.argv[1]))
generator.generate("1", seed=0)
pid = os.fork()
if pid == 0:
    try:
        generator.generate("1", seed=0)
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

_CWD = """
import os, shutil, sys
os.chdir(sys.argv[2])
shutil.rmtree(sys.argv[2])
from taylorseer.cli import main
sys.exit(main(["generate", sys.argv[1], "--prompt", "1"]))
"""

_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None, "LANG": None}

CASES: Mapping[str, Case] = {
    "no driver": Case(
        arguments=_GENERATE, prepare=_plans, modules=_cuda(35, 0), message="There is no NVIDIA driver on this machine"
    ),
    "a driver that is too old": Case(
        arguments=_GENERATE, prepare=_plans, modules=_cuda(35, 11040), message="The NVIDIA driver is too old"
    ),
    "no GPU": Case(arguments=_GENERATE, prepare=_plans, modules=_cuda(100), message="There is no GPU on this machine"),
    "a GPU that is lost": Case(
        arguments=_GENERATE, prepare=_plans, modules=_cuda(719), message="The GPU is lost to this process"
    ),
    "TensorRT missing": Case(
        arguments=_GENERATE,
        prepare=_plans,
        modules={"tensorrt_rtx.py": _raising('ImportError("none")')},
        message="tensorrt_rtx cannot be imported",
    ),
    "TensorRT whose libraries do not load": Case(
        arguments=_GENERATE,
        prepare=_plans,
        modules={"tensorrt_rtx.py": _raising('OSError("libtensorrt_rtx.so.1: cannot open shared object file")')},
        message="cannot open shared object file",
    ),
    "TensorRT that is too old": Case(
        arguments=_GENERATE,
        prepare=_plans,
        modules={"tensorrt_rtx.py": '__version__ = "1.0.0"\n'},
        message="1.0.0 is too old",
    ),
    "TensorRT of another version": Case(
        arguments=_GENERATE,
        prepare=_plans,
        modules={"tensorrt_rtx.py": '__version__ = "1.9.0"\n'},
        message="The plans were built with tensorrt-rtx 1.7.0, 1.9.0 is installed",
    ),
    "cuda-python missing": Case(
        arguments=_GENERATE,
        prepare=_plans,
        modules={**_TENSORRT, "cuda/__init__.py": _raising('ImportError("none")')},
        message="cuda-python cannot be imported",
    ),
    "ONNX Runtime missing": Case(
        arguments=_GENERATE,
        modules={"onnxruntime.py": _raising('ImportError("none")')},
        message="ONNX Runtime is not installed, or does not load",
    ),
    "ONNX Runtime whose libraries do not load": Case(
        arguments=_GENERATE,
        modules={"onnxruntime.py": _raising('OSError("libonnxruntime.so.1: wrong ELF class")')},
        message="wrong ELF class",
    ),
    "ONNX Runtime without the provider": Case(
        arguments=_GENERATE, prepare=_other_provider, message="The bundle was built for CUDAExecutionProvider"
    ),
    "Pillow missing": Case(
        arguments=_GENERATE, modules={"PIL/__init__.py": _raising('ImportError("none")')}, message="pip install"
    ),
    "torch missing": Case(
        arguments=("build", "--model", "dit-tiny", "--output", "{place}/x"),
        modules={"torch/__init__.py": _raising('ImportError("none", name="torch")')},
        message="Exporting needs torch",
    ),
    "torch whose libraries do not load": Case(
        arguments=("build", "--model", "dit-tiny", "--output", "{place}/x"),
        modules={"torch/__init__.py": _raising('OSError("libtorch_cpu.so: cannot open shared object file")')},
        message="libtorch_cpu.so",
    ),
    "cryptography missing": Case(
        arguments=("inspect", "{bundle}", "--verify-key", "{place}/key.pub"),
        modules={"cryptography/__init__.py": _raising('ImportError("none")')},
        message="Signatures need cryptography",
    ),
    "an output folder that cannot be made": Case(
        arguments=(*_GENERATE[:-1], "/proc/taylorseer/image.png"),
        message="/proc/taylorseer/image.png cannot be written",
    ),
    "a full disk": Case(
        arguments=_GENERATE, limits={resource.RLIMIT_FSIZE: 0}, message="cannot be written: File too large"
    ),
    "standard output on a full disk": Case(
        arguments=("plan",), output="/dev/full", message="Standard output cannot be written: No space left on device"
    ),
    "a store that may only be read": Case(
        arguments=("store", "prune", "--store", "{place}/store"),
        prepare=_read_only,
        unprivileged=True,
        code=0,
        message="",
    ),
    "a store that is no folder": Case(
        arguments=("store", "list", "--store", "/dev/null"), message="The store '/dev/null' cannot be read"
    ),
    "a full folder for temporary files": Case(
        arguments=_GENERATE, environment={"TMPDIR": "/proc/taylorseer"}, code=0, message="image.png: 1 image"
    ),
    "no home folder": Case(
        arguments=("store", "list"),
        environment=dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TAYLORSEER_STORE")),
        unprivileged=True,
        code=0,
        message="",
    ),
    "a bundle that may not be read": Case(
        arguments=_GENERATE, prepare=_unreadable, unprivileged=True, message="manifest.json cannot be read"
    ),
    "few open files": Case(
        arguments=_GENERATE, limits={resource.RLIMIT_NOFILE: 12}, code=0, message="image.png: 1 image"
    ),
    "very few open files": Case(arguments=_GENERATE, limits={resource.RLIMIT_NOFILE: 5}, message="Too many open files"),
    "little memory": Case(
        arguments=_GENERATE, limits={resource.RLIMIT_AS: 2**30}, code=0, message="image.png: 1 image"
    ),
    "no more processes": Case(
        arguments=_GENERATE, limits={resource.RLIMIT_NPROC: 1}, unprivileged=True, code=0, message="image.png: 1 image"
    ),
    "a locale without umlauts": Case(
        arguments=("generate", "{bundle}", "--prompt", "H\u00e4uschen \U0001f3e0", "--output", "{place}/\u00fc.png"),
        environment=_ASCII,
        message="takes a class",
    ),
    "a locale without umlauts, and a path with them": Case(
        arguments=(*_GENERATE[:-1], "{place}/\u00fc.png"), environment=_ASCII, code=0, message="1 image"
    ),
    "a locale that does not exist": Case(
        arguments=_GENERATE, environment={"LC_ALL": "xx_YY.UTF-9"}, code=0, message="image.png: 1 image"
    ),
    "a working folder that is gone": Case(
        arguments=("-c", _CWD, "{bundle}", "{place}/gone"),
        prepare=lambda bundle, place: (place / "gone").mkdir(),
        message="The working folder is gone",
    ),
    "a fork after the engines were loaded": Case(
        arguments=("-c", _FORK, "{bundle}"), message="load the bundle after the fork"
    ),
    "Python without assertions": Case(
        arguments=_GENERATE, environment={"PYTHONOPTIMIZE": "2"}, code=0, message="image.png: 1 image"
    ),
    "a narrow terminal": Case(arguments=("plan", "--help"), environment={"COLUMNS": "1"}, code=0, message="usage"),
}
"""Name of an environment: what runs in it."""


def run_case(case: Case, bundle: pathlib.Path, place: pathlib.Path) -> Ending:
    """Run one case with a copy of ``bundle``, in the empty folder ``place``."""
    copy = pathlib.Path(shutil.copytree(bundle, place / "bundle"))
    for name, content in case.modules.items():
        file = place / "modules" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    place.chmod(0o777)
    case.prepare(copy, place)
    filled = [argument.replace("{bundle}", str(copy)).replace("{place}", str(place)) for argument in case.arguments]
    command = [sys.executable, *(filled if filled[0] == "-c" else ["-m", "taylorseer", *filled])]
    start = time.monotonic()
    with open(case.output or os.devnull, "wb") as output:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=_environment(case, place),
            stdout=output if case.output else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=120,
            preexec_fn=lambda: _restrict(case),
            check=False,
        )
    seconds = time.monotonic() - start
    return Ending(
        done.returncode,
        (done.stdout or b"").decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
        seconds,
    )


def _environment(case: Case, place: pathlib.Path) -> dict[str, str]:
    path = os.pathsep.join([str(place / "modules"), str(_ROOT)])
    changed: dict[str, str | None] = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    changed |= {"OMP_NUM_THREADS": "1"} | dict(case.environment)
    return {name: value for name, value in changed.items() if value is not None}


def _restrict(case: Case) -> None:
    if case.unprivileged and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    for limit, value in case.limits.items():
        resource.setrlimit(limit, (value, value))


def main() -> int:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path, metavar="BUNDLE")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose names have this in them")
    options = parser.parse_args()
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    usual = time.monotonic() - start
    bad = 0
    print(f"{'environment':48} {'code':>4} {'seconds':>8}")
    for name, case in CASES.items():
        if options.only in name:
            with tempfile.TemporaryDirectory() as folder:
                ending = run_case(case, options.bundle, pathlib.Path(folder))
            wrong = ending.wrong(case)
            if case.code and ending.seconds > usual + _SECONDS:
                wrong = wrong or f"{ending.seconds:.1f} s until the error"
            bad += bool(wrong)
            print(f"{name:48} {ending.code:4} {ending.seconds:8.2f} {wrong}", flush=True)
    print(f"{bad} wrong; Python with NumPy starts in {usual:.2f} s here")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
