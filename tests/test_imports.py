"""What an import costs, and what a stage can do without the libraries of the others; each in a fresh interpreter."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "diffusers", "transformers", "rich", "PIL", "skimage")

BUDGET = 0.5
"""Seconds; of them NumPy takes most."""

MEASURE = """
import json, sys, time
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "loaded": [name for name in {names!r} if name in sys.modules]}}))
"""

NUMPY_ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from taylorseer.cli import main
for arguments in {commands!r}:
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    print("#", code)
"""


def python(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("taylorseer", HEAVY),
        ("taylorseer.cli", HEAVY),
        ("taylorseer.runtime", ("torch", "diffusers", "transformers")),
        ("taylorseer.runtime.adapters", ("torch", "diffusers", "transformers")),
        ("taylorseer.runtime.session", ("torch", "diffusers", "transformers", "onnx", "onnxruntime")),
        ("taylorseer.runtime.generation", ("torch", "diffusers", "transformers", "onnx")),
    ],
)
def test_an_import_is_light_and_quick(module: str, forbidden: tuple[str, ...]) -> None:
    measured = [json.loads(python(MEASURE.format(module=module, names=forbidden)).stdout) for _ in range(3)]
    assert measured[0]["loaded"] == []
    assert min(entry["seconds"] for entry in measured) < BUDGET


def test_the_measurement_would_notice() -> None:
    assert json.loads(python(MEASURE.format(module="rich, numpy", names=HEAVY)).stdout)["loaded"] == ["rich"]


def test_help_and_plan_need_numpy_alone() -> None:
    commands = ("build", "plan", "generate", "compare", "tune", "inspect", "verify", "profile", "store", "doctor")
    asked = [
        ["--help"],
        *([command, "--help"] for command in commands),
        ["plan"],
        ["plan", "--preset", "dit", "--json"],
    ]
    blocked = (*HEAVY, "safetensors", "tensorrt", "accelerate", "huggingface_hub")
    done = python(NUMPY_ALONE.format(names=blocked, commands=[*asked, ["doctor"]]))
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if line.startswith("#")] == ["# 0"] * (len(asked) + 1)
    assert "50 steps, 10 full: 0, 1, 2, 8" in done.stdout


def test_other_commands_name_what_to_install() -> None:
    commands = [["build", "--model", "dit-tiny", "--random-weights", "--output", "/tmp/never-made"]]
    done = python(NUMPY_ALONE.format(names=HEAVY, commands=commands))
    assert done.stdout == "# 1\n"
    assert done.stderr.startswith("error: Exporting needs ")
    assert "pip install 'taylorseer-trt[export,onnxruntime]'" in done.stderr
