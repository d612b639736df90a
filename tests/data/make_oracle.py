"""Energies, forces and virials of small structures by calorine's CPUNEP, written to ``oracle.npz`` beside this file.

    python tests/data/make_oracle.py [folder with models/, pbte/, mos2/]

Needs calorine 4.1 (``pip install ase_nepcg[oracle]``). Models are of two kinds: random ones, which any machine makes
again from ``NEPModel.random`` and the settings stored here, and published files, which are not part of this repository
(default folder: ``shared/data`` next to the checkout). Contents of the archive (M models, C cases, S sites in all):

    models     (M,) JSON: {"name", "file"} or {"name", "random": arguments of NEPModel.random, "flexible": table | null}
    checksums  (M,) sha256 of the parameters and scaler of random models, "" for files
    model      (C,) index into models        structure (C,) name        start (C+1,) offsets into the arrays below
    cell       (C, 3, 3) Å                   periodic in all three directions
    symbols    (S,)    positions (S, 3) Å    energies (S,) eV    forces (S, 3) eV/Å
    virials    (S, 3, 3) eV, first index = separation
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, graphene, molecule, mx2
from ase.neighborlist import neighbor_list

from ase_nepcg.model import ZBL, NEPModel

SMALL = {"cutoff": [5.0, 4.0], "n_max": [3, 2], "basis_size": [5, 4], "neurons": 8, "l_max": [4, 2, 0]}
PER_TYPE = {"Te": [5.5, 4.0], "Pb": [6.0, 3.5], "O": [4.0, 3.2]}
# r_in, r_out, then amplitude and exponent four times, for each pair of types
FLEXIBLE = [[0.8 + 0.1 * p, 2.0 + 0.1 * p, 0.2, 3.2, 0.5 - 0.01 * p, 0.9, 0.28, 0.4, 0.02, 0.2] for p in range(6)]
RANDOM = {
    "one-type": (["Te"], {"l_max": [4, 2, 1]}),
    "two-types": (["Te", "Pb"], {}),
    "per-type-cutoffs": (["Te", "Pb", "O"], {"cutoff": PER_TYPE, "l_max": [4, 2, 1]}),
    "l8": (["Te", "Pb"], {"l_max": [8, 2, 1], "n_max": [3, 3]}),
    "q112": (["Te"], {"l_max": [4, 0, 0, 1]}),
    "q123": (["Te"], {"l_max": [4, 0, 0, 0, 1]}),
    "q233": (["Te"], {"l_max": [4, 0, 0, 0, 0, 1]}),
    "q134": (["Te"], {"l_max": [4, 0, 0, 0, 0, 0, 1]}),
    "all-many-body": (["Te", "Pb", "O"], {"l_max": [5, 1, 1, 1, 1, 1, 1]}),
    "smallest": (["Te", "Pb"], {"l_max": [2, 0, 0], "n_max": [0, 0], "basis_size": [0, 0], "neurons": 1}),
    "large": (["Te"], {"cutoff": [6.0, 4.5], "n_max": [12, 8], "basis_size": [16, 12], "neurons": 50}),
    "zbl": (["Te", "Pb", "O"], {"cutoff": PER_TYPE, "zbl": [1.0, 2.0]}),
    "zbl-typewise": (["Te", "O"], {"zbl": [1.0, 2.2, 0.7], "l_max": [4, 2, 1]}),
    "zbl-flexible-2": (["Te", "O"], {"flexible": 3}),
    "zbl-flexible-3": (["Te", "Pb", "O"], {"flexible": 6}),
}
FILES = {
    "UNEP-v1": "models/UNEP-v1_16metals_nep4_zbl.txt",
    "carbon": "models/carbon_2024_nep4.txt",
    "silicon": "models/silicon_2022_nep4_5body.txt",
    "water": "models/water_OH_nep4.txt",
    "water-small": "models/water_OH_small_nep4.txt",
    "pbte": "pbte/nep.txt",
    "mos2": "mos2/nep.txt",
}


def random_model(settings: dict) -> NEPModel:
    """The model of one entry of ``models``."""
    zbl = None if settings["flexible"] is None else ZBL(0.0, 0.0, flexible=np.array(settings["flexible"]))
    return NEPModel.random(**({"zbl": zbl} if zbl is not None else {}), **settings["random"])


def checksum(model: NEPModel) -> str:
    return hashlib.sha256(model.parameters().tobytes() + model.q_scaler.tobytes()).hexdigest()


def sheared(atoms, rng, strain=0.08):
    """A triclinic version with atoms pushed out of the cell by lattice vectors, numbers short enough for a file."""
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-strain, strain, (3, 3))), scale_atoms=True)
    atoms.positions += rng.integers(-1, 2, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def rattled(atoms, rng, amplitude):
    atoms.positions += rng.normal(0, amplitude, atoms.positions.shape)
    return atoms


def with_contact(atoms, rng, distance):
    """Move the neighbour of atom 0 to ``distance`` from it."""
    i, j, d, vector = neighbor_list("ijdD", atoms, 6.0)
    pairs = np.flatnonzero((i == 0) & (j != 0))
    k = pairs[np.argmin(d[pairs])]
    atoms.positions[j[k]] += vector[k] * (distance / d[k] - 1)
    return atoms


def decorated(atoms, species, rng):
    atoms.symbols[:] = np.resize(species, len(atoms))[rng.permutation(len(atoms))]
    return atoms


def random_structures(species, zbl, rng):
    yield "rattled", decorated(rattled(bulk("Po", "fcc", a=4.4, cubic=True) * (2, 2, 1), rng, 0.3), species, rng)
    crystal = decorated(rattled(bulk("Po", "fcc", a=4.3, cubic=True) * (1, 1, 2), rng, 0.2), species, rng)
    yield "triclinic", sheared(crystal, rng, 0.2)
    left = Atoms("Te3", cell=[[3.1, 0.2, 0.1], [0.4, -0.3, 9.5], [-0.5, 2.9, 0.6]], pbc=True)
    left.set_scaled_positions([[0.1, 0.0, 1.2], [0.3, 0.35, -0.6], [0.7, 0.66, 0.1]])
    yield "thin", decorated(left, species, rng)
    if zbl:
        for distance in (0.5, 1.3):
            crystal = decorated(rattled(bulk("Po", "fcc", a=4.4, cubic=True) * (2, 1, 1), rng, 0.2), species, rng)
            yield f"contact-{distance}", with_contact(crystal, rng, distance)


def file_structures(name, species, rng):
    if name == "UNEP-v1":
        yield "gold", rattled(bulk("Au", cubic=True) * (2, 1, 1), rng, 0.15)
        yield "thin", bulk("Au")
        alloy = decorated(rattled(bulk("Au", cubic=True) * (2, 2, 1), rng, 0.1), species, rng)
        yield "alloy", sheared(alloy.copy(), rng)
        yield "contact", with_contact(alloy, rng, 1.25)
    elif name in ("carbon", "silicon"):
        symbol, a = {"carbon": ("C", 3.57), "silicon": ("Si", 5.43)}[name]
        yield "diamond", rattled(bulk(symbol, "diamond", a, cubic=True), rng, 0.1)
        yield "triclinic", sheared(rattled(bulk(symbol, "diamond", a) * (2, 2, 1), rng, 0.1), rng)
        yield "thin", rattled(bulk(symbol, "diamond", a), rng, 0.05)
        sheet = graphene(symbol + "2", a=0.69 * a, size=(2, 2, 1), vacuum=5.0)
        yield "sheet", rattled(sheet, rng, 0.05)
    elif name.startswith("water"):
        box = Atoms(cell=[6.2, 6.2, 6.2], pbc=True)
        for corner in np.ndindex(2, 2, 2):
            h2o = molecule("H2O")
            h2o.rotate(rng.uniform(0, 180), rng.normal(size=3))
            h2o.positions += 3.1 * np.array(corner) - h2o.positions[0]
            box += h2o
        yield "liquid", rattled(box.copy(), rng, 0.03)
        yield "triclinic", sheared(rattled(box[:12], rng, 0.03), rng, 0.05)
    elif name == "pbte":
        yield "rocksalt", rattled(bulk("PbTe", "rocksalt", 6.46, cubic=True), rng, 0.2)
        yield "triclinic", sheared(rattled(bulk("PbTe", "rocksalt", 6.46) * (2, 2, 1), rng, 0.2), rng)
        yield "thin", rattled(bulk("PbTe", "rocksalt", 6.46), rng, 0.05)
    elif name == "mos2":
        layer = mx2("MoS2", a=3.18, thickness=3.13, size=(2, 2, 1), vacuum=4.0)
        layer.pbc = True
        yield "layer", rattled(layer.copy(), rng, 0.1)
        yield "triclinic", sheared(rattled(layer.copy(), rng, 0.1), rng, 0.05)
        yield "contact", with_contact(rattled(layer, rng, 0.05), rng, 1.1)


def main(data: Path, target: Path):
    from calorine.calculators import CPUNEP  # only this script needs it

    models, checksums, cases = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate([*RANDOM, *FILES]):
            rng = np.random.default_rng(number)
            if name in RANDOM:
                species, changes = RANDOM[name]
                arguments = {**SMALL, **changes, "species": species, "seed": number}
                rows = arguments.pop("flexible", None)
                entry = {"name": name, "random": arguments, "flexible": None if rows is None else FLEXIBLE[:rows]}
                model = random_model(entry)
                path = Path(folder) / f"{name}.txt"
                model.write(path)
                checksums.append(checksum(model))
                structures = random_structures(species, model.zbl, rng)
            else:
                entry, path = {"name": name, "file": FILES[name]}, data / FILES[name]
                checksums.append("")
                structures = file_structures(name, path.read_text().split("\n", 1)[0].split()[2:], rng)
            models.append(json.dumps(entry))
            calculator = CPUNEP(str(path))
            for structure, atoms in structures:
                atoms.set_cell(atoms.cell.array.round(4))
                atoms.positions = atoms.positions.round(4)
                atoms.calc = calculator
                forces, energies = atoms.get_forces(), atoms.get_potential_energies()
                # calorine's "stresses" are the per-atom virials, row by row, over the volume
                virials = (calculator.results["stresses"] * atoms.get_volume()).reshape(-1, 3, 3)
                stress = atoms.get_stress(voigt=False)
                np.testing.assert_allclose(stress, -virials.sum(0) / atoms.get_volume(), atol=1e-12 * abs(stress).max())
                cases.append((len(models) - 1, structure, atoms, energies, forces, virials))
                print(f"{name:18s}{structure:14s}{len(atoms):4d} atoms, largest force {abs(forces).max():8.3f} eV/Å")
    np.savez_compressed(
        target,
        models=np.array(models),
        checksums=np.array(checksums),
        model=np.array([case[0] for case in cases], dtype=np.int32),
        structure=np.array([case[1] for case in cases]),
        start=np.cumsum([0, *(len(case[2]) for case in cases)]),
        cell=np.array([case[2].cell.array for case in cases]),
        symbols=np.concatenate([np.array(case[2].get_chemical_symbols()) for case in cases]),
        positions=np.concatenate([case[2].positions for case in cases]),
        energies=np.concatenate([case[3] for case in cases]),
        forces=np.concatenate([case[4] for case in cases]),
        virials=np.concatenate([case[5] for case in cases]),
    )
    print(f"{target}: {len(cases)} cases, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    here = Path(__file__).resolve()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here.parents[3] / "shared" / "data", here.with_name("oracle.npz"))
