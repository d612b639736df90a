"""AMBER trajectories, read by others: scipy always, ASE where netCDF4 is installed."""

import io
import struct
import types

import numpy as np
import pytest
from ase import Atoms, units
from ase.cell import Cell
from ase.geometry import cellpar_to_cell
from scipy.io import netcdf_file

from ase_nepcg.data import water_beads
from ase_nepcg.labels import LabelError, get_labels, set_labels
from ase_nepcg.md import amber
from ase_nepcg.md.outputs import OutputError, open_output

TRICLINIC = np.array([[6.0, 1.0, 0.5], [-0.4, 7.0, 0.2], [0.3, 0.8, 8.0]])


@pytest.fixture
def beads(rng):
    atoms = water_beads(2)
    labels = get_labels(atoms)
    labels[5] = "sixteen-letters!"
    set_labels(atoms, labels, {"WAT": 18.015, "sixteen-letters!": 44.0})
    atoms.set_momenta(rng.normal(size=(8, 3)))
    return atoms


def write(path, frames, times):
    output = open_output(path)
    for atoms, time_ps in zip(frames, times, strict=True):
        output.write(atoms, types.SimpleNamespace(time_ps=time_ps))
    output.close()


def read(path):
    """name -> array of the variables, name -> variable, and the file (closed)."""
    with netcdf_file(path, mmap=False) as file:
        variables = dict(file.variables)
        return {name: variable[:].copy() for name, variable in variables.items()}, variables, file


def test_what_stands_in_the_file(beads, tmp_path):
    other = beads.copy()
    other.positions += 0.25
    other.set_cell(beads.cell * 1.01)
    write(tmp_path / "run.nc", [beads, other], [0.5, 2.25])
    values, variables, file = read(tmp_path / "run.nc")
    assert file.version_byte == 2
    assert (file.Conventions, file.ConventionVersion, file.program) == (b"AMBER", b"1.0", b"ase_nepcg")
    assert dict(file.dimensions) == {
        "frame": None, "spatial": 3, "atom": 8, "cell_spatial": 3, "cell_angular": 3, "label": 5, "letter": 16
    }  # fmt: skip
    assert values["spatial"].tobytes() == b"xyz"
    assert values["cell_spatial"].tobytes() == b"abc"
    assert [row.tobytes() for row in values["cell_angular"]] == [b"alpha", b"beta ", b"gamma"]
    expected = {"time": b"picosecond", "coordinates": b"angstrom", "velocities": b"angstrom/picosecond"}
    expected |= {"cell_lengths": b"angstrom", "cell_angles": b"degree"}
    for name, unit in expected.items():
        assert variables[name].units == unit
        assert variables[name].dimensions[0] == "frame"
    kinds = {name: values[name].dtype.str for name in expected}
    assert kinds == dict.fromkeys(("time", "coordinates", "velocities"), ">f4") | dict.fromkeys(
        ("cell_lengths", "cell_angles"), ">f8"
    )
    assert values["time"].tolist() == [0.5, 2.25]
    for k, atoms in enumerate((beads, other)):
        np.testing.assert_array_equal(values["coordinates"][k], atoms.positions.astype(np.float32))
        np.testing.assert_allclose(values["cell_lengths"][k], atoms.cell.lengths(), rtol=1e-15)
        np.testing.assert_allclose(values["cell_angles"][k], 90, rtol=1e-15)
        # Å/ps: what the convention says comes out after scaling
        speeds = values["velocities"][k] * variables["velocities"].scale_factor
        np.testing.assert_allclose(speeds, atoms.get_velocities() * 1000 * units.fs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variables["velocities"].scale_factor, 20.455, rtol=1e-7)
    np.testing.assert_array_equal(values["atom_types"], np.zeros(8))
    np.testing.assert_array_equal(values["masses"], beads.get_masses())
    assert [row.tobytes().rstrip(b"\0").decode() for row in values["labels"]] == get_labels(beads).tolist()


def test_file_size(beads, tmp_path):
    write(tmp_path / "run.nc", [beads] * 3, [0.0, 1.0, 2.0])
    size = (tmp_path / "run.nc").stat().st_size
    assert size == len(amber.header_of(beads)) + 3 * amber.record_size(8)
    assert amber.record_size(8) == len(amber.record_of(beads, 0.0))
    assert (tmp_path / "run.nc").read_bytes()[:8] == b"CDF\x02" + struct.pack(">i", 3)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_all_numbers_of_sites(n, tmp_path):
    """Padding to multiples of four."""
    atoms = Atoms(f"Ar{n}", positions=np.arange(3.0 * n).reshape(n, 3), cell=[20, 20, 20], pbc=True)
    write(tmp_path / "run.nc", [atoms, atoms], [1.0, 2.0])
    values, _, _ = read(tmp_path / "run.nc")
    np.testing.assert_array_equal(values["coordinates"][1], atoms.positions)
    np.testing.assert_array_equal(values["velocities"], 0.0)
    np.testing.assert_array_equal(values["atom_types"], 18)


@pytest.mark.parametrize(
    "rows", [TRICLINIC, TRICLINIC[[1, 0, 2]], np.diag([-5.0, 6.0, 7.0]), TRICLINIC @ np.diag([1, 1, -1.0])]
)
def test_orientation_keeps_the_geometry(beads, rows, rng):
    """All distances through all periodic images, and all products of velocities, as before; Cell is standard."""
    positions, velocities = rng.normal(size=(2, 5, 3)) * 4
    parameters, turned, speeds = amber.orient(Cell(rows), positions, velocities)
    np.testing.assert_allclose(parameters, Cell(rows).cellpar(), rtol=1e-14)
    standard = cellpar_to_cell(parameters)
    np.testing.assert_allclose(standard[np.triu_indices(3, 1)], 0, atol=1e-12)
    for shift in ([0, 0, 0], [1, 0, 0], [1, -2, 1]):
        before = positions[:, None] - positions + np.array(shift) @ rows
        after = turned[:, None] - turned + np.array(shift) @ standard
        np.testing.assert_allclose(np.linalg.norm(after, axis=-1), np.linalg.norm(before, axis=-1), rtol=1e-12)
        along = np.einsum("ijc,ic->ij", before, velocities), np.einsum("ijc,ic->ij", after, speeds)
        np.testing.assert_allclose(*along, atol=1e-11)
    np.testing.assert_allclose(turned @ np.linalg.inv(standard), positions @ np.linalg.inv(rows), atol=1e-12)


