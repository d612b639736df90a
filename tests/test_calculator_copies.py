"""Copies of a NEP calculator, other processes, threads: always bitwise the same numbers."""

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import joblib
import numba
import numpy as np
import pytest

from ase_nepcg import NEP
from ase_nepcg.labels import set_labels

PATIENCE = 300  # seconds for a process that may have to compile


def results(calc, atoms):
    return [calc.get_property(name, atoms) for name in ("energy", "forces", "stress", "energies", "stresses")]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def frames(many):
    """Six displaced and strained copies of ``many``."""
    found = []
    for seed in range(6):
        frame = many.copy()
        frame.set_cell(frame.cell.array * (1 + 0.004 * seed), scale_atoms=True)
        frame.rattle(0.02 * seed, seed=seed)
        found.append(frame)
    return found


# ---- 8. serialisation ------------------------------------------------------------------------------------------------

COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cloudpickle": lambda x: pickle.loads(cloudpickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("model", ["plain", "full"])
def test_copies_of_the_calculator_before_and_after_use(make_calculator, frames, model, way):
    calc = make_calculator(model)
    before = COPIES[way](calc)
    expected = results(calc, frames[1])
    after = COPIES[way](calc)
    assert same(results(before, frames[1]), expected)
    assert same(results(after, frames[1]), expected)
    assert same(results(after, frames[2]), results(calc, frames[2]))
    assert after.todict() == before.todict() == calc.todict()


def test_a_copy_brings_its_results_and_goes_its_own_way(make_calculator, atoms, evaluations):
    calc = make_calculator()
    energy = calc.get_property("energy", atoms)
    forces = calc.results["forces"].copy()
    for way in COPIES.values():
        twin = way(calc)
        assert twin.get_property("energy", atoms) == energy
        assert len(evaluations) == 1
        moved = atoms.copy()
        moved.rattle(0.1)
        twin.get_property("energy", moved)
        twin.set(threads=3)
        assert calc.parameters.threads == 1
        assert np.array_equal(calc.get_property("forces", atoms), forces)
        evaluations[:] = evaluations[:1]


@pytest.mark.parametrize("way", ["pickle", "cloudpickle", "deepcopy"])
def test_copies_of_atoms_with_the_calculator(make_calculator, many, way):
    many.calc = make_calculator()
    before = COPIES[way](many)
    energy = many.get_potential_energy()
    after = COPIES[way](many)
    assert before.get_potential_energy() == after.get_potential_energy() == energy
    assert after.calc is not many.calc
    after.rattle(0.05)
    assert after.get_potential_energy() != energy
    assert many.get_potential_energy() == energy


def test_pickles_hold_no_evaluator(make_calculator, many):
    calc = make_calculator()
    before = len(pickle.dumps(calc))
    calc.get_property("energy", many)
    # results and positions, but neither neighbours nor buffers
    assert len(pickle.dumps(calc)) < before + 200 * len(many)


def test_todict_of_a_model_object(make_calculator, models, atoms):
    for name in ("plain", "full"):
        calc = make_calculator(name, threads=2)
        text = json.dumps(calc.todict())
        again = NEP(**json.loads(text))
        assert again.model == models[name]
        assert again.parameters == calc.parameters
        assert same(results(again, atoms), results(calc, atoms))


def test_todict_of_a_path(tmp_path, models, atoms):
    models["plain"].write(tmp_path / "nep.txt")
    calc = NEP(tmp_path / "nep.txt")
    assert calc.todict() == {"model": str(tmp_path / "nep.txt")}
    again = NEP(**json.loads(json.dumps(calc.todict())))
    assert same(results(again, atoms), results(NEP(models["plain"]), atoms))


def test_importing_the_calculator_is_light():
    code = "import sys; from ase_nepcg import NEP, testing; print({'numba', 'matplotlib.pyplot'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork"])
