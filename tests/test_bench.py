"""``nepcg bench``: systems, moves, the processes that are timed, the table and the JSON file."""

import json
import re
from importlib.util import find_spec

import ase.io
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from ase_nepcg import NEP, NEPModel, bench, bench_report
from ase_nepcg.bench import BenchError
from ase_nepcg.bench_report import OURS, format_report
from ase_nepcg.bench_systems import DATA_SYSTEMS, SYSTEMS, System, bead_water
from ase_nepcg.cli import main


def quiet(text):
    pass


@pytest.fixture(scope="module")
def tiny():
    return bead_water(64)


@pytest.fixture
def files(tiny, tmp_path):
    """Options that name a small model and structure."""
    tiny.model.write(tmp_path / "nep.txt")
    ase.io.write(tmp_path / "drop.xyz", tiny.atoms)
    return ["--model", str(tmp_path / "nep.txt"), "--structure", str(tmp_path / "drop.xyz")]


# ---- systems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sites", "neurons"),
    [("bead-water", 4096, 10), ("two-species", 2592, 100), ("metal", 2048, 80), ("salt", 2000, 30)],
)
def test_named_systems(name, sites, neurons):
    system = SYSTEMS[name]()
    assert system.name == name
    assert len(system.atoms) == sites
    assert system.model.neurons == neurons
    assert set(system.atoms.symbols) <= set(system.model.species)
    assert system.atoms.pbc.all()


def test_all_named_systems_are_tested():
    assert set(SYSTEMS) == {"bead-water", "two-species", "metal", "salt"}


@pytest.mark.parametrize("n", [1, 8, 30, 1000, 10_000])
def test_bead_water_of_any_size(n):
    atoms = bead_water(n).atoms
    assert len(atoms) == n
    assert n / atoms.get_volume() == pytest.approx(0.0334)
    if n in (8, 1000):
        assert np.ptp(atoms.cell.lengths()) == pytest.approx(0, abs=1e-12)


def test_water_molecules_are_rigid_and_apart():
    atoms = SYSTEMS["two-species"]().atoms
    centres, first, second = atoms.positions.reshape(-1, 3, 3).transpose(1, 0, 2)
    for hydrogen in (first, second):
        assert np.linalg.norm(hydrogen - centres, axis=1) == pytest.approx(0.97)
    angle = np.degrees(np.arccos(((first - centres) * (second - centres)).sum(axis=1) / 0.97**2))
    assert angle == pytest.approx(104.5)
    # the O-H bonds are the shortest distances
    assert len(neighbor_list("i", atoms, 0.96)) == 0
    assert len(neighbor_list("i", atoms, 0.98)) >= 4 * len(centres)


def test_published_systems(tmp_path):
    """The layout of the data folder, with stand-ins for the files."""
    for folder in ("models", "pbte"):
        (tmp_path / folder).mkdir()
    drop = bead_water(8).atoms
    ase.io.write(tmp_path / "models" / "water_216.xyz", drop, format="extxyz")
    ase.io.write(tmp_path / "pbte" / "train.xyz", [drop, drop[:4]], format="extxyz")
    systems = {name: build(tmp_path) for name, build in DATA_SYSTEMS.items()}
    assert {name: len(system.atoms) for name, system in systems.items()} == {"water": 32, "gold": 2048, "PbTe": 64}
    models = {name: system.model.relative_to(tmp_path).as_posix() for name, system in systems.items()}
    assert models == {
        "water": "models/water_OH_nep4.txt",
        "gold": "models/UNEP-v1_16metals_nep4_zbl.txt",
        "PbTe": "pbte/nep.txt",
    }


# ---- moves --------------------------------------------------------------------------------------------------------


