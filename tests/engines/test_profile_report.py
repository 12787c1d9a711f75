"""The report: every number against arithmetic by hand, its JSON, and what a terminal shows."""

import json
import shlex

import pytest

from taylorseer.engines.engine_times import EngineTimes, LayerTime
from taylorseer.engines.inspector import EngineLayer
from taylorseer.engines.profile_report import EngineReport, ProfileReport, Roofline, engine_report, loop_report
from taylorseer.engines.work import Work

ROOFLINE = Roofline(
    copy_gb_per_second=1000, gemm_tflop_per_second=100, copy_method="1 GiB, 20 copies", gemm_method="8192 cubed, bf16"
)
WORK = Work(flops=400_000_000_000, weight_bytes=1_500_000_000, io_bytes=500_000_000)  # floors: 4 ms and 2 ms
COMMAND = ("trtexec", "--loadEngine=my full.plan")
SESSION = EngineTimes.from_durations([7.0, 8.0, 9.0])


def layer(name: str, milliseconds: float, total: float) -> LayerTime:
    return LayerTime(
        name=name,
        total_ms=3 * milliseconds,
        average_ms=milliseconds,
        median_ms=milliseconds,
        percent=100 * milliseconds / total,
    )


def report(kind: str = "full", trtexec: EngineTimes | None = None, count: int = 3) -> EngineReport:
    total = count * (count + 1) / 2
    return engine_report(
        kind,
        command=COMMAND,
        work=WORK,
        session=SESSION,
        roofline=ROOFLINE,
        trtexec=trtexec,
        layers=[EngineLayer(name=f"layer{index}", kind="gemm") for index in range(1, count + 1)],
        times=[layer(f"layer{index}", index, total) for index in range(1, count + 1)],
    )


def profile(*engines: EngineReport) -> ProfileReport:
    return ProfileReport(
        bundle="bundles/x",
        hardware={"device": "H100", "driver": "580"},
        roofline=ROOFLINE,
        engines=engines,
        loop=loop_report([0.010, 0.002, 0.002, 0.002], [True, False, False, False], engines),
    )


def test_achieved_against_the_roofline() -> None:
    engine = report()
    assert engine.tflop_per_second == pytest.approx(50)  # 0.4 TFLOP in 8 ms
    assert engine.gb_per_second == pytest.approx(250)
    assert engine.floor_ms == pytest.approx(4) and engine.bound == "flops"
    assert engine.roofline_share == pytest.approx(0.5)
    assert engine.session == SESSION.summary()


def test_the_two_timers_agree_or_not() -> None:
    near, far = (report(trtexec=EngineTimes.from_durations([ms])) for ms in (7.8, 10.0))
    assert near.difference_percent == pytest.approx(100 * (8 / 7.8 - 1))
    assert near.verdict() == "agree: the session is 2.6 % slower, within 5 %"
    assert far.difference_percent == pytest.approx(-20)
    assert far.verdict().startswith("DISAGREE: the session is 20.0 % faster; compare clocks")


def test_without_trtexec_the_report_says_so() -> None:
    engine = report()
    assert engine.trtexec is None and engine.difference_percent is None
    assert engine.verdict() == "trtexec was not run: times are by our own timers alone"
    rows = [line.split() for line in profile(engine).to_text().splitlines() if " ms " in line]
    assert "session" in [row[0] for row in rows] and "trtexec" not in [row[0] for row in rows]


def test_the_loop_and_what_its_engines_do_not_explain() -> None:
    forecast = engine_report(
        "forecast", command=COMMAND, work=WORK, session=EngineTimes.from_durations([1.5]), roofline=ROOFLINE
    )
    loop = loop_report([0.010, 0.002, 0.003, 0.004], [True, False, False, False], [report(), forecast])
    assert (loop.steps, loop.full_steps) == (4, (0,))
    assert loop.loop_ms == pytest.approx(19) and loop.full_ms == pytest.approx(10)
    assert loop.forecast_ms == pytest.approx(3)
    assert loop.outside_engines_ms == pytest.approx(19 - 8 - 3 * 1.5)


