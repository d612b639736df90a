"""Compiled kernels on disk."""

import ast
import functools
import importlib.util
import itertools
import os
import pickle
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest
from numba.core import config

import ase_nepcg
from ase_nepcg.potential import cache
from ase_nepcg.potential.cache import kernel_jit

PACKAGE = Path(ase_nepcg.__file__).parent
# where the sources of the kernels of each room are
PARTS = {
    "potential": ("potential",),
    "md": ("potential", "md", "md/ensembles", "md/observers"),
    "training": ("potential", "training/kernels"),
}

# a cheap kernel of the package: sums two chunks
USE_KERNEL = """
import numpy as np
import ase_nepcg
from ase_nepcg.potential.nep import sum_chunks
out = np.empty(3)
sum_chunks(np.zeros(2, np.int64), np.ones(2, np.bool_), 1, 1, np.arange(6.0), out)
assert out.tolist() == [3, 5, 7], out
print(ase_nepcg.__file__, sum(sum_chunks.stats.cache_hits.values()), sum(sum_chunks.stats.cache_misses.values()))
"""


def run_kernel(directory=None, where=None, **environment):
    """Run the kernel in a new process: file of the package, hits and misses of the cache, standard error."""
    settings = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")} | environment
    if directory is not None:
        settings["NUMBA_CACHE_DIR"] = str(directory)
    # the working directory comes first in the path
    command = [sys.executable, "-c", USE_KERNEL]
    found = subprocess.run(command, cwd=where, env=settings, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    file, hits, misses = found.stdout.rsplit(maxsplit=2)
    return file, int(hits), int(misses), found.stderr


def kernel_files(directory):
    return {path: path.stat().st_mtime_ns for path in Path(directory).glob("ase_nepcg/kernels-*/*.pickle")}


# ---- in new processes


def test_a_second_process_loads_what_the_first_has_compiled(tmp_path):
    _, hits, misses, _ = run_kernel(tmp_path)
    assert (hits, misses) == (0, 1)
    files = kernel_files(tmp_path)
    assert [path.name.split("-")[0] for path in files] == ["sum_chunks"]
    assert stat.S_IMODE(next(iter(files)).parent.stat().st_mode) == 0o700
    _, hits, misses, _ = run_kernel(tmp_path)
    assert (hits, misses) == (1, 0)
    assert kernel_files(tmp_path) == files


def test_an_edited_source_is_compiled_anew(tmp_path):
    copy = tmp_path / "source" / "ase_nepcg"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for expected in ((0, 1), (1, 0)):
        file, *counts, _ = run_kernel(tmp_path, copy.parent)
        assert Path(file).parent == copy
        assert tuple(counts) == expected
    # not the file in which the kernel is defined
    with (copy / "potential" / "linear.py").open("a") as source:
        source.write("# edited\n")
    _, hits, misses, _ = run_kernel(tmp_path, copy.parent)
    assert (hits, misses) == (0, 1)
    assert len(kernel_files(tmp_path)) == 2


def test_without_a_directory_kernels_are_compiled_and_a_warning_says_so(tmp_path):
    no_directory = tmp_path / "home"
    no_directory.write_text("a file")
    for _ in range(2):
        _, hits, misses, errors = run_kernel(HOME=str(no_directory))
        assert (hits, misses) == (0, 1)
        assert errors.count("RuntimeWarning: compiled kernels cannot be kept on disk") == 1
        assert "NUMBA_CACHE_DIR" in errors


# ---- the key: sources


@functools.cache
def covered(room):
    """Source files, relative to the package, of which the kernels of a room are made."""
    files = [path for part in PARTS[room] for path in (PACKAGE / part).glob("*.py")]
    return {path.relative_to(PACKAGE).as_posix() for path in files}


def hashes_of(package):
    """``source_hash`` of all rooms of a copy of the package."""
    spec = importlib.util.spec_from_file_location("copied_cache", package / "potential" / "cache.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {room: module.source_hash(room) for room in PARTS}


def changed(before, after):
    return {room for room in PARTS if before[room] != after[room]}


@pytest.fixture
def package(tmp_path):
    """A copy."""
    return shutil.copytree(PACKAGE, tmp_path / "ase_nepcg", ignore=shutil.ignore_patterns("__pycache__"))


def test_hash_is_that_of_the_text_only(package):
    before = hashes_of(package)
    assert before == {room: cache.source_hash(room) for room in PARTS}
    assert len(set(before.values())) == 3
    assert cache.source_hash() == before["potential"]
    for name in set.union(*map(covered, PARTS)):
        os.utime(package / name, (1, 1))
    for folder in ("potential", "md/observers", "training/kernels"):
        (package / folder / "notes.txt").write_text("no source")
    assert hashes_of(package) == before


@pytest.mark.parametrize("folder", sorted(set(PARTS["md"] + PARTS["training"])))
def test_hash_changes_with_every_source(package, folder):
    before = hashes_of(package)
    names = sorted(path.name for path in (PACKAGE / folder).glob("*.py"))
    assert names
    for name in names:
        text = (package / folder / name).read_bytes()
        (package / folder / name).write_bytes(text + b"# edited\n")
        rooms = changed(before, hashes_of(package))
        assert rooms == {room for room in PARTS if f"{folder}/{name}" in covered(room)}, name
        (package / folder / name).write_bytes(text)
    assert hashes_of(package) == before


def test_sources_of_potentials_are_part_of_everything():
    assert covered("potential") < covered("md")
    assert covered("potential") < covered("training")
    assert {"md/loop.py", "md/observers/pairs.py", "md/ensembles/nve.py"} < covered("md")


@pytest.mark.parametrize("name", ["calculator.py", "training/core.py", "meanforce/core.py"])
def test_hash_does_not_change_with_what_is_no_kernel(package, name):
    before = hashes_of(package)
    with (package / name).open("a") as source:
        source.write("# edited\n")
    assert hashes_of(package) == before


@pytest.mark.parametrize(
    ("folder", "rooms"),
    [("potential", set(PARTS)), ("md", {"md"}), ("md/ensembles", {"md"}), ("training/kernels", {"training"})],
)
def test_hash_changes_with_new_moved_and_renamed_sources(package, folder, rooms):
    hashes = [hashes_of(package)]
    (package / folder / "more.py").touch()
    hashes.append(hashes_of(package))
    (package / folder / "more.py").rename(package / folder / "other.py")
    hashes.append(hashes_of(package))
    for one, other in itertools.combinations(hashes, 2):
        assert changed(one, other) == rooms
    # text that has moved from one file to the next is another source
    (package / folder / "a.py").write_text("x = 1\ny = 2\n")
    (package / folder / "b.py").write_text("")
    before = hashes_of(package)
    (package / folder / "a.py").write_text("x = 1\n")
    (package / folder / "b.py").write_text("y = 2\n")
    assert changed(before, hashes_of(package)) == rooms


# what compiles a function
COMPILED = {"kernel_jit", "inlined", "njit", "intrinsic", "overload"}


def words(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }


def foreign_names(tree, path, room):
    """Names that a module has from modules of the package that are no sources of a room, also by assignment."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            for entry in node.names:
                files = [folder.with_suffix(".py"), folder / f"{entry.name}.py", folder / "__init__.py"]
                source = next(file for file in files if file.is_file())
                if source.relative_to(PACKAGE).as_posix() not in covered(room):
                    found.add(entry.asname or entry.name)
    for node in tree.body:
        if isinstance(node, ast.Assign) and found & words(node.value):
            found |= {name for target in node.targets for name in words(target)}
    return found


def test_kernels_are_made_of_the_sources_of_their_room_only():
    """What a compiled function takes from elsewhere could change without the hash: there must be nothing."""
    compiled = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text())
        functions = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and COMPILED & {word for d in node.decorator_list for word in words(d)}
        ]
        if not functions:
            continue
        compiled += len(functions)
        room = next((room for room in ("training", "md") if name.startswith(room)), "potential")
        assert name in covered(room), f"{name} has kernels, but is no source of the room {room}"
        foreign = foreign_names(tree, path, room)
        for function in functions:
            found = foreign & words(function)
            assert not found, f"{name}: {function.name} uses {found} from outside the room {room}"
    assert compiled > 100


def test_names_from_outside_a_room_are_found():
    # the test of the test above
    path = PACKAGE / "md" / "toy.py"
    tree = ast.parse(
        "from ..hyper import MAX_LABEL as most\nfrom ..potential.simd import LANES\nfrom .state import inlined\n"
        "from . import steps\nfrom .. import errors\nwide = 2 * most\nown = LANES\n"
    )
    assert foreign_names(tree, path, "md") == {"most", "wide", "errors"}
    assert foreign_names(tree, path, "potential") == {"most", "wide", "errors", "inlined", "steps"}


# ---- files of single kernels


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Kernels of this test are kept here."""
    monkeypatch.setattr(cache, "cache_directory", lambda *room: tmp_path)
    return tmp_path


def make_kernel(*key, step=1):
    @kernel_jit(*key)
    def add(x):
        return x + step

    return add


def hits_and_misses(kernel):
    return sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())


def test_kernels_are_found_again_by_key_and_argument_types(folder):
    first = make_kernel("a", step=1)
    assert (first(1), first(1.5)) == (2, 2.5)
    assert hits_and_misses(first) == (0, 2)
    # what the function closes over must be in the key: it is not looked at
    again = make_kernel("a", step=5)
    assert (again(1), again(1.5)) == (2, 2.5)
    assert hits_and_misses(again) == (2, 0)
    other = make_kernel("b", step=5)
    assert other(1) == 6
    assert hits_and_misses(other) == (0, 1)
    assert len(list(folder.iterdir())) == 3
    assert all(path.suffix == ".pickle" for path in folder.iterdir())


@pytest.mark.parametrize("change", ["numba", "python", "processor"])
def test_other_versions_and_processors_have_their_own_kernels(folder, monkeypatch, change):
    make_kernel("a")(1)
    if change == "numba":
        monkeypatch.setattr(numba, "__version__", "0.0")
    elif change == "python":
        monkeypatch.setattr(sys, "version", "3.99")
    else:
        codegen = type(numba.core.registry.cpu_target.target_context.codegen())
        monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("another", "processor", ""))
    kernel = make_kernel("a")
    assert kernel(1) == 2
    assert hits_and_misses(kernel) == (0, 1)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "unknown class"])