# Python 3.12 and later warn that a process with threads is forked, which is what is tried here
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_other_processes_give_the_same_bits(make_calculator, frames, method):
    calc = make_calculator(threads=2)
    expected = [results(calc, frame) for frame in frames]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for name, k in (("energy", 0), ("forces", 1), ("stress", 2)):
            jobs = [pool.apply_async(calc.get_property, (name, frame)) for frame in frames]
            found = [job.get(timeout=PATIENCE) for job in jobs]
            assert all(np.array_equal(a, b[k]) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_run_continues_it(make_calculator, frames):
    # the child inherits evaluator, neighbour list and (dead) helper threads, not a pickle
    calc = make_calculator(threads=2)
    calc.get_property("energy", frames[0])
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send([calc.get_property("forces", frame) for frame in frames]))
    child.start()
    assert receiver.poll(PATIENCE), "the forked process does not answer"
    found = receiver.recv()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert same(found, [calc.get_property("forces", frame) for frame in frames])


def test_joblib_processes_give_the_same_bits(make_calculator, frames):
    calc = make_calculator(threads=None)
    expected = [results(calc, frame) for frame in frames]
    found = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(results)(calc, frame) for frame in frames)
    assert all(map(same, found, expected))


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "zbl", "full"])
def test_any_number_of_kernel_threads_gives_the_same_bits(make_calculator, frames, model):
    extra = ("virials", "descriptors")
    calcs = [make_calculator(model, threads=n) for n in (1, 2, 3)]
    for frame in frames[:3]:
        first, *others = [results(c, frame) + [c.get_property(name, frame) for name in extra] for c in calcs]
        assert all(same(first, other) for other in others)


@pytest.mark.parametrize("shared", [True, False])
def test_python_threads_at_the_same_time(make_calculator, frames, shared):
    expected = [results(make_calculator(), frame) for frame in frames]
    calc = make_calculator(threads=2)
    calcs = [calc if shared else make_calculator(threads=2) for _ in range(4)]
    jobs = [(calcs[k % 4], frames[k % len(frames)], expected[k % len(frames)]) for k in range(48)]
    if not shared:
        jobs.sort(key=lambda job: calcs.index(job[0]))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda job: same(results(job[0], job[1]), job[2]), jobs))


def test_python_threads_while_one_of_them_fails(make_calculator, frames):
    calc = make_calculator(threads=2)
    expected = [results(make_calculator(), frame) for frame in frames]
    bad = frames[0].copy()
    bad.positions[3] = bad.positions[200]

    def job(k):
        if k % 3 == 0:
            try:
                calc.get_property("energy", bad)
            except Exception as error:
                return "same place" in str(error)
            return False
        return same(results(calc, frames[k % len(frames)]), expected[k % len(frames)])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(job, range(30)))


def test_numba_threads_are_left_alone(make_calculator, many):
    before = numba.get_num_threads()
    make_calculator(threads=3).get_property("energy", many)
    assert numba.get_num_threads() == before


# ---- history ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["zbl", "full"])
def test_a_used_calculator_gives_the_bits_of_a_fresh_one(make_calculator, many, model, rng):
    used = make_calculator(model)
    builds = []
    for step in range(24):
        many.positions += rng.normal(scale=0.03, size=many.positions.shape)
        if step % 5 == 4:
            many.set_cell(many.cell.array @ (np.eye(3) + rng.normal(scale=0.004, size=(3, 3))), scale_atoms=step % 2)
        if step == 10:
            many.symbols[rng.permutation(len(many))[:20]] = "H"
        if step == 14:
            many.wrap()
        if step == 18:
            many.pbc = [True, False, True]
        fresh = make_calculator(model)
        assert same(results(used, many), results(fresh, many)), f"step {step}"
        builds.append(used._evaluator.neighbors.builds)
    # both old and new neighbour lists took part
    assert 3 < builds[-1] < 20


def test_alternating_systems_do_not_mix(make_calculator, frames, structures):
    calc = make_calculator()
    systems = [frames[0], structures["cluster"], frames[3][:100], structures["wire"], structures["single_site"]]
    labelled = structures["slab"]
    set_labels(labelled, "H")
    systems.append(labelled)
    expected = [make_calculator().get_property("forces", system) for system in systems]
    for _ in range(2):
        assert same([calc.get_property("forces", system) for system in systems], expected)
