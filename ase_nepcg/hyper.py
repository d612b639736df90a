"""What a NEP model may be: the elements it knows by name, the limits of the hyper-parameters, the array shapes.

Limits are those of GPUMD and of its trainers. Every ``check_…`` returns the value in its plain form or raises
:class:`~ase_nepcg.errors.ModelError` with what was expected and what was given.

Format: Fan et al., PRB 104, 104309 (2021); JCP 157, 114801 (2022); Song et al., Nat. Commun. 15, 10208 (2024).
The radii are 4/3 times the covalent radii of DFT-D3 (Grimme et al., JCP 132, 154104 (2010)), rounded as in GPUMD.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

from .errors import ModelError, closest

#: Switches of the ``l_max`` line in file order, each with the lowest L it needs.
MANY_BODY = {"q222": 2, "q1111": 2, "q112": 2, "q123": 3, "q233": 3, "q134": 4}

MAX_TYPES = 94
MAX_LABEL = 16
MAX_CUTOFF = 100.0
MAX_N = (12, 10)
MAX_BASIS = (16, 12)
MAX_ANGULAR = 90
MAX_DESCRIPTOR = 103
# the gradient trainer, which alone writes version 5, has its own limit
MAX_NEURONS = {3: 120, 4: 120, 5: 200}
# GPUMD's limit of neighbour counts: the safe choice where nobody has counted
UNKNOWN_NEIGHBORS = (819, 819)

_SYMBOLS = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
    Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
    Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu
"""

_VALUES = """
    0.426667 0.613333 1.6 1.25333 1.02667 1.0 0.946667 0.84 0.853333 0.893333
    1.86667 1.66667 1.50667 1.38667 1.46667 1.36 1.32 1.28 2.34667 2.05333
    1.77333 1.62667 1.61333 1.46667 1.42667 1.38667 1.33333 1.32 1.34667 1.45333
    1.49333 1.45333 1.53333 1.46667 1.52 1.56 2.52 2.22667 1.96 1.85333
    1.76 1.65333 1.53333 1.50667 1.50667 1.44 1.53333 1.64 1.70667 1.68
    1.68 1.64 1.76 1.74667 2.78667 2.34667 2.16 1.96 2.10667 2.09333
    2.08 2.06667 2.01333 2.02667 2.01333 2.0 1.98667 1.98667 1.97333 2.04
    1.94667 1.82667 1.74667 1.64 1.57333 1.54667 1.48 1.49333 1.50667 1.76
    1.73333 1.73333 1.81333 1.74667 1.84 1.89333 2.68 2.41333 2.22667 2.10667
    2.02667 2.04 2.05333 2.06667
"""

#: Chemical symbol -> radius in Å, in the order of the atomic numbers.
RADII: dict[str, float] = dict(zip(_SYMBOLS.split(), map(float, _VALUES.split()), strict=True))

_NUMBERS = {symbol: z for z, symbol in enumerate(RADII, start=1)}


def atomic_number(symbol: str) -> int:
    """Atomic number of a chemical symbol, 1 to 94; ``KeyError`` for anything else."""
    return _NUMBERS[symbol]


def check_integer(name: str, value, low: int, high: int) -> int:
    """Return an integer from ``low`` to ``high``; neither floats nor truth values are taken for one."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise ModelError(f"{name}: expected an integer, got {value!r}") from None
    if not low <= value <= high:
        raise ModelError(f"{name}: expected {low} to {high}, got {value}")
    return value


def check_number(name: str, value) -> float:
    """Return a finite float; text is not taken for a number."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        value = float(value)
    except (TypeError, ValueError):
        raise ModelError(f"{name}: expected a number, got {value!r}") from None
    if not math.isfinite(value):
        raise ModelError(f"{name}: expected a finite number, got {value}")
    return value