def test_a_cell_that_is_standard_is_left_alone(rng):
    cell = Cell.fromcellpar([5, 6, 7, 80, 95, 110])
    positions = rng.normal(size=(5, 3))
    assert amber.orient(cell, positions)[1] is positions
    parameters, same = amber.orient(Cell.new(), positions)
    assert same is positions
    np.testing.assert_array_equal(parameters, [1, 1, 1, 90, 90, 90])


def test_sheet_that_is_not_along_the_axes(rng):
    """Two cell vectors in the plane of y and z: turned into that of x and y."""
    cell = Cell([[0, 3.0, 0], [0, 1.0, 4.0], [0, 0, 0]])
    positions = rng.normal(size=(5, 3)) * [0.0, 1, 1]
    parameters, turned = amber.orient(cell, positions)
    np.testing.assert_allclose(turned[:, 2], 0, atol=1e-12)
    np.testing.assert_allclose(parameters[:2], [3, np.hypot(1, 4)])


def test_not_periodic(beads, tmp_path):
    beads.pbc = (True, True, False)
    write(tmp_path / "sheet.nc", [beads], [0.0])
    lengths = read(tmp_path / "sheet.nc")[0]["cell_lengths"]
    np.testing.assert_allclose(lengths[0], [*beads.cell.lengths()[:2], 0.0])
    cluster = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3]])
    write(tmp_path / "cluster.nc", [cluster], [0.0])
    values, _, _ = read(tmp_path / "cluster.nc")
    np.testing.assert_array_equal(values["cell_lengths"], 0)
    np.testing.assert_array_equal(values["cell_angles"], 90)


def test_header_is_read_back(beads):
    content = amber.header_of(beads)
    with as_file(content + amber.record_of(beads, 1.0)) as file:
        labels, masses = amber.read_header(file)
    assert (labels == get_labels(beads)).all()
    np.testing.assert_array_equal(masses, beads.get_masses())
    # that of another version of this package is as good
    other = content.replace(amber._version(), b"9.9".ljust(16))
    assert other != content
    with as_file(other) as file:
        assert (amber.read_header(file)[0] == labels).all()


@pytest.mark.parametrize("cut", [3, 10, 100, 400, -1])
def test_headers_that_are_not_read(beads, cut):
    content = amber.header_of(beads)
    with as_file(content[:cut]) as file, pytest.raises(ValueError, match=r"cut short|not a NetCDF-3"):
        amber.read_header(file)
    with as_file(content.replace(b"coordinates", b"coordinatez")) as file, pytest.raises(ValueError, match="layout"):
        amber.read_header(file)


def as_file(content):
    import tempfile

    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


def test_labels_must_fit(beads):
    beads.arrays["bead"][0] = "ä"
    beads.info.clear()
    with pytest.raises(LabelError, match="ASCII"):
        amber.header_of(beads)


def test_append_is_refused_for_other_masses_and_cut_files(beads, tmp_path):
    path = tmp_path / "run.nc"
    write(path, [beads, beads], [0.0, 1.0])
    content = path.read_bytes()
    other = beads.copy()
    other.set_masses([18.0] * 8)
    with pytest.raises(OutputError, match=r"site 0 has mass 18\.015 in the file and 18 in the run"):
        open_output(path, append=True, atoms=other)
    path.write_bytes(content[:-1])
    with pytest.raises(OutputError, match="cut short"):
        open_output(path, append=True, atoms=beads)
    stream = io.BytesIO()
    with netcdf_file(stream, "w", version=2) as file:
        file.createDimension("frame", None)
        file.flush()
        path.write_bytes(stream.getvalue())
    with pytest.raises(OutputError, match="another program or version"):
        open_output(path, append=True, atoms=beads)


def test_half_a_record_is_overwritten(beads, tmp_path):
    """Left by a killed run: the number of frames in the header counts."""
    path = tmp_path / "run.nc"
    write(path, [beads, beads], [0.0, 1.0])
    expected = path.read_bytes()
    path.unlink()
    write(path, [beads], [0.0])
    with open(path, "ab") as file:
        file.write(b"half a record")
    output = open_output(path, append=True)
    output.write(beads, types.SimpleNamespace(time_ps=1.0))
    output.close()
    assert path.read_bytes() == expected


def test_ase_reads_it(beads, tmp_path):
    pytest.importorskip("netCDF4")
    from ase.io.netcdftrajectory import NetCDFTrajectory

    beads.set_cell(TRICLINIC)
    write(tmp_path / "run.nc", [beads, beads], [0.0, 1.0])
    with NetCDFTrajectory(tmp_path / "run.nc") as frames:
        assert len(frames) == 2
        frame = frames[1]
    np.testing.assert_allclose(frame.cell.cellpar(), beads.cell.cellpar(), rtol=1e-12)
    np.testing.assert_allclose(frame.get_all_distances(mic=True), beads.get_all_distances(mic=True), atol=1e-5)
    np.testing.assert_array_equal(frame.get_masses(), beads.get_masses())
    assert frame.pbc.all()
