"""The package as others get it: from the checkout, as a wheel, as a source archive."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd, **environment):
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    return run("git", "ls-files", cwd=ROOT).splitlines()


@pytest.fixture(scope="module")
def archives(tracked, tmp_path_factory):
    """A wheel and a source archive of the tracked files."""
    pytest.importorskip("setuptools", minversion="77")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    # setuptools changes sys.argv
    program = (
        "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
    )
    run(sys.executable, "-W", "ignore", "-c", program, out, cwd=tree)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def shipped(tracked):
    return [name for name in tracked if name.startswith(("ase_nepcg/", "cuda/ase_nepcg_cuda/"))]


def test_wheel_holds_every_tracked_module_and_data_file(archives, tracked):
    with zipfile.ZipFile(archives[0]) as archive:
        names = set(archive.namelist())
    assert shipped(tracked)
    assert [name for name in shipped(tracked) if name.removeprefix("cuda/") not in names] == []
    # nothing but the two packages and the metadata
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ase_nepcg", "ase_nepcg_cuda"}


def test_sdist_holds_every_tracked_module_and_data_file(archives, tracked):
    with tarfile.open(archives[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in shipped(tracked) if name not in names] == []
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_wheel_works_elsewhere(archives, tmp_path):
    with zipfile.ZipFile(archives[0]) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import ase_nepcg, ase_nepcg_cuda; from ase_nepcg import NEPModel; from ase_nepcg.data import WATER_BEAD;"
        "print(ase_nepcg.__file__, ase_nepcg_cuda.__file__, NEPModel.read(WATER_BEAD).species)"
    )
    shown = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    first, second, species = shown.split(maxsplit=2)
    assert Path(first).is_relative_to(tmp_path)
    assert Path(second).is_relative_to(tmp_path)
    assert species.strip() == "('WAT',)"


@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_import_is_light(where, tmp_path):
    program = (
        "import sys, ase_nepcg, ase_nepcg_cuda; heavy = {'numba', 'matplotlib', 'ase', 'scipy'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    folder = ROOT if where == "checkout" else tmp_path
    assert run(sys.executable, "-W", "error", "-c", program, cwd=folder).strip() == "[]"


def test_every_public_name_loads():
    program = "import ase_nepcg; [getattr(ase_nepcg, name) for name in ase_nepcg.__all__]; print(len(dir(ase_nepcg)))"
    assert int(run(sys.executable, "-c", program, cwd=ROOT)) >= 5


def test_cuda_source_root_hides_nothing():
    # cuda/__init__.py or a package tests/cuda would hide NVIDIA's namespace package "cuda"
    assert not (ROOT / "cuda" / "__init__.py").exists()
    assert not (ROOT / "tests" / "cuda").exists()


def test_every_module_has_a_test(tracked):
    # a module may be tested together with the one whose name its own begins with (bench_report: test_bench)
    tests = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    modules = [Path(name).with_suffix("").parts for name in shipped(tracked) if name.endswith(".py")]
    expected = [
        "test_" + "_".join(parts[1:]) for parts in modules if parts[0] == "ase_nepcg" and parts[-1] != "__init__"
    ]
    assert [name for name in expected if not any(name == test or name.startswith(test + "_") for test in tests)] == []