def two(name: str, value) -> tuple:
    """Split a pair (radial, angular)."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise ModelError(f"{name}: expected two numbers (radial, angular), got {value!r}") from None
    return first, second


def is_plain(label: str) -> bool:
    """Whether other programs can read ``label``: printable ASCII without blanks, quotes and ``=``."""
    return all("!" <= char <= "~" and char not in "\"'`=" for char in label)


def check_species(species: Sequence[str], symbols_for: str | None = None) -> tuple[str, ...]:
    """Return the labels as a tuple.

    ``symbols_for`` names the part of the model that needs chemical symbols (ZBL, element-wise cutoffs).
    """
    if isinstance(species, str):
        raise ModelError(f"species: expected a sequence of labels, got the single string {species!r}")
    species = tuple(species)
    if not 1 <= len(species) <= MAX_TYPES:
        raise ModelError(f"species: expected 1 to {MAX_TYPES} labels, got {len(species)}")
    for label in species:
        if not isinstance(label, str) or not 1 <= len(label) <= MAX_LABEL:
            shown = label[:40] if isinstance(label, str) else label
            raise ModelError(f"species: expected labels of 1 to {MAX_LABEL} characters, got {shown!r}")
        if not is_plain(label):
            raise ModelError(f"species: expected printable ASCII without blanks, quotes and '=', got {label!r}")
        if symbols_for is not None and label not in RADII:
            raise ModelError(f"species: {symbols_for} needs chemical symbols H to Pu, got {label!r}")
    if len(set(species)) < len(species):
        double = next(label for i, label in enumerate(species) if label in species[:i])
        raise ModelError(f"species: expected different labels, got {double!r} twice")
    return tuple(str(label) for label in species)


def check_cutoff(name: str, value) -> float:
    """Return a cutoff radius in Å."""
    value = check_number(name, value)
    if not 0 < value <= MAX_CUTOFF:
        raise ModelError(f"{name}: expected a radius above 0 and up to {MAX_CUTOFF:g} Å, got {value:g}")
    return value


def check_typewise(factors) -> tuple[float, float, float]:
    """Return the factors fR, fA, fZ of the element-wise cutoffs of GPUMD 3.9.5 to 4.6; 0 or less is off."""
    if np.ndim(factors) != 1 or len(factors) != 3:
        raise ModelError(f"typewise: expected three factors (radial, angular, ZBL), got {factors!r}")
    factors = tuple(check_number("typewise factor", factor) for factor in factors)
    if factors[0] > 0 and factors[1] <= 0:
        raise ModelError(f"typewise: expected an angular factor above 0, as the radial one is, got {factors[1]:g}")
    return factors


def check_pair(name: str, value, limits: tuple[int, int]) -> tuple[int, int]:
    """Return two integers (radial, angular) from 0 to their limits."""
    radial, angular = two(name, value)
    return check_integer(f"{name} radial", radial, 0, limits[0]), check_integer(
        f"{name} angular", angular, 0, limits[1]
    )


def check_l_max(l_max: int, many_body: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Return the order L and the names of the many-body blocks."""
    l_max = check_integer("l_max", l_max, 2, 8)
    many_body = tuple(many_body)
    for name in many_body:
        if name not in MANY_BODY:
            raise ModelError(f"many_body: unknown block {name!r}; {closest(str(name), MANY_BODY)}")
        if l_max < MANY_BODY[name]:
            raise ModelError(f"many_body: {name} needs L >= {MANY_BODY[name]}, got L = {l_max}")
    if many_body != tuple(name for name in MANY_BODY if name in many_body):
        raise ModelError(f"many_body: expected a subset of {', '.join(MANY_BODY)} in this order, got {many_body}")
    return l_max, many_body


def check_size(n_max: tuple[int, int], l_max: int, many_body: Sequence[str]) -> int:
    """Return the number of descriptor components (without temperature)."""
    angular = (n_max[1] + 1) * (l_max + len(many_body))
    total = n_max[0] + 1 + angular
    if angular > MAX_ANGULAR:
        raise ModelError(f"descriptor: expected at most {MAX_ANGULAR} angular components, got {angular}")
    if total > MAX_DESCRIPTOR:
        raise ModelError(f"descriptor: expected at most {MAX_DESCRIPTOR} components, got {total}")
    return total


