"""``plan``: the presets' published schedules, their weights, and what a session keeps, before anything runs."""

import dataclasses
import hashlib
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taylorseer.bundle import MANIFEST_NAME, Bundle
from taylorseer.config import PRESETS
from taylorseer.manifest import FileSpec, Manifest
from taylorseer.manifest_json import manifest_to_json
from taylorseer.runtime.footprint import footprint
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.session import LoadedModel
from tests.runtime.gpu import NullGpu
from tests.runtime.null_device import NullDevice

Run = Callable[..., Any]
Bundles = Callable[..., Bundle]

GOLDEN = {
    "flux": [0, 1, 2, 8, 14, 20, 26, 32, 38, 44],
    "hunyuan-video": [0, 5, 10, 15, 20, 25, 30, 35, 40, 45],
    "dit": [0, 1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49],
    "wan": [0, 5, 10, 15, 20, 25, 30, 35, 40, 45],
    "hidream": [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48],
    "diffusers": [0, 1, 2, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49],
}
"""Full steps of 50: read in the authors' code, and in diffusers' for ``diffusers``."""


def test_every_preset_is_golden() -> None:
    assert GOLDEN.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", GOLDEN)
def test_the_plan_of_a_preset(run: Run, preset: str) -> None:
    plan = run("plan", "--preset", preset, "--steps", 50, "--json").json
    full = GOLDEN[preset]
    assert plan["full_steps"] == full
    assert plan["ideal_speedup"] == pytest.approx(50 / len(full))
    assert plan["expected_speedup"] == pytest.approx(50 / (len(full) + 0.05 * (50 - len(full))))
    weights = plan["weights"]
    assert [int(step) for step in weights] == [step for step in range(50) if step not in full]
    for step, row in weights.items():
        sources = [int(source) for source in row]
        assert sources == sorted(sources) and set(sources) <= set(full) and max(sources) < int(step)
        assert 1 <= len(row) <= PRESETS[preset].order + 1
        assert math.isclose(sum(row.values()), 1, abs_tol=1e-9)
    sums = {int(step): sum(map(abs, row.values())) for step, row in weights.items()}
    assert plan["largest_weight_sum"] == pytest.approx(max(sums.values()))
    assert sums[plan["largest_weight_sum_step"]] == pytest.approx(max(sums.values()))


def test_28_steps_of_flux(run: Run) -> None:
    assert run("plan", "--preset", "flux", "--steps", 28, "--json").json["full_steps"] == [0, 1, 2, 8, 14, 20, 26]


def test_weights_of_flux_by_hand(run: Run) -> None:
    """From steps 1 and 2 to 7, five steps away: F(2) + 5 (F(2) - F(1)); from 8 and 14 to 17: half a gap."""
    weights = run("plan", "--preset", "flux", "--json").json["weights"]
    assert weights["7"] == {"1": -5.0, "2": 6.0}
    assert weights["17"] == pytest.approx({"8": -0.5, "14": 1.5})


def test_state_bytes_of_the_published_models(run: Run) -> None:
    flux = run("plan", "--preset", "flux", "--json").json
    assert flux["state_bytes"] == {"derivatives": 7_650_410_496, "history": 3_825_205_248, "folded": 503_316_480}
    assert flux["state_of"] == "FLUX.1-dev, 1024x1024, bf16"
    assert run("plan", "--preset", "flux", "--order", 2, "--batch", 2, "--json").json["state_bytes"]["history"] == (
        3_825_205_248 * 3
    )
    assert run("plan", "--preset", "diffusers", "--json").json["state_bytes"] is None


def test_layouts_side_by_side(run: Run) -> None:
    """One fp32 accumulator of FLUX is 4096 x 3072 x 4 bytes; 76 features in bf16 take 38 times that."""
    plan = run("plan", "--preset", "flux", "--json").json
    one, layouts = 4096 * 3072 * 4, plan["layouts"]
    assert list(layouts) == ["derivatives", "history", "folded"]
    assert {name: layout["state_bytes"] for name, layout in layouts.items()} == plan["state_bytes"]
    folded = layouts["folded"]
    assert (folded["state_bytes"], folded["carry_bytes"], folded["flush_bytes"]) == (10 * one, 5 * one, 6 * one)
    assert folded["forecast_bytes_moved"] == one and layouts["history"]["forecast_bytes_moved"] == 2 * 38 * one
    assert folded["full_bytes_moved"] == (38 + 15 + 6 * 20) * one  # 7 groups of 12: six after the first
    assert layouts["history"]["carry_bytes"] == layouts["history"]["flush_bytes"] == 0
    for layout in layouts.values():
        for step in ("forecast", "full"):
            assert layout[f"{step}_ms"] == pytest.approx(layout[f"{step}_bytes_moved"] / 3000e9 * 1e3)
        assert layout["loop_ms"] == pytest.approx(10 * layout["full_ms"] + 40 * layout["forecast_ms"])


