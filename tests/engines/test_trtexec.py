"""trtexec: found, told exactly what to do, run without a shell, and every refusal."""

import pathlib
import shlex
import sys
from collections.abc import Callable

import pytest

from taylorseer.engines.trtexec import (
    Flavor,
    find_trtexec,
    require_trtexec,
    run_trtexec,
    shell_line,
    trtexec_command,
)
from taylorseer.engines.trtexec_reports import read_layers, read_times
from taylorseer.errors import BackendError

Tool = Callable[..., pathlib.Path]

FAKE = """
import json, sys
options = dict(part.removeprefix("--").partition("=")[::2] for part in sys.argv[1:])
runs = int(options["iterations"])
keys = ["startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"]
times = [dict.fromkeys(keys, run) | {"h2dMs": 0, "computeMs": 1 + run, "d2hMs": 0} for run in range(runs)]
json.dump(times, open(options["exportTimes"], "w"))
layers = [{"count": runs}]
for name in options["shapes"].split(","):
    layers.append({"name": name, "timeMs": 3, "averageMs": 1, "medianMs": 1, "percentage": 50})
json.dump(layers, open(options["exportProfile"], "w"))
print("&&&& PASSED", options["loadEngine"])
"""


@pytest.fixture
def tool(tmp_path: pathlib.Path) -> Tool:
    """Writes a program that stands for trtexec."""

    def write(source: str = FAKE, name: str = "trtexec") -> pathlib.Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{source}", "utf-8")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Hides whatever tools this machine has."""
    monkeypatch.delenv("TRTEXEC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def command(tool: pathlib.Path | None, folder: pathlib.Path, flavor: Flavor = "tensorrt") -> list[str]:
    return trtexec_command(
        tool,
        folder / "my plans" / "full.plan",
        {"hidden_states": (2, 3, 8, 8), "timestep": (2,)},
        flavor=flavor,
        times=folder / "times.json",
        layers=folder / "layers.json",
        iterations=7,
        warm_up_ms=30,
    )


def test_each_backend_has_its_own_tool(tool: Tool) -> None:
    assert find_trtexec("tensorrt") is None and find_trtexec("tensorrt-rtx") is None
    trtexec = tool()
    assert find_trtexec("tensorrt") == require_trtexec("tensorrt") == trtexec
    assert find_trtexec("tensorrt-rtx") is None
    assert tool(name="tensorrt_rtx") == find_trtexec("tensorrt-rtx")


def test_the_environment_comes_before_the_path(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool()
    mine = tool(name="my-trtexec")
    monkeypatch.setenv("TRTEXEC", str(mine))
    assert find_trtexec("tensorrt") == find_trtexec("tensorrt-rtx") == mine


def test_an_environment_that_names_no_program(
    tmp_path: pathlib.Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool()  # is on the PATH, and must not be used in silence
    monkeypatch.setenv("TRTEXEC", str(tmp_path / "gone"))
    with pytest.raises(BackendError, match=r"\$TRTEXEC is '.*gone', which is no program: correct it, or unset it"):
        find_trtexec("tensorrt")


@pytest.mark.parametrize(
    ("flavor", "source"), [("tensorrt", "developer.nvidia.com/tensorrt, "), ("tensorrt-rtx", "tensorrt-rtx, and")]
)
def test_a_missing_tool_says_where_to_get_it(flavor: Flavor, source: str) -> None:
    with pytest.raises(BackendError, match="trtexec missing: there is no") as refused:
        require_trtexec(flavor)
    assert source in str(refused.value) and "set $TRTEXEC" in str(refused.value)


def test_the_arguments(tmp_path: pathlib.Path) -> None:
    assert command(None, tmp_path) == [
        "trtexec",
        f"--loadEngine={tmp_path}/my plans/full.plan",
        "--shapes=hidden_states:2x3x8x8,timestep:2",
        "--iterations=7",
        "--duration=0",
        "--warmUp=30",
        "--useCudaGraph",
        "--noDataTransfers",
        "--separateProfileRun",
        "--dumpProfile",
        f"--exportTimes={tmp_path}/times.json",
        f"--exportProfile={tmp_path}/layers.json",
    ]


def test_tensorrt_rtx_captures_cuda_graphs_by_itself(tmp_path: pathlib.Path) -> None:
    rtx = command(None, tmp_path, "tensorrt-rtx")
    assert rtx[0] == "tensorrt_rtx"
    assert "--rtxCudaGraphStrategy=wholeGraph" in rtx and "--useCudaGraph" not in rtx


def test_scalars_and_given_values(tmp_path: pathlib.Path) -> None:
    arguments = trtexec_command(
        None,
        tmp_path,
        {"guidance": ()},
        flavor="tensorrt",
        times=tmp_path,
        layers=tmp_path,
        values={"class_labels": pathlib.Path("/tmp/labels.bin")},
    )
    assert "--shapes=guidance:scalar" in arguments
    assert "--loadInputs=class_labels:/tmp/labels.bin" in arguments


def test_the_line_for_a_shell_is_the_same_arguments(tmp_path: pathlib.Path) -> None:
    arguments = command(None, tmp_path)
    assert shlex.split(shell_line(arguments)) == arguments
    assert "my plans/full.plan'" in shell_line(arguments)


@pytest.mark.parametrize("name", ["a,b", "it's", "all*", "two words", ""])
def test_a_name_that_the_option_lists_cannot_carry(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(BackendError, match=r"cannot be told about an input named .*Rename the input"):
        trtexec_command(None, tmp_path, {name: (1,)}, flavor="tensorrt", times=tmp_path, layers=tmp_path)


def test_a_run_leaves_its_reports(tmp_path: pathlib.Path, tool: Tool) -> None:
    output = run_trtexec(command(tool(), tmp_path))
    assert output == f"&&&& PASSED {tmp_path}/my plans/full.plan\n"
    times = read_times(tmp_path / "times.json").summary()
    assert (times.runs, times.median_ms) == (7, 4)
    assert [layer.name for layer in read_layers(tmp_path / "layers.json")] == ["hidden_states:2x3x8x8", "timestep:2"]


def test_no_shell_reads_the_arguments(tmp_path: pathlib.Path, tool: Tool) -> None:
    echo = tool("import sys; print(sys.argv[1:])")
    assert run_trtexec([str(echo), "$HOME; rm *", "`a`"]) == "['$HOME; rm *', '`a`']\n"


def test_a_failure_shows_the_last_lines(tmp_path: pathlib.Path, tool: Tool) -> None:
    broken = tool(
        "import sys\nfor n in range(99): print('line', n)\nprint('[E] bad plan', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(BackendError, match="failed with exit code 3; its last lines:") as refused:
        run_trtexec([str(broken), "--loadEngine=a b"])
    message = str(refused.value)
    assert "[E] bad plan" in message and "line 98" in message and "line 80" not in message
    assert message.endswith(f"{broken} '--loadEngine=a b'")


def test_a_tool_that_was_killed_or_is_silent(tool: Tool) -> None:
    killed = tool("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(BackendError, match=r"was killed by signal 9; its last lines:\s+\(it printed nothing\)"):
        run_trtexec([str(killed)])


def test_a_tool_that_cannot_be_started(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"cannot be started: No such file or directory\. Set \$TRTEXEC"):
        run_trtexec([str(tmp_path / "gone")])