def test_a_loop_whose_forecast_engine_was_not_timed() -> None:
    loop = loop_report([0.010, 0.002], [True, False], [report()])
    assert loop.outside_engines_ms is None


def test_a_loop_with_every_step_full() -> None:
    loop = loop_report([0.010, 0.012], [True, True], [report()])
    assert loop.forecast_ms is None
    assert loop.outside_engines_ms == pytest.approx(22 - 2 * 8)


def test_the_json_has_everything() -> None:
    values = json.loads(json.dumps(profile(report(trtexec=SESSION)).to_json(), allow_nan=False))
    (engine,) = values["engines"]
    assert shlex.split(engine["command"]) == list(COMMAND)
    assert engine["work"] == {"flops": 4e11, "weight_bytes": 1.5e9, "io_bytes": 5e8}
    assert engine["session"] == engine["trtexec"] == {"median_ms": 8, "p10_ms": 7.2, "p90_ms": 8.8, "runs": 3}
    assert engine["difference_percent"] == 0 and engine["verdict"].startswith("agree")
    assert engine["layers_ms"] == 6 and len(engine["layers"]) == 3
    assert engine["layers"][0]["layer"]["kind"] == "gemm"
    assert values["hardware"] == {"device": "H100", "driver": "580"}
    assert values["roofline"]["copy_method"] == "1 GiB, 20 copies"
    assert values["loop"]["full_steps"] == [0]


def test_the_text_has_the_numbers() -> None:
    text = profile(report(trtexec=SESSION)).to_text()
    for part in (
        "bundles/x on device H100, driver 580",
        "1000.0 GB/s copy        1 GiB, 20 copies",
        "$ trtexec '--loadEngine=my full.plan'",
        "agree: the session is 0.0 % faster, within 5 %",
        "400.000 GFLOP, 1500.000 MB weights, 500.000 MB inputs and outputs",
        "achieved  50.00 TFLOP/s, 250.0 GB/s",
        "floor     4.0000 ms, set by flops: 50.0% of the roofline",
        "loop      4 steps, 1 full, 16.00 ms",
        "forecast step  2.000 ms, 20.0% of a full step",
    ):
        assert part in text


def test_times_stand_below_each_other() -> None:
    lines = profile(report(trtexec=EngineTimes.from_durations([1234.5678] * 20))).to_text().splitlines()
    header, session, trtexec = (line for line in lines if line.split()[:1] in (["median"], ["session"], ["trtexec"]))
    assert len(header) == len(session) == len(trtexec)
    assert "1234.568 ms" in trtexec and "  20" in trtexec


def test_the_most_expensive_layers_come_first_and_the_others_are_summed() -> None:
    lines = profile(report(count=20)).to_text().splitlines()
    rows = [line.split() for line in lines if line.split()[1:2] == ["ms"] and "%" in line.split()[3:4]]
    assert [row[-1] for row in rows[:15]] == [f"layer{index}" for index in range(20, 5, -1)]
    assert len(rows) == 16
    assert rows[15] == ["15.0000", "ms", "7.1", "%", "5", "others"]  # layers 1 to 5 of a sum of 210


def test_few_layers_have_no_others() -> None:
    assert "others" not in profile(report(count=15)).to_text()


def test_layers_without_times() -> None:
    engine = engine_report(
        "full", command=COMMAND, work=WORK, session=SESSION, roofline=ROOFLINE, layers=[EngineLayer(name="a")]
    )
    assert engine.layers_ms is None
    assert "layers    1, none of them timed" in profile(engine).to_text()


def test_long_names_lose_their_middle() -> None:
    name = "begin_" + "x" * 3000 + "_end"
    engine = engine_report(
        "full", command=COMMAND, work=WORK, session=SESSION, roofline=ROOFLINE, times=[layer(name, 1, 1)]
    )
    (line,) = (line for line in profile(engine).to_text().splitlines() if "begin_" in line)
    assert line.endswith("_end") and "..." in line and len(line) < 120