@pytest.mark.parametrize(("options", "most"), [(("--accumulators", "bf16"), 6.0e9), ((), 12.0e9)])
def test_hunyuan_video_needs_117_gb_as_history_and_fits_a_gpu_folded(
    run: Run, options: tuple[object, ...], most: float
) -> None:
    plan = run("plan", "--preset", "hunyuan-video", *options, "--json").json
    assert plan["state_of"] == "HunyuanVideo, 1280x720, 129 frames, bf16"
    assert (plan["cache"]["interval"], plan["cache"]["order"]) == (5, 1)
    assert plan["state_bytes"]["folded"] <= most and round(plan["state_bytes"]["history"] / 1e9) == 117


def test_larger_flush_groups_move_less(run: Run) -> None:
    def folded(*options: object) -> Any:
        return run("plan", "--preset", "hunyuan-video", *options, "--json").json["layouts"]["folded"]

    single, eight = folded("--flush-group", 1), folded("--flush-group", 8)
    assert eight["flush_bytes"] == 8 * single["flush_bytes"]
    assert eight["full_bytes_moved"] < single["full_bytes_moved"] and eight["state_bytes"] == single["state_bytes"]


def test_half_the_bandwidth_takes_twice_the_time(run: Run) -> None:
    fast, slow = (run("plan", "--bandwidth", rate, "--json").json["layouts"] for rate in (2000, 1000))
    for layout in fast:
        for name in ("forecast_ms", "full_ms", "loop_ms"):
            assert slow[layout][name] == pytest.approx(2 * fast[layout][name])


def test_the_text_tells_the_layouts(run: Run) -> None:
    text = run("plan", "--preset", "flux", "--bandwidth", 1500).out
    assert "state (FLUX.1-dev, 1024x1024, bf16); times from bytes alone, at 1500 GB/s:\n" in text
    (line,) = (line for line in text.splitlines() if line.startswith("  folded "))
    assert line.split() == [
        "folded", "503.32", "MB", "553.65", "MB", "50.33", "MB", "33.6", "us", "8.71", "GB", "5.80", "ms", "59.4", "ms",
    ]  # fmt: skip
    assert "\n  beside a folded state, within a full step alone: 251.66 MB that it reads, 301.99 MB of " in text


def test_a_loud_window_is_warned_of(run: Run) -> None:
    text = run("plan", "--preset", "flux").out
    assert "largest sum of |weights| 11.00, at step 7" in text
    assert "warning: rounding noise grows 11-fold there" in text
    assert "; --guard lower-order avoids it, and at order 1 --guard spread-warmup as well\n" in text


@pytest.mark.parametrize("guard", ["lower-order", "spread-warmup"])
def test_a_guard_quiets_it_with_as_many_full_steps(run: Run, guard: str) -> None:
    text, plan = (run("plan", "--preset", "flux", "--guard", guard, *extra) for extra in ((), ("--json",)))
    assert "warning" not in text.out and f"\npredictor taylor, order 1, guard {guard}\n" in text.out
    assert plan.json["largest_weight_sum"] == pytest.approx(3) and len(plan.json["full_steps"]) == 10
    assert plan.json["cache"]["guard"] == guard


def test_the_number_of_a_predictor_is_told(run: Run) -> None:
    text = run("plan", "--predictor", "exponential", "--decay", 0.75).out
    assert "\npredictor exponential (decay 0.75), order 1\n" in text
    assert "\npredictor hermite (contraction 0.5), order 2\n" in run("plan", "--predictor", "hermite", "--order", 2).out


@pytest.mark.parametrize(
    "options", [("--preset", "flux", "--order", 0), ("--preset", "wan"), ("--full-steps", "0,3,6,9", "--steps", 12)]
)
def test_a_quiet_plan_is_not(run: Run, options: tuple[object, ...]) -> None:
    outcome = run("plan", *options)
    assert outcome.code == 0 and "warning" not in outcome.out