def test_moves_rebuild_the_list_or_leave_it(tiny):
    atoms = tiny.atoms.copy()
    atoms.calc = NEP(tiny.model, threads=1)
    atoms.get_forces()
    near = atoms.calc._evaluator.neighbors
    moves = bench._Moves(atoms)
    for kind, builds in (("small", 0), ("rebuild", 1)):
        # the first one ends the moves of the other kind
        atoms.positions = getattr(moves, kind)()
        atoms.get_forces()
        for _ in range(3):
            before = near.builds
            atoms.positions = getattr(moves, kind)()
            atoms.get_forces()
            assert near.builds - before == builds


@pytest.mark.parametrize("name", SYSTEMS)
def test_large_moves_leave_sites_apart(name):
    atoms = SYSTEMS[name]().atoms
    shortest = neighbor_list("d", atoms, 3.0).min()
    moves = bench._Moves(atoms)
    one, two = moves.rebuild(), moves.rebuild()
    assert 0.9 < np.linalg.norm(one - two, axis=1).max() <= 1.0 + 1e-12
    for positions in (one, two):
        atoms.positions = positions
        assert len(neighbor_list("i", atoms, 0.8 * shortest)) == 0


@pytest.mark.parametrize("cell", [None, [[0, 9, 0], [9, 0, 0], [1, 2, 12]]])
def test_large_moves_without_a_cubic_cell(tiny, cell):
    atoms = tiny.atoms.copy()
    atoms.set_cell(cell if cell is not None else np.zeros((3, 3)))
    atoms.pbc = cell is not None
    moves = bench._Moves(atoms)
    assert np.linalg.norm(moves.rebuild() - moves.rebuild(), axis=1).max() > 0.7


def test_small_moves_are_the_same_for_everyone(tiny):
    first, second = bench._Moves(tiny.atoms), bench._Moves(tiny.atoms)
    one = first.small()
    assert np.array_equal(one, second.small())
    assert not np.array_equal(one, first.small())
    assert (one - tiny.atoms.positions).std() == pytest.approx(0.001, rel=0.3)


# ---- comparison ---------------------------------------------------------------------------------------------------


def test_bench_command(files, tmp_path, capsys):
    path = tmp_path / "out.json"
    options = ["--peers", "none", "--repeat", "2", "--threads", "1,2", "--json", str(path)]
    assert main(["bench", *files, *options]) == 0
    out, err = capsys.readouterr()
    assert "drop: 64 sites, 2 threads" in err
    report = json.loads(path.read_text())
    assert [row["threads"] for row in report["comparison"]] == [1, 2]
    for row in report["comparison"]:
        assert (row["system"], row["sites"], row["calculator"], row["status"]) == ("drop", 64, OURS, "ok")
        for kind in ("small", "rebuild"):
            assert 0 < row[kind]["best"] <= row[kind]["median"]
            assert row[f"ratio_{kind}"] == 1
        assert row["max_force_deviation"] == 0
        assert row["first_s"] > 0
    assert report["machine"]["lanes"] in (2, 4, 8)
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["versions"]["numba"]
    assert out == format_report(report) + "\n"
    assert report["machine"]["cpu"] in out
    assert len([line for line in out.splitlines() if re.match(r"drop +64 +[12] +ase_nepcg +\d", line)]) == 2


def test_threads_reach_the_process():
    environment = bench._environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "3"


def test_absent_peer(tiny, monkeypatch):
    monkeypatch.setitem(bench.PEERS, "absent", ("no-such-distribution", "no_such_module"))
    ours, absent = bench.compare([tiny], ["absent"], [1], 1, say=quiet)
    assert ours["status"] == "ok"
    assert absent == {"system": tiny.name, "sites": 64, "threads": 1, "calculator": "absent", "status": "not installed"}


def test_peer_that_fails(tiny, monkeypatch):
    monkeypatch.setitem(bench.PEERS, "broken", ("numpy", "numpy"))
    said = []
    ours, broken = bench.compare([tiny], ["broken"], [1], 1, say=said.append)
    assert ours["ratio_small"] == 1
    assert broken["status"] == "ValueError: no calculator 'broken'"
    assert "small" not in broken
    assert said[-1] == "  broken: ValueError: no calculator 'broken'"


