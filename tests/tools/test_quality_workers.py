"""Workers: everything is run once, in this process or in others, and an interrupt loses nothing that is finished."""

import dataclasses
import os

import pytest

from tools.quality_results import Record
from tools.quality_workers import Progress, run_all


@dataclasses.dataclass(frozen=True)
class Square:
    """Work of a test."""

    number: int

    def run(self) -> Record:
        return {"kind": "square", "key": str(self.number), "value": self.number**2, "process": os.getpid()}


class Broken:
    """Work that fails."""

    def run(self) -> Record:
        raise ValueError("broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_every_item_is_run_once(workers: int) -> None:
    found: dict[int, Record] = {}

    def done(place: int, record: Record | None) -> None:
        assert place not in found and record is not None
        found[place] = record

    run_all([Square(number) for number in range(5)], workers=workers, on_done=done)
    assert {place: record["value"] for place, record in found.items()} == {n: n**2 for n in range(5)}
    assert {record["process"] == os.getpid() for record in found.values()} == {workers == 0}


def test_an_interrupt_records_what_was_begun_and_begins_no_more() -> None:
    found: list[int] = []

    def done(place: int, record: Record | None) -> None:
        found.append(place)
        if len(found) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([Square(number) for number in range(50)], workers=1, on_done=done)
    assert len(found) == len(set(found)) < 10


def test_what_fails_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ValueError, match="broken"):
        run_all([Broken()], workers=1, on_done=lambda place, record: None)


def test_progress_tells_the_share_and_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.show("building", always=True)
    progress.plan(200.0)
    progress.advance(30.0, "first")
    progress.show("second", within=20.0, always=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].split() == ["0.0%", "0:00", "gone,", "?", "left", "building"]
    assert shown[-1].split()[0] == "25.0%" and shown[-1].endswith("left  second")