def test_a_damaged_file_is_compiled_again_and_replaced(folder, damage):
    make_kernel("a")(1)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a pickle",
            "truncated": content[: len(content) // 2],
            "unknown class": b"cno_such_module\nThing\n.",
        }[damage]
    )
    kernel = make_kernel("a")
    assert kernel(1) == 2
    assert hits_and_misses(kernel) == (0, 1)
    assert list(folder.iterdir()) == [path]
    repaired = make_kernel("a")
    assert repaired(1) == 2
    assert hits_and_misses(repaired) == (1, 0)


def test_a_directory_that_disappears_does_no_harm(folder, monkeypatch):
    monkeypatch.setattr(cache, "cache_directory", lambda *room: folder / "gone")
    assert make_kernel("a")(1) == 2


def test_a_full_disk_leaves_no_partial_files(folder, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert make_kernel("a")(1) == 2
    assert list(folder.iterdir()) == []


def test_files_can_be_read_by_the_owner_only(folder):
    make_kernel("a")(1)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert isinstance(pickle.loads(path.read_bytes()), tuple)


@pytest.mark.parametrize(
    ("module", "room"),
    [
        ("ase_nepcg.potential.nep", "potential"),
        ("ase_nepcg.md.loop", "md"),
        ("ase_nepcg.md.observers.rdf", "md"),
        ("ase_nepcg.training.kernels.basis", "training"),
        ("__main__", "potential"),
    ],
)
def test_kernels_are_kept_in_the_room_of_their_module(tmp_path, monkeypatch, module, room):
    for one in PARTS:
        (tmp_path / one).mkdir()
    monkeypatch.setattr(cache, "cache_directory", lambda room: tmp_path / room)

    def add(x):
        return x + 1

    add.__module__ = module
    assert kernel_jit("a")(add)(1) == 2
    assert [path.parent.name for path in tmp_path.glob("*/*.pickle")] == [room]


# ---- the directory


@pytest.fixture
def base(tmp_path, monkeypatch):
    """NUMBA_CACHE_DIR."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def find_directory(*room):
    # past the memory of the first answer
    return cache.cache_directory.__wrapped__(*room)


def test_directory_is_that_of_numba_then_of_xdg_then_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    name = Path("ase_nepcg", f"kernels-{cache.source_hash()}")
    assert find_directory() == tmp_path / "numba" / name
    monkeypatch.setattr(config, "CACHE_DIR", "")
    assert find_directory() == tmp_path / "xdg" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert find_directory() == tmp_path / "home" / ".cache" / name
    assert (tmp_path / "home" / ".cache" / name).is_dir()


def test_each_room_has_a_directory_of_its_own(base):
    folders = {room: find_directory(room) for room in PARTS}
    assert folders == {room: base / "ase_nepcg" / f"kernels-{cache.source_hash(room)}" for room in PARTS}
    assert len(set(folders.values())) == 3
    assert all(folder.is_dir() for folder in folders.values())
    assert find_directory() == folders["potential"]


@pytest.mark.skipif(os.name != "posix", reason="no permissions of this kind")
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_directories_are_private_whatever_the_umask(base, mask):
    old = os.umask(mask)
    try:
        folder = find_directory()
    finally:
        os.umask(old)
    for path in (folder, folder.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.name != "posix", reason="no permissions of this kind")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("which", ["parent", "folder"])
def test_a_directory_that_others_can_write_to_is_refused(base, which, mode):
    folder = find_directory()
    refused = folder.parent if which == "parent" else folder
    refused.chmod(mode)
    with pytest.warns(RuntimeWarning, match=f"{refused} can be written to by others"):
        assert find_directory() is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of this kind")
def test_a_directory_of_somebody_else_is_refused(base, monkeypatch):
    find_directory()
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert find_directory() is None


@pytest.mark.skipif(os.name != "posix", reason="no permissions of this kind")
def test_a_read_only_directory_is_noticed(base, monkeypatch):
    if os.getuid() == 0:
        # nothing is read-only for root

        def refuse(*_, **__):
            raise PermissionError("read-only")

        monkeypatch.setattr(Path, "mkdir", refuse)
    base.chmod(0o500)
    try:
        with pytest.warns(RuntimeWarning, match="cannot be kept on disk"):
            assert find_directory() is None
    finally:
        base.chmod(0o700)


def test_no_home_at_all_is_a_warning(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(RuntimeWarning, match="Could not determine home"):
        assert find_directory() is None


def test_kernels_work_without_a_directory(monkeypatch):
    monkeypatch.setattr(cache, "cache_directory", lambda *room: None)
    kernel = make_kernel("a")
    assert kernel(1) == 2
    assert hits_and_misses(kernel) == (0, 1)


def test_kernels_of_old_sources_are_removed_when_not_used_for_long(base):
    parent = base / "ase_nepcg"
    days = {"kernels-old": 31, "kernels-recent": 29, "other-old": 31}
    for name, age in days.items():
        (parent / name).mkdir(parents=True, mode=0o700)
        (parent / name / "kernel.pickle").touch()
        when = time.time() - age * 86400
        os.utime(parent / name, (when, when))
    parent.chmod(0o700)
    folder = find_directory()
    left = {path.name for path in parent.iterdir()}
    assert left == {"kernels-recent", "other-old", folder.name}
    # using the directory makes it young again
    os.utime(folder, (1, 1))
    assert find_directory() == folder
    assert time.time() - folder.stat().st_mtime < 100


def test_kernels_of_other_keys_have_other_names():
    # machine code is looked up by name, and the counter in it may be the same in two processes
    names = set()
    for key in ((1,), (2,), (2, "a")):

        def kernel(x):
            return x

        dispatcher = cache.kernel_jit(*key)(kernel)
        names.add(dispatcher.py_func.__qualname__)
    assert len(names) == 3