def test_the_text_tells_the_same(run: Run) -> None:
    text = run("plan", "--preset", "flux").out
    assert text.startswith("50 steps, 10 full: 0, 1, 2, 8, 14, 20, 26, 32, 38, 44\npredictor taylor, order 1\n")
    assert "speed-up 5.00x if forecasts were free, 4.17x with forecasts at 5% of a full step" in text
    assert "history      3.83 GB" in text and "folded       503.32 MB" in text
    assert "\n    7: 1 x -5  2 x +6\n" in text


def test_a_bundle_brings_its_own_defaults(run: Run, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    plan = run("plan", bundle.folder, "--json").json
    assert plan["full_steps"] == GOLDEN["dit"] and plan["cache"]["order"] == 2
    assert plan["state_of"] == str(bundle.folder)
    assert plan["state_bytes"]["history"] == 6 * 3 * 16 * 32 * 4  # features, slots, rows, width, float32
    twice = run("plan", bundle.folder, "--batch", 2, "--steps", 20, "--json").json
    assert twice["state_bytes"]["history"] == 2 * plan["state_bytes"]["history"]
    assert twice["cache"]["steps"] == 20
    assert plan["state_bytes"]["folded"] == 3 * 3 * 16 * 32 * 4  # predicted: order + 1, interval - 1
    halves = run("plan", bundle.folder, "--accumulators", "bf16", "--json").json
    assert halves["state_bytes"]["folded"] == plan["state_bytes"]["folded"] // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "fluks"), "no preset 'fluks'. Did you mean 'flux'?"),
        (("--interval", 1), "Interval 1 makes every step full, so nothing is forecast"),
        (("--interval", 0), "The interval is 0"),
        (("--order", -1), "The order is -1; use 0 to reuse the last feature"),
        (("--warmup-steps", 50), "cover all 50 steps, so nothing is forecast"),
        (("--warmup-steps", 0), "There are 0 warm-up steps, but the first step must be full"),
        (("--steps", 8), "with 8 steps or fewer there is too little to forecast from"),
        (("--steps", 9, "--full-steps", "0,1,2,3,4,5,6,7,8"), "All 9 steps are full, so nothing is forecast"),
        (("--full-steps", "1,2"), "The first step is not full"),
        (("--full-steps", "0,50"), "outside the loop; use steps from 0 to 49"),
        (("--full-steps", "0,1,1"), "given more than once"),
        (("--full-steps", "0;1"), "--full-steps takes step numbers such as 0,1,2,8, not '0;1'"),
        (("--predictor", "hermit"), "no predictor 'hermit'; use one of taylor, reuse, newton"),
        (("--predictor", "table"), "The predictor 'table' needs a table of weights"),
        (
            ("--decay", 0.5),
            "--decay is of the predictor exponential, and this one is taylor: leave it out, or give --pr",
        ),
        (("--predictor", "exponential", "--contraction", 0.5), "--contraction is of the predictor hermite, and this"),
        (("--predictor", "exponential", "--decay", 1), "decay is 1.0; give a number above 0 and below 1"),
        (("--guard", "spread"), "no guard 'spread'. Did you mean 'spread-warmup'?"),
        (("--guard", "spread-warmup", "--order", 2), "taylor at order 2 reaches 5.50 at step 8 even on the full steps"),
        (
            ("--guard", "spread-warmup", "--full-steps", "0,9"),
            "full_steps already names every full step, and the guard",
        ),
        (("--batch", 0), "give an order >= 0 and a batch >= 1"),
        (("--forecast-cost", -0.25), "--forecast-cost -0.25 is no share of a full step: give 0 or more"),
        (("--forecast-cost", "nan"), "--forecast-cost nan"),
        (("--bandwidth", 0), "--bandwidth 0.0 moves nothing: give GB/s above 0"),
        (("--bandwidth", "inf"), "--bandwidth inf moves nothing"),
        (("--flush-group", 0), "--flush-group 0 sums no features: give 1 or more"),
        (("--device-memory",), "--device-memory and --memory-plot are about the sessions of a bundle: give its folder"),
        (("--memory-plot", "plan.png"), "are about the sessions of a bundle"),
    ],
)
def test_what_cannot_be_planned_is_refused(run: Run, options: tuple[object, ...], message: str) -> None:
    outcome = run("plan", *options)
    assert outcome.refused(message)
    assert outcome.out == ""


def test_json_is_all_that_is_printed(run: Run) -> None:
    outcome = run("plan", "--json")
    assert outcome.err == "" and json.loads(outcome.out)["cache"]["steps"] == 50


# What a session of a bundle keeps


