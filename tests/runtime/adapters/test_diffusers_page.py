"""The code of docs/diffusers.md: what can run without a download runs, and prints what the page shows."""

import contextlib
import io
import pathlib
import re
import shutil

import pytest

from tests.runtime.adapters.conftest import AnyBundle

PAGE = (pathlib.Path(__file__).parents[3] / "docs/diffusers.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_a_published_model_is_accelerated_by_the_same_names() -> None:
    published, demo = BLOCKS
    compile(published, "docs/diffusers.md", "exec")
    for line in re.findall(r"^from taylorseer.*", published, flags=re.MULTILINE):
        assert line in demo


def test_the_demo_prints_what_the_page_shows(
    any_bundle: AnyBundle, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(any_bundle("flux-emoji", "history").folder, tmp_path / "bundles/flux-emoji")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(BLOCKS[1], "docs/diffusers.md", "exec"), {})
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert printed.getvalue() == shown