def check_neurons(version: int, n1: int, n2: int = 0) -> tuple[int, int]:
    """Return the sizes of the first and second hidden layer (0: none)."""
    limit = MAX_NEURONS[version]
    return check_integer("neurons", n1, 1, limit), check_integer("neurons of the second layer", n2, 0, limit)


def array_shapes(
    version: int,
    n_types: int,
    n_max: tuple[int, int],
    basis_size: tuple[int, int],
    n_descriptor: int,
    neurons: tuple[int, int],
) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Shapes of the network arrays (leading axis: network) and of the coefficient arrays, both in file order."""
    groups = 1 if version == 3 else n_types
    n1, n2 = neurons
    network: dict[str, tuple] = {"w0": (groups, n1, n_descriptor), "b0": (groups, n1)}
    if n2:
        network |= {"w_hidden2": (groups, n2, n1), "b_hidden2": (groups, n2)}
    network["w1"] = (groups, n2 or n1)
    if version == 5:
        network["type_bias"] = (groups,)
    coefficients = {
        name: (n + 1, k + 1, n_types, n_types)
        for name, n, k in zip(("c_radial", "c_angular"), n_max, basis_size, strict=True)
    }
    return network, coefficients


def count_parameters(network: dict[str, tuple], coefficients: dict[str, tuple]) -> int:
    """Number of trainable parameters: networks, common bias, descriptor coefficients."""
    return 1 + sum(math.prod(shape) for shape in (*network.values(), *coefficients.values()))


def switches(l_max) -> tuple[int, tuple[str, ...]]:
    """Order L and names of the blocks from the numbers of an ``l_max`` line: non-zero is on, missing is off."""
    numbers = (l_max,) if np.ndim(l_max) == 0 else tuple(l_max)
    if not 1 <= len(numbers) <= 1 + len(MANY_BODY):
        raise ModelError(f"l_max: expected 1 to {1 + len(MANY_BODY)} numbers, got {len(numbers)}")
    on = (check_integer("l_max switch", int(n) if isinstance(n, bool) else n, -(2**31), 2**31) for n in numbers[1:])
    return numbers[0], tuple(name for name, switch in zip(MANY_BODY, on, strict=False) if switch)


def flexible_defect(table: np.ndarray) -> tuple[int, str] | None:
    """Row of the first wrong pair of radii in a table of the flexible ZBL, (pairs, 10), and what is wrong; or None."""
    for row, (inner, outer) in enumerate(table[:, :2]):
        if not 0 <= inner <= outer <= MAX_CUTOFF:
            return row, f"zbl: expected 0 <= r_in <= r_out <= {MAX_CUTOFF:g} Å, got {inner:g} and {outer:g}"
    return None


def symbols_needed_by(zbl, typewise) -> str | None:
    """What in the model needs chemical symbols instead of free labels, or None."""
    if zbl is not None:
        return "ZBL"
    if typewise is not None and len(typewise) == 3 and typewise[0] > 0:
        return "an element-wise cutoff"
    return None


def unpack_parameters(z: np.ndarray, network: dict[str, tuple], coefficients: dict[str, tuple]) -> dict:
    """The arrays and the bias of a model from its parameter vector: the inverse of ``NEPModel.parameters``."""
    groups = network["b0"][0]
    sizes = [math.prod(shape[1:]) for shape in network.values()]
    per_group = sum(sizes)
    table = z[: groups * per_group].reshape(groups, per_group)
    result: dict = {}
    start = 0
    for (name, shape), size in zip(network.items(), sizes, strict=True):
        result[name] = table[:, start : start + size].reshape(shape)
        start += size
    start = groups * per_group
    result["bias"] = float(z[start])
    start += 1
    for name, shape in coefficients.items():
        result[name] = z[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return result
