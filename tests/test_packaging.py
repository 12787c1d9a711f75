"""One package out of four folders: the list of packages equals the disk, and the wheel holds what it should."""

import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES = ("exporter", "engines", "runtime")


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        table: dict[str, Any] = tomllib.load(file)["tool"]["setuptools"]
    return table


def packages_on_disk() -> dict[str, pathlib.Path]:
    """Importable names of all folders with an ``__init__.py``; the links are left to the folders they lead to."""
    found = {}
    for top in ("taylorseer", *STAGES):
        for init in (ROOT / top).rglob("__init__.py"):
            if "__pycache__" not in init.parts and not any(parent.is_symlink() for parent in init.parents):
                name = ".".join(init.parent.relative_to(ROOT).parts)
                found[name if top == "taylorseer" else f"taylorseer.{name}"] = init.parent
    return found


def test_every_package_is_listed_and_every_listed_one_exists(setuptools_table: dict[str, Any]) -> None:
    listed = setuptools_table["packages"]
    assert sorted(listed) == sorted(packages_on_disk())
    assert len(listed) == len(set(listed))


def test_folders_with_modules_are_packages() -> None:
    folders = {path.parent for top in ("taylorseer", *STAGES) for path in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_stage_is_mapped_to_its_folder(setuptools_table: dict[str, Any]) -> None:
    expected = {"taylorseer": "taylorseer"} | {f"taylorseer.{stage}": stage for stage in STAGES}
    assert setuptools_table["package-dir"] == expected


def test_the_links_are_relative_and_lead_to_the_stages() -> None:
    links = {path.name: os.readlink(path) for path in (ROOT / "taylorseer").iterdir() if path.is_symlink()}
    assert links == {stage: f"../{stage}" for stage in STAGES}


def test_every_model_is_package_data(setuptools_table: dict[str, Any]) -> None:
    data = setuptools_table["package-data"]
    assert data["taylorseer"] == ["py.typed"]
    for name, folder in packages_on_disk().items():
        covered = {path for pattern in data.get(name, []) for path in folder.glob(pattern)}
        others = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
        assert others == covered, name


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel that setuptools builds of a copy, so that the checkout gets no build folder."""
    pytest.importorskip("setuptools", minversion="77")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    parts = ("taylorseer", *STAGES, "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-a", *(str(ROOT / part) for part in parts), "."], cwd=copy, check=True)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    assert wheel.name.startswith("taylorseer_trt-") and wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_has_every_module_and_every_model_once(wheel_names: list[str]) -> None:
    expected = {"taylorseer/py.typed"}
    for name, folder in packages_on_disk().items():
        files = [path.name for path in folder.iterdir() if path.suffix in (".py", ".json")]
        expected |= {f"{name.replace('.', '/')}/{file}" for file in files}
    packed = [name for name in wheel_names if ".dist-info/" not in name]
    assert sorted(packed) == sorted(expected)
    assert "taylorseer/exporter/models/flux.json" in packed


def test_the_wheel_claims_one_name_of_site_packages(wheel_names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"taylorseer"}
    (scripts,) = [name for name in wheel_names if name.endswith("entry_points.txt")]
    assert scripts.startswith("taylorseer_trt-")
