"""The linter on the mapping itself: does it fit, what is in which group, is every group a piece."""

import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read

from ase_nepcg.lint import lint
from ase_nepcg.lint.findings import SEVERITIES, Finding
from ase_nepcg.mapping import Mapping

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
EDGE = 3.1


def waters(n=4, seed=0, rattle=0.03):
    """n^3 whole flexible water molecules, turned at random, in a cubic periodic box."""
    rng = np.random.default_rng(seed)
    box = Atoms(cell=[n * EDGE] * 3, pbc=True)
    for place in np.ndindex(n, n, n):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.translate((np.array(place) + 0.5) * EDGE + rng.normal(0, 0.1, 3) - water.get_center_of_mass())
        box += water
    box.rattle(rattle, seed=seed)
    return box


def found(findings):
    """Severity by code; every code once."""
    codes = [finding.code for finding in findings]
    assert len(set(codes)) == len(codes), codes
    return {finding.code: finding.severity for finding in findings}


def pick(findings, code) -> Finding:
    return next(finding for finding in findings if finding.code == code)


@pytest.fixture(scope="module")
def box():
    return waters()


@pytest.fixture(scope="module")
def whole(box):
    """The box, with molecules whole and a mapping that is as it should be."""
    return box, Mapping.from_molecules(box, "Ne")


# ---- clean ---------------------------------------------------------------------------------------------------------


def test_clean_water(whole):
    box, mapping = whole
    assert lint(mapping, box) == []
    assert mapping.lint(box) == []


@pytest.mark.parametrize(
    "change",
    ["no cell", "slab", "triclinic", "left-handed", "far away"],
)
def test_clean_in_any_cell(change):
    box = waters(3)
    if change == "no cell":
        box.cell, box.pbc = None, False
    elif change == "slab":
        box.pbc = (True, True, False)
        box.cell[2] = 0
    elif change == "triclinic":
        box.set_cell(box.cell.array @ [[1, 0, 0], [0.4, 1, 0], [-0.3, 0.2, 1]], scale_atoms=False)
    elif change == "left-handed":
        box.cell = box.cell.array[[1, 0, 2]]
    else:
        box.positions += [1e4, -3e3, 0]
    assert lint(Mapping.from_molecules(box, "Ne"), box) == []


@pytest.mark.parametrize("rattle", [0.0, 0.1])
def test_clean_metal(rattle):
    gold = bulk("Au", cubic=True).repeat(3)
    gold.rattle(rattle, seed=1)
    assert lint(Mapping.from_atoms_per_bead(gold, 4, "Kr"), gold) == []
    assert lint(Mapping.from_atoms(gold), gold) == []


def test_real_water():
    path = DATA / "models" / "water_216.xyz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    atoms = read(path)
    assert found(lint(Mapping.from_molecules(atoms, "Ne"), atoms)) in ({}, {"cut-molecules": "note"})


def test_nothing_is_changed(box):
    atoms = box.copy()
    atoms.wrap()
    before = atoms.copy()
    mapping = Mapping.from_groups([[0, 1, 2], [2, 3], []], "WAT", atoms)
    lint(mapping, atoms)
    assert atoms == before
    assert atoms.arrays.keys() == before.arrays.keys()
    assert atoms.info == before.info


# ---- the mapping alone ---------------------------------------------------------------------------------------------


def test_overlap_and_empty_groups(box):
    groups = [[0, 1, 2], [2, 3, 4, 5], [], [6, 7, 8], [5, 9, 10, 11]]
    for mapping in (Mapping.from_groups(groups, "Ne"), Mapping.from_groups(groups, "Ne", box)):
        findings = lint(mapping, box)
        overlap, empty = pick(findings, "overlapping-groups"), pick(findings, "empty-groups")
        assert (overlap.severity, overlap.sites, overlap.atoms) == ("error", (0, 1, 4), (2, 5))
        assert (empty.severity, empty.sites, empty.atoms) == ("error", (2,), ())
        # the rest is still looked at: 192 atoms without the 12 in some group
        assert len(pick(findings, "implicit-molecules").atoms) == 180
        assert [f.severity for f in findings] == sorted([f.severity for f in findings], key=SEVERITIES.index)


def test_later_findings_count_sites_of_the_whole_mapping(box):
    groups = [[], [0, 1, 2], [3, 4, 8], *np.arange(9, 192).reshape(-1, 3).tolist(), [5, 6], [6, 7]]
    findings = lint(Mapping.from_groups(groups, "Ne", box), box)
    assert pick(findings, "disconnected-groups").sites == (2,)
    assert "implicit-molecules" not in found(findings)


def test_nothing_usable(box):
    findings = lint(Mapping.from_groups([[], [0, 1], [1, 2]], "Ne", box), box)
    assert found(findings) == {"empty-groups": "error", "overlapping-groups": "error"}


# ---- does it fit ---------------------------------------------------------------------------------------------------


