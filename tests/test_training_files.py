"""``loss.out``, the files of predictions, batches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ase_nepcg import NepCGError, NEPModel, read_dataset
from ase_nepcg.potential.evaluate import Evaluator, Geometry
from ase_nepcg.training import files
from ase_nepcg.training.files import (
    LOSS_COLUMNS,
    OUT_FILES,
    OutputFileError,
    append_loss,
    batches,
    loss_line,
    read_loss,
    read_out,
    truncate_loss,
    write_predictions,
)
from ase_nepcg.training.targets import VOIGT, Targets

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")

TRAIN = {"energy": 0.00189, "force": 0.106, "virial": 0.0}
#: the first line that the reference wrote for PbTe
FIRST = (
    "100     0.15328    0.02081    0.02458    0.00189      0.10600      0.00000      0.00000      0.00000      "
    "0.00000      \n"
)


def lines(*generations) -> str:
    return "".join(loss_line(g, 1 / g, 0.1, 0.2, TRAIN, dict.fromkeys(TRAIN, 2 / g)) for g in generations)


def steps(path) -> list[int]:
    return read_loss(path)["step"].tolist()


# ---- loss.out -----------------------------------------------------------------------------------------------------


def test_line_is_that_of_the_reference():
    assert loss_line(100, 0.15328, 0.02081, 0.02458, TRAIN) == FIRST


def test_wide_numbers_stay_apart(tmp_path):
    path = tmp_path / "loss.out"
    train = {"energy": 123456789.0, "force": np.inf, "virial": np.nan}
    append_loss(path, loss_line(10_000_000, 1e9, 0.0, 12345.67891, train, TRAIN))
    found = {name: column.tolist() for name, column in read_loss(path).items()}
    assert found["step"] == [10_000_000]
    assert (found["total"], found["l2"], found["energy"]) == ([1e9], [12345.67891], [123456789.0])
    assert found["force"] == [np.inf]
    assert np.isnan(found["virial"]).all()
    assert found["force_test"] == [0.106]


def test_columns(tmp_path):
    path = tmp_path / "loss.out"
    append_loss(path, lines(100))
    append_loss(path, lines(200, 300))
    found = read_loss(path)
    assert tuple(found) == LOSS_COLUMNS
    assert found["step"].dtype.kind == "i"
    assert found["step"].tolist() == [100, 200, 300]
    assert found["total"].tolist() == [0.01, 0.005, 0.00333]
    assert found["virial_test"].tolist() == [0.02, 0.01, 0.00667]
    path.write_text("")
    assert all(column.shape == (0,) for column in read_loss(path).values())


@pytest.mark.parametrize(
    ("before", "generation", "after"),
    [
        ((100, 200, 300, 400), 200, (100, 200)),
        ((100, 200, 300, 400), 250, (100, 200)),
        ((100, 200), 200, (100, 200)),
        ((100, 200), 50, ()),
        # the lines of an earlier run are no business of this one
        ((100, 200, 900, 100, 200, 300), 200, (100, 200, 900, 100, 200)),
        ((500, 900, 100, 200), 0, (500, 900)),
    ],
)
def test_truncation(tmp_path, before, generation, after):
    path = tmp_path / "loss.out"
    append_loss(path, lines(*before))
    truncate_loss(path, generation)
    assert path.read_text() == lines(*after)


@pytest.mark.parametrize("length", [1, 8, 60, 112, 113, 119, 120])
def test_a_line_that_was_cut_off_is_removed(tmp_path, length):
    path = tmp_path / "loss.out"
    complete = lines(300)
    append_loss(path, lines(100, 200) + complete[:length])
    whole = len(complete.rstrip()) <= length
    assert steps(path) == [100, 200, 300][: 2 + whole]
    truncate_loss(path, 300)
    kept = complete[:length].removesuffix("\n") + "\n"
    assert path.read_text() == lines(100, 200) + kept * whole
    append_loss(path, lines(400))
    assert steps(path)[-1] == 400


def test_nothing_to_truncate(tmp_path):
    path = tmp_path / "loss.out"
    truncate_loss(path, 10)
    assert not path.exists()
    append_loss(path, lines(100))
    before = path.stat()
    truncate_loss(path, 100)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (FIRST + "1 2 3\n" + FIRST, 2, "expected 10 numbers, got 3"),
        ("a " * 10 + "\n", 1, "expected 10 numbers, got 'a a"),
        ("1.5 " * 10 + "\n", 1, "expected the number of a generation first, got '1.5'"),
        ("nan " * 10 + "\n", 1, "expected the number of a generation first, got 'nan'"),
        ("\n", 1, "expected 10 numbers, got 0"),
        ("é\n", 1, "expected 10 numbers, got 1"),
    ],
)
def test_other_files_are_refused_and_left_alone(tmp_path, text, line, message):
    path = tmp_path / "loss.out"
    path.write_text(text, encoding="utf-8")
    for use in (read_loss, lambda path: truncate_loss(path, 0)):
        with pytest.raises(OutputFileError) as caught:
            use(path)
        assert f"{path}, line {line}: {message}" in str(caught.value)
        assert isinstance(caught.value, NepCGError)
    assert path.read_text(encoding="utf-8") == text


@needs_data
@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_published_loss_is_written_again_byte_by_byte(tmp_path, name):
    found = read_loss(DATA / name / "loss.out")
    path = tmp_path / "loss.out"
    for row in zip(*found.values(), strict=True):
        train, test = (dict(zip(TRAIN, row[k : k + 3], strict=True)) for k in (4, 7))
        append_loss(path, loss_line(*row[:4], train, test))
    assert path.read_bytes() == (DATA / name / "loss.out").read_bytes()


# ---- predictions --------------------------------------------------------------------------------------------------


@pytest.fixture
def three(rng):
    """Targets and predictions of frames with 2, 1 and 3 sites; the second one has neither energy nor virial."""
    n_sites = np.array([2, 1, 3])
    targets = SimpleNamespace(
        n_sites=n_sites,
        first=np.array([0, 2, 3, 6]),
        volumes=np.array([20.0, 30.0, 40.0]),
        energies=rng.normal(size=3),
        forces=rng.normal(size=(6, 3)),
        virials=rng.normal(size=(3, 6)),
    )
    targets.energies[1] = np.nan
    targets.virials[1] = np.nan
    predictions = SimpleNamespace(
        energies=rng.normal(size=3), forces=rng.normal(size=(6, 3)), virials=rng.normal(size=(3, 6))
    )
    return targets, predictions


def twin(targets, predictions, order) -> dict[str, str]:
    """The text of the files, number by number."""
    text = dict.fromkeys(OUT_FILES, "")
    for s in order:
        known = not np.isnan(targets.virials[s, 0])
        factor = targets.n_sites[s] / targets.volumes[s] * 160.2177
        rows = {
            "energy": [[predictions.energies[s], targets.energies[s]]],
            "force": [
                [*predictions.forces[i], *targets.forces[i]] for i in range(targets.first[s], targets.first[s + 1])
            ],
            "virial": [[*predictions.virials[s], *(targets.virials[s] if known else [-1e6] * 6)]],
            "stress": [[*predictions.virials[s] * factor, *(targets.virials[s] * factor if known else [-1e6] * 6)]],
        }
        for name in text:
            text[name] += "".join(" ".join(f"{np.float32(x):g}" for x in row) + "\n" for row in rows[name])
    return text


@pytest.mark.parametrize("order", [None, [2, 0, 1], [1]])
def test_files_of_predictions(tmp_path, three, order):
    paths = write_predictions(tmp_path, "test", *three, order)
    expected = twin(*three, [0, 1, 2] if order is None else order)
    assert paths == [str(tmp_path / f"{name}_test.out") for name in OUT_FILES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}_test.out" for name in OUT_FILES)
    for name, text in expected.items():
        assert (tmp_path / f"{name}_test.out").read_text() == text
    assert "nan" in expected["energy"]
    assert "-1e+06 -1e+06 -1e+06 -1e+06 -1e+06 -1e+06\n" in expected["stress"]


def test_many_rows(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(files, "_ROWS_AT_ONCE", 7)
    n = 50
    targets = SimpleNamespace(
        n_sites=np.ones(n, int),
        first=np.arange(n + 1),
        volumes=np.ones(n),
        energies=rng.normal(size=n),
        forces=1e45 * rng.normal(size=(n, 3)),
        virials=rng.normal(size=(n, 6)),
    )
    write_predictions(tmp_path, "a", targets, targets)
    predicted, reference = read_out(tmp_path / "virial_a.out")
    assert np.allclose(predicted, targets.virials, rtol=1e-5)
    assert np.array_equal(predicted, reference)
    # beyond single precision
    assert np.isinf(read_out(tmp_path / "force_a.out")[0]).all()


def test_reading_predictions(tmp_path, three):
    targets, predictions = three
    write_predictions(str(tmp_path), "a", targets, predictions)
    for name, wanted in (("energy", "energies"), ("force", "forces"), ("virial", "virials")):
        predicted, reference = read_out(tmp_path / f"{name}_a.out")
        n = len(predicted)
        assert np.allclose(predicted, getattr(predictions, wanted).reshape(n, -1), rtol=1e-5)
        assert np.allclose(reference, getattr(targets, wanted).reshape(n, -1), rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected 2, 6 or 12 numbers, got 0"),
        ("1 2 3\n", 1, "expected 2, 6 or 12 numbers, got 3"),
        ("1 2\n1 2\n1\n", 3, "expected 2 numbers, got 1"),
        ("1 2\n1 x\n", 2, "expected 2 numbers, got '1 x'"),
    ],
)
def test_other_files_are_no_predictions(tmp_path, text, line, message):
    path = tmp_path / "energy_a.out"
    path.write_text(text)
    with pytest.raises(OutputFileError, match=f"line {line}: {message}"):
        read_out(path)


# Largest deviation of a float64 evaluation from the files of the reference, which computes in single precision and
# prints six digits: eV/atom, eV/Å, eV/atom, GPa. Those of PbTe were found by an independent program.
DEVIATIONS = {
    "pbte": {"energy": 6.5e-6, "force": 2.1e-5, "virial": 5.0e-6, "stress": 9.0e-6},
    "mos2": {"energy": 7.0e-6, "force": 3.5e-5, "virial": 5.5e-6, "stress": 9.5e-6},
}


@needs_data
@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_published_predictions(tmp_path, name):
    model = NEPModel.read(DATA / name / "nep.txt")
    targets = Targets.from_frames(read_dataset(DATA / name / "train.xyz"), model.species)
    evaluator = Evaluator(model)
    results = [
        evaluator(Geometry(targets.positions[k], targets.cells[s], targets.pbc[s], targets.types[k]))
        for s, k in ((s, targets.sites(s)) for s in range(len(targets)))
    ]
    predictions = SimpleNamespace(
        energies=np.array([result.energies.mean() for result in results]),
        forces=np.concatenate([result.forces for result in results]),
        virials=np.array([[result.virial[i] / len(result.energies) for i in VOIGT] for result in results]),
    )
    write_predictions(tmp_path, "train", targets, predictions)

    to_gpa = (160.2177 * targets.n_sites / targets.volumes)[:, None]
    exact = {
        "energy": predictions.energies[:, None],
        "force": predictions.forces,
        "virial": predictions.virials,
        "stress": predictions.virials * to_gpa,
    }
    for quantity, n_columns in OUT_FILES.items():
        file = f"{quantity}_train.out"
        ours, theirs = (np.loadtxt(folder / file, dtype=str) for folder in (tmp_path, DATA / name))
        assert ours.shape == theirs.shape
        half = n_columns // 2
        predicted, reference = read_out(DATA / name / file)
        assert np.abs(exact[quantity] - predicted).max() <= DEVIATIONS[name][quantity]
        assert np.allclose(read_out(tmp_path / file)[0], exact[quantity], rtol=6e-6, atol=0)
        # the references digit by digit, but for ties in what was calculated from them in single precision
        differ = ours[:, half:] != theirs[:, half:]
        assert differ.sum() <= {("mos2", "energy"): 2, ("mos2", "stress"): 9}.get((name, quantity), 0)
        last_digit = 10.0 ** (np.floor(np.log10(np.abs(reference[differ]))) - 5)
        assert (np.abs(read_out(tmp_path / file)[1] - reference)[differ] <= 1.01 * last_digit).all()
    if name == "pbte":
        assert np.isnan(read_out(tmp_path / "virial_train.out")[1]).all()


# ---- batches ------------------------------------------------------------------------------------------------------


def slow_batches(energies, size):
    n_batches = int(np.ceil(len(energies) / size))
    if size >= len(energies):
        return [list(range(len(energies)))]
    order = sorted(range(len(energies)), key=lambda s: energies[s])
    result = [[] for _ in range(n_batches)]
    for position, s in enumerate(order):
        result[position % n_batches].append(s)
    return result


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 10, 11, 1000])
def test_batches(rng, size):
    # rounded: equal energies keep their order
    energies = rng.normal(size=10).round(0)
    found = batches(energies, size)
    assert [batch.tolist() for batch in found] == slow_batches(energies.tolist(), size)
    sizes = [len(batch) for batch in found]
    assert sum(sizes) == 10
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= size


def test_batches_of_frames_without_energy():
    found = batches([np.nan, 3.0, np.nan, 1.0, 2.0], 3)
    assert [batch.tolist() for batch in found] == [[3, 1, 2], [4, 0]]
    with pytest.raises(ValueError, match="batch: expected 1 to"):
        batches([1.0], 0)
