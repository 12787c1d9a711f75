"""A session occupies whole pages, and no less than its plan says."""

from hypothesis import given
from hypothesis import strategies as st

from taylorseer.runtime.footprint import BESIDE_BYTES, PAGE_BYTES, footprint


@given(st.integers(0, 1 << 40))
def test_a_block_occupies_whole_pages_and_never_one_too_many(session_bytes: int) -> None:
    pages, rest = divmod(footprint(session_bytes) - BESIDE_BYTES, PAGE_BYTES)
    assert rest == 0
    assert session_bytes <= pages * PAGE_BYTES < session_bytes + PAGE_BYTES