def test_other_number_of_atoms(whole):
    box, mapping = whole
    (finding,) = lint(mapping, box[:189])
    assert (finding.severity, finding.code) == ("error", "wrong-atoms")
    assert "is for 192 atoms, the structure has 189" in finding.message
    assert finding.atoms == (189, 190, 191)
    (finding,) = lint(Mapping.from_groups([[0, 1], [2, 500]], "Ne"), box)
    assert "needs atom 500" in finding.message
    assert finding.atoms == (500,)
    assert lint(Mapping.from_groups([[0, 1]], "Ne"), Atoms())[0].code == "wrong-atoms"


def test_other_elements(whole):
    box, mapping = whole
    other = box.copy()
    other.numbers[[3, 100]] = 9
    (finding,) = lint(mapping, other)
    assert (finding.severity, finding.code, finding.atoms) == ("error", "wrong-elements", (3, 100))
    assert "atom 3: expected O, got F" in finding.message


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_bad_masses(whole, bad):
    box, mapping = whole
    other = box.copy()
    masses = other.get_masses()
    masses[[4, 7]] = bad
    other.arrays["masses"] = masses
    finding = pick(lint(mapping, other), "bad-masses")
    assert (finding.severity, finding.atoms) == ("error", (4, 7))


def test_missing_masses():
    atoms = Atoms("HeX2", positions=np.eye(3) * 5)
    finding = pick(lint(Mapping.from_groups([[0, 1, 2]], "Ne"), atoms), "missing-masses")
    assert (finding.severity, finding.atoms) == ("error", (1, 2))
    atoms.set_masses([4, 2, 2])
    assert "missing-masses" not in found(lint(Mapping.from_groups([[0, 1, 2]], "Ne"), atoms))


def test_damaged_structure(whole):
    box, mapping = whole
    other = box.copy()
    other.positions[10, 1] = np.nan
    assert pick(lint(mapping, other), "bad-positions").atoms == (10,)
    other = box.copy()
    other.cell[2] = other.cell[1]
    (finding,) = lint(mapping, other)
    assert (finding.severity, finding.code) == ("error", "unusable")
    assert "flat cell" in finding.message


def test_broken_molecules_are_an_error(whole):
    box, mapping = whole
    other = box.copy()
    other.positions[1] += 4.0
    (finding,) = lint(mapping, other)
    assert (finding.severity, finding.code) == ("error", "unusable")
    assert "bonds of the mapping are broken" in finding.message


# ---- atoms in no bead ----------------------------------------------------------------------------------------------


def test_site_map(box):
    findings = lint(Mapping.from_sites(box, range(0, 192, 3)), box)
    assert found(findings) == {"anchored-atoms": "note"}
    finding = findings[0]
    assert finding.sites == tuple(range(64))
    assert finding.atoms == tuple(np.flatnonzero(box.numbers == 1))
    share = box.get_masses()[box.numbers == 1].sum() / box.get_masses().sum()
    assert f"{share:.1%} of the mass" in finding.message


def test_implicit_solvent(box):
    findings = lint(Mapping.from_groups(np.arange(90).reshape(-1, 3), "Ne", box), box)
    assert found(findings) == {"implicit-molecules": "warning"}
    assert "102 atoms in 34 molecules" in findings[0].message
    assert f"{34 / 64:.1%} of the mass" in findings[0].message
    assert findings[0].atoms == tuple(range(90, 192))


def test_endless_implicit_molecule_is_an_error():
    gold = bulk("Au", cubic=True).repeat(2)
    gold.cell[2, 2] += 10
    gold += Atoms("He", positions=[[4.0, 4.0, 13.0]])
    findings = lint(Mapping.from_groups([[32]], "He"), gold)
    assert pick(findings, "unusable").severity == "error"


# ---- pieces --------------------------------------------------------------------------------------------------------


def test_disconnected_groups(box):
    groups = [[0, 1, 5], [3, 4, 2], *np.arange(6, 192).reshape(-1, 3)]
    findings = lint(Mapping.from_groups(groups, "Ne", box), box)
    assert found(findings) == {"disconnected-groups": "warning"}
    assert findings[0].sites == (0, 1)


def test_two_molecules_in_one_bead(box):
    findings = lint(Mapping.from_atoms_per_bead(box, 6, "Ne"), box)
    assert pick(findings, "disconnected-groups").sites == tuple(range(32))


@pytest.mark.parametrize(
    ("crystal", "n"), [(bulk("Ar", cubic=True), 4), (bulk("NaCl", "rocksalt", 5.64, cubic=True), 8)]
)
def test_atomic_crystals_have_no_bonds(crystal, n):
    findings = lint(Mapping.from_atoms_per_bead(crystal.repeat(3), n, "Kr"), crystal.repeat(3))
    assert found(findings) == {"unbonded-groups": "note"}
    assert findings[0].sites == tuple(range(27))


def test_scattered_blocks_of_a_metal(rng):
    gold = bulk("Au", cubic=True).repeat(5)
    order = np.arange(500)
    order[[3, 303]] = order[[303, 3]]
    gold = gold[order]
    finding = pick(lint(Mapping.from_atoms_per_bead(gold, 4, "Kr"), gold), "disconnected-groups")
    assert (finding.severity, finding.sites) == ("warning", (0, 75))