def test_own_failure_is_an_error(tiny):
    atoms = tiny.atoms.copy()
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(BenchError, match=f"^{OURS}: CalculationFailed: .*same place"):
        bench.compare([System("overlap", atoms, tiny.model)], [], [1], 1, say=quiet)


@pytest.mark.parametrize("peer", bench.PEERS)
def test_peers_agree(tiny, peer):
    if find_spec(bench.PEERS[peer][1].split(".")[0]) is None:
        pytest.skip(f"{peer} is not installed")
    _, row = bench.compare([tiny], [peer], [1], 1, say=quiet)
    assert row["status"] == "ok"
    assert row["max_force_deviation"] < 1e-9
    assert row["ratio_small"] > 0


def test_process_that_dies(tiny, tmp_path):
    bench._prepare(tiny, tmp_path)
    with bench._Worker(OURS, tmp_path, 1) as worker:
        worker.receive()
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(BenchError, match="its process ended with status -9"):
            worker.call("small")


def test_turns():
    assert bench._turns(1) == [1]
    assert bench._turns(5) == [5]
    assert bench._turns(12) == [5, 5, 2]


# ---- the other measurements ---------------------------------------------------------------------------------------


def test_scaling():
    result = bench.scaling(sizes=(64, 128), huge=216, repeat=2, say=quiet)
    assert list(result["sizes"]) == ["64", "128"]
    for kind, ratio in result["ratio"].items():
        assert ratio == result["sizes"]["128"][kind]["best"] / result["sizes"]["64"][kind]["best"]
    # a Python process with numba in it
    assert 5e7 < result["memory"]["peak_bytes"] < 5e9
    assert result["memory"]["sites"] == 216


def test_busy(tiny):
    result = bench.busy(repeat=2, system=tiny, say=quiet)
    for name in ("idle", "busy"):
        costs = result[name]["threads"]
        assert result[name]["speedup"] == costs["1"]["median"] / costs["2"]["median"] > 0


def test_timed_process():
    inside, process = bench._timed_process(bench._IMPORT.format("import ase_nepcg"), {})
    assert 0 < inside < process
    with pytest.raises(BenchError, match=r"status 1: .*ZeroDivisionError"):
        bench._timed_process("1 / 0", {})


@pytest.mark.slow
def test_startup():
    result = bench.startup(say=quiet)
    assert 0 < result["import_s"] < result["warm_first_force_s"] < result["cold_first_force_s"]
    assert result["warm_first_force_s"] < result["warm_process_s"]


# ---- report -------------------------------------------------------------------------------------------------------


def test_report_of_everything():
    cost = {"best": 1.5, "median": 2.0}
    row = {"system": "a", "sites": 10, "threads": 1, "calculator": OURS, "status": "ok", "max_force_deviation": 0.0}
    row |= {"small": cost, "rebuild": cost, "ratio_small": 1.0, "ratio_rebuild": 1.0}
    other = row | {"calculator": "peer", "ratio_small": 12.34, "max_force_deviation": 3.2e-13}
    absent = {"system": "a", "sites": 10, "threads": 1, "calculator": "gone", "status": "not installed"}
    threads = {"threads": {"1": cost, "2": {"best": 0.8, "median": 1.0}}, "speedup": 2.0}
    report = {
        "machine": {"cpu": "A CPU", "cores": 2, "lanes": 8, "versions": {"numpy": "2"}, "peers": {"gone": None}},
        "repeat": 3,
        "comparison": [row, other, absent],
        "scaling": {
            "threads": 1,
            "sizes": {"10": {"small": cost, "rebuild": cost}, "20": {"small": cost, "rebuild": cost}},
            "ratio": {"small": 1.0, "rebuild": 1.0},
            "memory": {"sites": 30, "peak_bytes": 1.25e9},
        },
        "startup": {
            "import_s": 0.01,
            "import_nep_s": 0.3,
            "cold_first_force_s": 9.0,
            "cold_process_s": 9.5,
            "warm_first_force_s": 1.0,
            "warm_process_s": 1.2,
        },
        "busy": {"cores": 2, "idle": threads, "busy": threads},
    }
    text = format_report(report)
    assert text.startswith("A CPU, 2 cores, 8 doubles per vector\nnumpy 2\ngone (not installed)\n")
    assert re.search(r"^a +10 +1 +peer +1\.50 +\(2\.00\) +12\.3x +1\.50 +\(2\.00\) +1\.0x +3\.2e-13$", text, re.M)
    assert re.search(r"^a +10 +1 +gone +not installed$", text, re.M)
    assert "peak memory with 30 beads: 1.25 GB" in text
    assert re.search(r"^first force, cold cache +9\.00 s +9\.50 s$", text, re.M)
    assert re.search(r"^one core busy +2\.00 +1\.00 +2\.00$", text, re.M)