@pytest.mark.parametrize("name", ["dit-tiny", "flux-tiny"])
@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
def test_the_memory_of_a_session_is_that_of_a_real_one(run: Run, bundles: Bundles, name: str, layout: str) -> None:
    bundle = bundles(name, layout)
    memory = run("plan", bundle.folder, "--steps", 20, "--json").json["memory"]
    with LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session(steps=20) as session:
        assert memory["bytes_by_use"] == session.memory_plan.bytes_by_use()
        assert memory["total_bytes"] == session.memory_plan.total_bytes
        assert memory["bytes_by_use"]["state"] == session.state_bytes
        rows = bundle.manifest.rows_per_image
        layouts = run("plan", bundle.folder, "--batch", rows, "--json").json["layouts"]
        assert layouts[layout]["state_bytes"] == session.state_bytes
        assert layouts[layout]["carry_bytes"] == memory["bytes_by_use"].get("carry", 0)
    assert sum(memory["bytes_by_use"].values()) == memory["total_bytes"]
    assert memory["bytes_by_use"]["scratch"] == 0  # ONNX Runtime keeps it to itself
    assert (memory["images"], memory["steps"], memory["free_bytes"], memory["refusal"]) == (1, 20, None, None)
    assert memory["rows"] == bundle.manifest.rows_per_image