def test_bonds_of_the_mapping_count():
    """Atoms too far apart for a bond by distance, but said to be bonded."""
    atoms = Atoms("C4", positions=[[0, 0, 0], [2.5, 0, 0], [8, 0, 0], [10.5, 0, 0]], cell=[30] * 3, pbc=True)
    groups = [[0, 1], [2, 3]]
    assert "disconnected-groups" not in found(
        lint(Mapping.from_groups(groups, "Ne", atoms, bonds=[[0, 1], [2, 3]]), atoms)
    )
    # a carbon without any bond is like an argon; one with a bond elsewhere is not
    assert "unbonded-groups" in found(lint(Mapping.from_groups(groups, "Ne", atoms), atoms))


# ---- endless and large ---------------------------------------------------------------------------------------------


def polyethylene(units: int) -> Atoms:
    """A zigzag chain of CH2 units along x, bonded to its own image."""
    x, y = 1.27, 0.42
    unit = Atoms("CH2CH2", cell=[2 * x, 20, 20], pbc=True)
    unit.positions = [[0, y, 0], [0, 1.05, 0.89], [0, 1.05, -0.89], [x, -y, 0], [x, -1.05, 0.89], [x, -1.05, -0.89]]
    unit.positions += [0.3, 10, 10]
    return unit.repeat((units, 1, 1))


def test_endless_groups():
    chain = polyethylene(4)
    findings = lint(Mapping.from_groups([range(24)], "Ne", chain), chain)
    assert pick(findings, "endless-groups") == Finding(
        "error", "endless-groups", pick(findings, "endless-groups").message, (0,)
    )
    # pieces of the chain are fine, and it does not matter that the chain is endless
    assert lint(Mapping.from_atoms_per_bead(chain, 6, "Ne"), chain) == []


def test_atom_bonded_to_its_own_image():
    """One atom per cell: each bond leads to the atom itself."""
    gold = bulk("Au")
    assert "endless-groups" in found(lint(Mapping.from_groups([[0]], "Kr", gold), gold))


def test_given_bonds_say_where_a_molecule_ends():
    ball = molecule("C60")
    ball.set_cell([8.5] * 3)
    ball.pbc = True
    ball.center()
    assert found(lint(Mapping.from_groups([range(60)], "Ne", ball), ball))["endless-groups"] == "error"
    larger = ball.copy()
    larger.set_cell([30] * 3)
    bonds = Mapping.from_molecules(larger, "Ne").bonds
    mapping = Mapping.from_molecules(ball, "Ne", bonds=bonds)
    assert found(lint(mapping, ball))["endless-groups"] == "warning"


def test_groups_larger_than_half_the_cell():
    ball = molecule("C60")  # 7.1 Å wide
    ball.pbc = True
    for edge, expected in ((13.5, {"large-groups": "warning"}), (15.0, {})):
        ball.set_cell([20, 20, edge])
        assert found(lint(Mapping.from_molecules(ball, "Ne"), ball)) == expected
    ball.pbc = (True, True, False)
    ball.set_cell([20, 20, 13.5])
    assert lint(Mapping.from_molecules(ball, "Ne"), ball) == []


def test_ambiguous_groups():
    """Argon atoms further apart than half the cell, in steps that are shorter."""
    atoms = Atoms("Ar5", positions=[[3.8 * k, 0, 0] for k in range(4)] + [[0, 8, 8]], cell=[20] * 3, pbc=True)
    findings = lint(Mapping.from_groups([[0, 1, 2, 3], [4]], ["Kr", "Xe"], atoms), atoms)
    assert found(findings) == {"large-groups": "error", "unbonded-groups": "note"}
    assert findings[0].sites == (0,)


def test_cut_molecules(whole):
    box, mapping = whole
    cut = box.copy()
    cut.positions += [1.0, 0.4, 0.9]
    cut.wrap()
    findings = lint(mapping, cut)
    assert found(findings) == {"cut-molecules": "note"}
    extents = np.array([np.ptp(cut.positions[group], axis=0).max() for group in mapping.groups])
    assert findings[0].sites == tuple(np.flatnonzero(extents > 4))
    assert 0 < len(findings[0].sites) < 64
    assert findings[0].atoms == tuple(np.concatenate([mapping.groups[k] for k in findings[0].sites]))


def test_cut_implicit_molecules(box):
    cut = box.copy()
    cut.positions += [1.0, 0.4, 0.9]
    cut.wrap()
    finding = pick(lint(Mapping.from_groups([[0, 1, 2]], "Ne", box), cut), "cut-molecules")
    assert "implicit molecules" in finding.message


# ---- speed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rattle", [0.03, 0.0], ids=["flexible", "rigid"])
def test_a_thousand_molecules(rattle):
    box = waters(10, rattle=rattle)
    mapping = Mapping.from_molecules(box, "Ne")
    start = time.process_time()
    assert lint(mapping, box) == []
    # 0.1 to 0.4 s; rigid molecules take longer, since bond lengths do not show that they form no crystal
    assert time.process_time() - start < 2.0