def test_columns_line_up():
    text = bench_report._aligned([["name", "n"], ["a", "5"], ["longer", "123"], ["short: any text"]])
    assert text.splitlines() == ["name      n", "a         5", "longer  123", "short: any text"]


# ---- wrong usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "bead-watr"], r"unknown system 'bead-watr'; did you mean 'bead-water'\?"),
        (["--systems", "gold"], "unknown system 'gold'"),
        (["--peers", "calorin"], r"unknown peer 'calorin'; did you mean 'calorine'\?"),
        (["--repeat", "0"], "expected positive integers separated by commas, got '0'"),
        (["--repeat", "1,2"], "--repeat: expected one number"),
        (["--threads", "1;2"], "expected positive integers separated by commas, got '1;2'"),
        (["--model", "nep.txt"], "--model and --structure belong together"),
        (["--data", "no/such/folder"], "--data: expected a folder that holds models/"),
        (["--scalin"], r"unknown option '--scalin'; did you mean '--scaling'\?"),
    ],
)
def test_wrong_usage(options, message, capsys):
    assert main(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(f"nepcg bench: error: {message}", err), err


def test_folder_of_json_file(files, capsys):
    assert main(["bench", *files, "--json", "no/such/folder/out.json"]) == 2
    assert "--json: the folder of 'no/such/folder/out.json' does not exist" in capsys.readouterr().err


def test_bad_model_file(files, tmp_path, capsys):
    (tmp_path / "nep.txt").write_text("nep4 1 O\n")
    assert main(["bench", *files]) == 1
    assert "nep.txt, line 2: expected the 'cutoff' line" in capsys.readouterr().err


def test_what_is_compared():
    """The other measurements replace the comparison unless it is asked for."""

    def names(*options):
        from ase_nepcg.cli import Parser

        parser = Parser()
        bench.Bench.add_arguments(parser)
        return len(bench._builders(parser.parse(options)))

    assert names() == len(SYSTEMS)
    assert names("--scaling") == names("--startup") == names("--busy") == 0
    assert names("--scaling", "--systems", "bead-water") == 1
    assert names("--systems", "bead-water,salt", "--model", "a", "--structure", "b") == 3


def test_data_adds_systems(tmp_path):
    from ase_nepcg.cli import Parser

    (tmp_path / "models").mkdir()
    parser = Parser()
    bench.Bench.add_arguments(parser)
    data = ["--data", str(tmp_path)]
    assert len(bench._builders(parser.parse(data))) == 1 + len(DATA_SYSTEMS)
    (build,) = bench._builders(parser.parse([*data, "--systems", "gold"]))
    assert build().model == tmp_path / "models/UNEP-v1_16metals_nep4_zbl.txt"


def test_model_is_read_before_anything_is_timed(files):
    system = bench._own(files[1], files[3])
    assert system.name == "drop"
    assert len(system.atoms) == 64
    assert NEPModel.read(system.model).species == ("O",)
