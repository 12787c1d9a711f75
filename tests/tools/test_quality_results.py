"""The record of finished cells: what an interrupt leaves, and who may write."""

import pathlib

import pytest

from taylorseer.errors import InputError, OutputError
from tools.quality_results import Results, key_of, read_records


def record(key: str, value: int = 0) -> dict[str, object]:
    return {"kind": "fidelity", "key": key, "value": value}


def test_a_key_follows_from_what_determines_a_result() -> None:
    assert key_of(prompt="rocket", seed=1) == key_of(seed=1, prompt="rocket")
    assert key_of(prompt="rocket", seed=1) != key_of(prompt="rocket", seed=2)


def test_records_are_there_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.add(record("a", 1))
        results.add({"kind": "speed", "key": "b"})
    with Results(path) as results:
        assert "a" in results and "c" not in results
        assert [each["value"] for each in results.of_kind("fidelity")] == [1]


def test_a_half_written_last_line_is_dropped_and_the_next_record_is_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.add(record("a"))
    path.write_bytes(path.read_bytes() + b'{"kind": "fidelity", "key": "b", "val')
    with Results(path) as results:
        assert "b" not in results
        results.add(record("c"))
    assert [each["key"] for each in read_records(path)] == ["a", "c"]


def test_the_later_of_two_records_of_one_key_counts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.add(record("a", 1))
        results.add(record("a", 2))
    with Results(path) as results:
        assert [each["value"] for each in results.of_kind("fidelity")] == [2]


def test_a_second_study_of_the_same_results_is_refused(tmp_path: pathlib.Path) -> None:
    with Results(tmp_path / "results.jsonl"), pytest.raises(OutputError, match="Another study"):
        Results(tmp_path / "results.jsonl")


def test_a_page_can_be_made_of_what_is_there_while_a_study_runs(tmp_path: pathlib.Path) -> None:
    with Results(tmp_path / "results.jsonl") as results:
        results.add(record("a"))
        reader = Results(tmp_path / "results.jsonl", read_only=True)
        assert "a" in reader
        with pytest.raises(ValueError, match="to be read"):
            reader.add(record("b"))
    with Results(tmp_path / "none.jsonl", read_only=True) as nothing:
        assert "a" not in nothing
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("line", ["no json", "[1]", '{"kind": "fidelity"}'])
def test_a_file_that_something_else_wrote_is_refused(tmp_path: pathlib.Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n", "utf-8")
    with pytest.raises(InputError, match=r"Line 1 of .* (is no JSON|is no result)"):
        read_records(path)