@pytest.mark.parametrize(("batch", "images"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_a_session_is_for_whole_images(run: Run, bundles: Bundles, batch: int, images: int) -> None:
    """Under classifier-free guidance an image takes two rows."""
    bundle = bundles("dit-tiny")
    memory = run("plan", bundle.folder, "--batch", batch, "--json").json["memory"]
    assert (memory["images"], memory["rows"]) == (images, 2 * images)
    assert memory["total_bytes"] == plan_memory(bundle.manifest, rows=2 * images, steps=50).total_bytes


def test_more_rows_than_the_bundle_serves(run: Run, bundles: Bundles) -> None:
    bundle = bundles("dit-tiny")
    largest = bundle.manifest.sizes["max_batch"]
    outcome = run("plan", bundle.folder, "--batch", largest + 1)
    assert outcome.refused(f"this bundle serves up to {largest}: give less, or build with --batch {largest + 2}")


def test_the_text_tells_the_memory(run: Run, bundles: Bundles) -> None:
    folder = bundles("dit-tiny").folder
    text, memory = run("plan", folder).out, run("plan", folder, "--json").json["memory"]
    assert "\nmemory of a session (1 image at a time, 2 rows of the model, 50 steps):\n" in text
    assert f"\n  state        {memory['bytes_by_use']['state'] / 1e3:.2f} kB\n" in text
    assert f"\n  total        {memory['total_bytes'] / 1e3:.2f} kB\nweights" in text
    assert "2 images at a time, 4 rows" in run("plan", folder, "--batch", 4).out
    assert "memory" not in run("plan").out and "memory" not in run("plan", "--json").json


# On a GPU


@pytest.fixture
def plans(bundles: Bundles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    """Gives a bundle of TensorRT plans, and a GPU of so much memory to run them on."""

    def make(total_bytes: int = 2**30, *, driver: int = 13040) -> pathlib.Path:
        device = NullDevice(total_bytes=total_bytes)
        device.driver = driver
        gpu = NullGpu(device, bundles, tmp_path, monkeypatch)
        monkeypatch.setattr("taylorseer.commands.session_memory.load_cuda", lambda: gpu.cuda)
        bundle = gpu.bundle("dit-tiny")
        shutil.copytree(bundles("dit-tiny").folder, bundle.folder, dirs_exist_ok=True)
        (bundle.folder / MANIFEST_NAME).write_text(manifest_to_json(_with_files(bundle)))
        return bundle.folder

    return make


def _with_files(bundle: Bundle) -> Manifest:
    """The bundle's manifest, with its plans among the files."""
    contents = {plan.file: (bundle.folder / plan.file).read_bytes() for plan in bundle.manifest.engine.plans}
    plans = {
        name: FileSpec(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }
    return dataclasses.replace(bundle.manifest, files={**bundle.manifest.files, **plans})


def test_without_a_gpu_the_working_memory_of_engines_is_not_known(run: Run, plans: Callable[..., pathlib.Path]) -> None:
    folder = plans(driver=0)
    memory = run("plan", folder, "--json").json["memory"]
    sizes = memory["bytes_by_use"]
    assert sizes["scratch"] is None and memory["free_bytes"] is None
    assert sum(size for size in sizes.values() if size is not None) == memory["total_bytes"]
    text = run("plan", folder).out
    assert "\n  scratch      known once the engines are loaded on a GPU\n" in text
    total = f"\n  total        {memory['total_bytes'] / 1e3:.2f} kB, without scratch\n"
    assert memory["beside_bytes"] == footprint(memory["total_bytes"]) - memory["total_bytes"]
    beside = f"  beside it    about {memory['beside_bytes'] / 1e6:.2f} MB by TensorRT and the driver themselves\n"
    assert f"{total}{beside}weights" in text
    assert run("plan", folder, "--device-memory").refused("There is no NVIDIA driver on this machine")


def test_with_a_gpu_its_free_memory_is_told(run: Run, plans: Callable[..., pathlib.Path]) -> None:
    folder = plans()
    memory = run("plan", folder, "--json").json["memory"]
    assert memory["bytes_by_use"]["scratch"] is None
    assert memory["free_bytes"] == 2**30 and memory["refusal"] is None
    assert "\n  free         1.07 GB on the GPU of this machine\n" in run("plan", folder).out


def test_loaded_engines_tell_their_working_memory(run: Run, plans: Callable[..., pathlib.Path]) -> None:
    folder = plans()
    without = run("plan", folder, "--json").json["memory"]
    outcome = run("plan", folder, "--device-memory", "--json")
    memory = outcome.json["memory"]
    assert outcome.code == 0 and memory["bytes_by_use"]["scratch"] > 0
    assert memory["total_bytes"] == without["total_bytes"] + memory["bytes_by_use"]["scratch"]
    assert sum(memory["bytes_by_use"].values()) == memory["total_bytes"]


def test_a_session_that_does_not_fit(run: Run, plans: Callable[..., pathlib.Path]) -> None:
    """A warning that names what fits; who asked for this GPU gets the plan, the message and exit code 1."""
    needed = run("plan", plans(), "--json").json["memory"]["total_bytes"]
    folder = plans(total_bytes=needed - 5000)  # an order less, 24 kB, fits
    outcome = run("plan", folder)
    assert outcome.code == 0 and outcome.err == ""
    assert (
        "\n  warning: The session needs " in outcome.out and "What fits: " in outcome.out and "--order 1" in outcome.out
    )
    outcome = run("plan", folder, "--device-memory", "--json")
    assert outcome.refused("The session needs ", "are free on the device. What fits: ", "--order 1")
    assert outcome.json["memory"]["refusal"] in outcome.err and outcome.json["memory"]["free_bytes"] == needed - 5000


def test_only_tensorrt_tells_its_working_memory(run: Run, bundles: Bundles) -> None:
    outcome = run("plan", bundles("dit-tiny").folder, "--device-memory")
    assert outcome.refused("loads TensorRT engines, and the bundle was built for onnxruntime: leave it out")


# The picture


def test_the_memory_as_a_picture(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    path, bundle = tmp_path / "new" / "memory.png", bundles("dit-tiny")
    memory = run("plan", bundle.folder, "--memory-plot", path, "--json").json["memory"]
    picture = np.asarray(Image.open(path).convert("RGB"))
    shares = sorted((size / memory["total_bytes"] for size in memory["bytes_by_use"].values()), reverse=True)
    row = picture[picture.shape[0] // 3]  # through the bar
    colors, counts = np.unique(row[(row != 255).any(axis=1)], axis=0, return_counts=True)
    widths = sorted(counts / counts.sum(), reverse=True)
    assert len(colors) >= 3 and widths[:2] == pytest.approx(shares[:2], abs=0.01)


def test_a_picture_under_another_name(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    outcome = run("plan", bundles("dit-tiny").folder, "--memory-plot", tmp_path / "memory.jpg")
    assert outcome.refused("memory.jpg' is no picture: give --memory-plot FILE.png") and outcome.out == ""


def test_a_picture_without_matplotlib(
    run: Run, bundles: Bundles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "matplotlib", None)
    outcome = run("plan", bundles("dit-tiny").folder, "--memory-plot", tmp_path / "memory.png")
    assert outcome.refused("--memory-plot needs matplotlib: `pip install 'taylorseer-trt[profile]'`")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_where_none_can_be_written(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("kept")
    outcome = run("plan", bundles("dit-tiny").folder, "--memory-plot", tmp_path / "file" / "memory.png")
    assert outcome.refused("cannot be written") and (tmp_path / "file").read_text() == "kept"
