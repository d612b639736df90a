"""The NEP model as data: hyper-parameters and parameter arrays, without any evaluation.

A model maps the neighbourhood of a bead to its energy (Fan et al., PRB 104, 104309 (2021); JCP 157, 114801 (2022);
NEP4: Song et al., Nat. Commun. 15, 10208 (2024)):

    U_i = Σ_m w1[m] tanh(Σ_d w0[m,d] s_d q_d - b0[m]) - type_bias - bias

with the descriptor q (length D), the scaler s and the network of the centre's type. The radial functions inside q are
g_n(r) = Σ_k c[n,k,a,b] f_k(r) for centre type a and neighbour type b.

Dimensions: T types, G networks (1 for version 3, else T), N1 and N2 neurons, D descriptor components,
nR, nA, KR, KA the (inclusive) upper indices of the radial functions and of their basis. Lengths in Å, energies in eV.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from .errors import ModelError, validate_array
from .hyper import (
    MANY_BODY,
    MAX_BASIS,
    MAX_CUTOFF,
    MAX_N,
    RADII,
    UNKNOWN_NEIGHBORS,
    array_shapes,
    atomic_number,
    check_cutoff,
    check_integer,
    check_l_max,
    check_neurons,
    check_number,
    check_pair,
    check_size,
    check_species,
    check_typewise,
    count_parameters,
    flexible_defect,
    switches,
    symbols_needed_by,
    two,
    unpack_parameters,
)

__all__ = ["MANY_BODY", "ZBL", "NEPModel"]

COULOMB = 14.399645  # eV Å / e²
_UNIVERSAL = (0.18175, 3.1998, 0.50986, 0.94229, 0.28022, 0.4029, 0.02817, 0.20162)


class _Record:
    """Equality and pickling of a frozen dataclass that holds arrays."""

    def _values(self) -> tuple:
        return tuple(getattr(self, field.name) for field in fields(self))

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(a, b) for a, b in zip(self._values(), other._values(), strict=True))

    __hash__ = None

    def __reduce__(self):
        # through the constructor, so that copies are validated and read-only too
        return type(self), self._values()


def _is_frozen(value) -> bool:
    own = type(value) is np.ndarray and value.base is None
    return own and value.dtype == float and value.flags.c_contiguous and not value.flags.writeable


def _same(a, b) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def _frozen(name: str, value, shape: tuple) -> np.ndarray:
    """``value`` as read-only float64 array; copied unless it is one already, so that the caller's stays writable."""
    array = validate_array(name, value, shape)
    if _is_frozen(value):
        return value
    array = np.array(array, dtype=float, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False, repr=False)
class ZBL(_Record):
    """Screened nuclear repulsion (Ziegler, Biersack, Littmark) added to the network energy at short distances.

    ``inner``, ``outer`` in Å bound the switching function (both 0 for the flexible form). ``factor`` makes the outer
    radius element-wise, min(factor·(ρ_a + ρ_b), outer), and the inner one 0. ``flexible`` has a row
    r_in, r_out, a1 … a8 for each pair of types (0,0), (0,1), …, (1,1), …: φ(x) = Σ a_{2i-1} exp(-a_{2i} x).
    Raises :class:`ModelError` for anything else.
    """

    inner: float
    outer: float
    factor: float | None = None
    flexible: np.ndarray | None = None

    def __post_init__(self):
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        set_("inner", check_number("zbl inner", self.inner))
        set_("outer", check_number("zbl outer", self.outer))
        if self.flexible is not None:
            if (self.inner, self.outer) != (0, 0) or self.factor is not None:
                raise ModelError("zbl: the flexible form takes inner = outer = 0 and no factor")
            table = _frozen("zbl flexible", self.flexible, (None, 10))
            defect = flexible_defect(table)
            if defect is not None:
                raise ModelError(f"{defect[1]} in row {defect[0]}")
            set_("flexible", table)
            return
        if not 0 <= self.inner < self.outer <= MAX_CUTOFF:
            raise ModelError(
                f"zbl: expected 0 <= inner < outer <= {MAX_CUTOFF:g} Å, got {self.inner:g} and {self.outer:g}"
            )
        if self.factor is not None:
            set_("factor", check_number("zbl factor", self.factor))
            if self.factor <= 0:
                raise ModelError(f"zbl factor: expected a number above 0, got {self.factor:g}")

    def __repr__(self):
        if self.flexible is not None:
            return f"ZBL(flexible, {len(self.flexible)} pairs)"
        return f"ZBL({self.inner:g}, {self.outer:g}" + (")" if self.factor is None else f", factor={self.factor:g})")


@dataclass(frozen=True, eq=False, repr=False)
class NEPModel(_Record):
    """A neuroevolution potential: what a ``nep.txt`` holds. Immutable; edit with :func:`dataclasses.replace`.

    Every construction validates shapes and limits (:class:`ModelError`) and stores read-only float64 arrays.
    """

    version: int  #: 3 (one network), 4 (one per type), 5 (also one bias per type)
    species: tuple[str, ...]  #: T labels
    cutoff_radial: np.ndarray  #: (T,) Å
    cutoff_angular: np.ndarray  #: (T,) Å
    n_max: tuple[int, int]  #: nR, nA
    basis_size: tuple[int, int]  #: KR, KA
    l_max: int  #: L, 2 to 8
    many_body: tuple[str, ...]  #: names from ``MANY_BODY``, in that order
    w0: np.ndarray  #: (G, N1, D)
    b0: np.ndarray  #: (G, N1)
    w1: np.ndarray  #: (G, N1), or (G, N2) with two hidden layers; eV
    bias: float  #: common bias, subtracted; eV
    c_radial: np.ndarray  #: (nR+1, KR+1, T, T): n, k, centre, neighbour
    c_angular: np.ndarray  #: (nA+1, KA+1, T, T)
    q_scaler: np.ndarray  #: (D,), positive
    type_bias: np.ndarray | None = None  #: (T,) eV, version 5 only
    w_hidden2: np.ndarray | None = None  #: (G, N2, N1)
    b_hidden2: np.ndarray | None = None  #: (G, N2)
    temperature: bool = False  #: the last input is the temperature in K
    zbl: ZBL | None = None
    typewise: tuple[float, float, float] | None = None  #: factors of the element-wise cutoffs of GPUMD 3.9.5 to 4.6
    max_neighbors: tuple[int, int] | None = None  #: radial, angular; sizes arrays in GPUMD, no influence on results
    per_type: bool = False  #: write one pair of cutoffs per type even if all are equal

    def __post_init__(self):
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        set_("version", check_integer("version", self.version, 3, 5))
        if not isinstance(self.temperature, bool | np.bool_):
            raise ModelError(f"temperature: expected True or False, got {self.temperature!r}")
        set_("temperature", bool(self.temperature))
        if self.temperature and self.version == 5:
            raise ModelError("temperature: versions 3 and 4 have the temperature input, version 5 does not")
        if self.zbl is not None and not isinstance(self.zbl, ZBL):
            raise ModelError(f"zbl: expected ZBL or None, got {self.zbl!r}")
        set_("species", check_species(self.species, symbols_needed_by(self.zbl, self.typewise)))
        self._check_cutoffs(set_)

        set_("n_max", check_pair("n_max", self.n_max, MAX_N))
        set_("basis_size", check_pair("basis_size", self.basis_size, MAX_BASIS))
        l_max, many_body = check_l_max(self.l_max, self.many_body)
        set_("l_max", l_max)
        set_("many_body", many_body)
        n_descriptor = check_size(self.n_max, l_max, many_body) + self.temperature

        if (self.w_hidden2 is None) != (self.b_hidden2 is None):
            raise ModelError("w_hidden2, b_hidden2: expected both or none")
        n1 = _axis("b0", self.b0, 1)
        n2 = 0 if self.b_hidden2 is None else _axis("b_hidden2", self.b_hidden2, 1)
        neurons = check_neurons(self.version, n1, n2)
        network, coefficients = array_shapes(
            self.version, self.n_types, self.n_max, self.basis_size, n_descriptor, neurons
        )
        for name, shape in (network | coefficients | {"q_scaler": (n_descriptor,)}).items():
            set_(name, _frozen(name, getattr(self, name), shape))
        if self.version != 5 and self.type_bias is not None:
            raise ModelError(f"type_bias: only version 5 has one bias per type, this is version {self.version}")
        if not (self.q_scaler > 0).all():
            index = int(np.argmin(self.q_scaler > 0))
            raise ModelError(f"q_scaler: expected numbers above 0, got {self.q_scaler[index]:g} at index {index}")
        set_("bias", check_number("bias", self.bias))
        table = None if self.zbl is None else self.zbl.flexible
        pairs = self.n_types * (self.n_types + 1) // 2
        if table is not None and len(table) != pairs:
            raise ModelError(f"zbl flexible: expected {pairs} rows, one per pair of types, got {len(table)}")

    def _check_cutoffs(self, set_):
        for name in ("cutoff_radial", "cutoff_angular"):
            set_(name, _frozen(name, getattr(self, name), (self.n_types,)))
            for label, value in zip(self.species, getattr(self, name), strict=True):
                check_cutoff(f"{name} of {label}", value)
        # with one type both forms of the cutoff line are the same
        set_("per_type", bool(self.per_type) and self.n_types > 1)
        if self.typewise is not None:
            set_("typewise", check_typewise(self.typewise))
            if self._per_type_line:
                raise ModelError("typewise: element-wise factors exclude cutoffs per type")
            if self.typewise[2] > 0 and self.zbl is not None and self.zbl.factor is not None:
                raise ModelError("typewise: a ZBL factor is given here and in zbl, expected one of them")
        if self.max_neighbors is None and (self.typewise is not None or self._per_type_line):
            # only the short form of the cutoff line has no counts
            set_("max_neighbors", UNKNOWN_NEIGHBORS)
        elif self.max_neighbors is not None:
            set_("max_neighbors", check_pair("max_neighbors", self.max_neighbors, (2**31 - 1, 2**31 - 1)))

    @property
    def _per_type_line(self) -> bool:
        uniform = np.ptp(self.cutoff_radial) == 0 and np.ptp(self.cutoff_angular) == 0
        return self.n_types > 1 and (self.per_type or not uniform)

    @property
    def cutoff_form(self) -> str:
        """Form of the cutoff line in the file: ``uniform``, ``per-type``, ``typewise`` or ``short`` (no counts)."""
        if self.typewise is not None:
            return "typewise"
        if self._per_type_line:
            return "per-type"
        return "short" if self.max_neighbors is None else "uniform"

    @property
    def name(self) -> str:
        """Model token of the file, e.g. ``nep4_zbl_temperature``."""
        return f"nep{self.version}" + "_zbl" * (self.zbl is not None) + "_temperature" * self.temperature

    @property
    def n_types(self) -> int:
        """T."""
        return len(self.species)

    @property
    def neurons(self) -> int:
        """N1."""
        return self.b0.shape[1]

    @property
    def neurons2(self) -> int:
        """N2, 0 with one hidden layer."""
        return 0 if self.b_hidden2 is None else self.b_hidden2.shape[1]

    @property
    def n_components(self) -> tuple[int, int]:
        """Numbers of radial functions (nR+1, nA+1)."""
        return self.n_max[0] + 1, self.n_max[1] + 1

    @property
    def n_descriptor(self) -> int:
        """D, including the temperature input if there is one."""
        return len(self.q_scaler)

    @property
    def n_parameters(self) -> int:
        """Length of :meth:`parameters`."""
        return count_parameters(*self._shapes())

    def _shapes(self):
        sizes = (self.neurons, self.neurons2)
        return array_shapes(self.version, self.n_types, self.n_max, self.basis_size, self.n_descriptor, sizes)

    def __repr__(self):
        labels = " ".join(self.species[:8]) + (f" … ({self.n_types} types)" if self.n_types > 8 else "")
        cutoff = "/".join(
            f"{low:g}" if low == high else f"{low:g}–{high:g}"
            for low, high in ((c.min(), c.max()) for c in (self.cutoff_radial, self.cutoff_angular))
        )
        blocks = "".join(f"+{name}" for name in self.many_body)
        neurons = f"{self.neurons}" + (f"+{self.neurons2}" if self.neurons2 else "")
        return (
            f"NEPModel({self.name}, {labels}, cutoff {cutoff} Å, n_max {self.n_max[0]} {self.n_max[1]}, "
            f"basis_size {self.basis_size[0]} {self.basis_size[1]}, l_max {self.l_max}{blocks}, {neurons} neurons, "
            f"{self.n_parameters} parameters)"
        )

    # ---- derived tables -------------------------------------------------------------------------------------------

    def pair_cutoffs(self) -> tuple[np.ndarray, np.ndarray]:
        """Radial and angular cutoff radii of each pair of types, two symmetric (T, T) arrays in Å.

        The mean of the two types' cutoffs; in models of GPUMD 3.9.5 to 4.6 with element-wise factors
        min((ρ_a + ρ_b)·factor, cutoff).
        """
        pairs = [(cutoff[:, None] + cutoff[None, :]) / 2 for cutoff in (self.cutoff_radial, self.cutoff_angular)]
        if self.typewise is not None and self.typewise[0] > 0:
            reach = self._sum_of_radii()
            pairs = [np.minimum(reach * factor, pair) for pair, factor in zip(pairs, self.typewise[:2], strict=True)]
        return pairs[0], pairs[1]

    def zbl_pairs(self) -> np.ndarray | None:
        """(T, T, 10) table of the ZBL repulsion, or None: r_in, r_out, A_1, α_1, …, A_4, α_4 (Å, eV Å, 1/Å).

        V(r) = (1/r) Σ_i A_i exp(-α_i r) s(r) for the ordered pair (half of it belongs to each atom), with s = 1 below
        r_in, ½ + ½ cos(π (r - r_in)/(r_out - r_in)) up to r_out and 0 beyond (Ziegler, Biersack, Littmark 1985).
        """
        if self.zbl is None:
            return None
        z = np.array([atomic_number(label) for label in self.species], dtype=float)
        inverse_length = 2.134563 * (z[:, None] ** 0.23 + z[None, :] ** 0.23)
        table = np.empty((self.n_types, self.n_types, 10))
        if self.zbl.flexible is not None:
            first, second = np.triu_indices(self.n_types)
            table[first, second] = table[second, first] = self.zbl.flexible
        else:
            factor = self.zbl.factor or (self.typewise[2] if self.typewise is not None else 0.0)
            outer = np.full_like(inverse_length, self.zbl.outer)
            inner = np.full_like(inverse_length, self.zbl.inner)
            if factor > 0:
                outer = np.minimum(self._sum_of_radii() * factor, self.zbl.outer)
                inner = np.zeros_like(outer) if self.zbl.factor is not None else outer / 2
            table[..., 0], table[..., 1] = inner, outer
            table[..., 2:] = _UNIVERSAL
        table[..., 2::2] *= (COULOMB * z[:, None] * z[None, :])[..., None]
        table[..., 3::2] *= inverse_length[..., None]
        return table

    def _sum_of_radii(self) -> np.ndarray:
        radii = np.array([RADII[label] for label in self.species])
        return radii[:, None] + radii[None, :]

    # ---- the parameter vector -------------------------------------------------------------------------------------

    def parameters(self) -> np.ndarray:
        """All trainable parameters in file order, (n_parameters,): networks, common bias, c_radial, c_angular."""
        network, coefficients = self._shapes()
        parts = [getattr(self, name)[g].ravel() for g in range(len(self.b0)) for name in network]
        return np.concatenate([*parts, [self.bias], *(getattr(self, name).ravel() for name in coefficients)])

    def with_parameters(self, z) -> NEPModel:
        """A model with the parameter vector ``z``, (n_parameters,) in the order of :meth:`parameters`."""
        shapes = self._shapes()
        z = validate_array("parameters", z, (count_parameters(*shapes),))
        return replace(self, **unpack_parameters(z, *shapes))

    def parameter_blocks(self) -> tuple[dict[str, slice], np.ndarray]:
        """Where the pieces of the parameter vector are, and which type owns each parameter.

        The names are ``w0[g]``, ``b0[g]``, (``w_hidden2[g]``, ``b_hidden2[g]``,) ``w1[g]``, (``type_bias[g]``) for
        network g, then ``bias``, ``c_radial``, ``c_angular``. The owner array, (n_parameters,) integers, has the type
        of the network, the centre type of a coefficient, and T for what all types share (bias; the network of version
        3): the channels of the type-wise ranking of Song et al., Nat. Commun. 15, 10208 (2024).
        """
        network, coefficients = self._shapes()
        blocks: dict[str, slice] = {}
        owners = []

        def add(name, owner):
            start = blocks[next(reversed(blocks))].stop if blocks else 0
            blocks[name] = slice(start, start + owner.size)
            owners.append(owner.ravel())

        for g in range(len(self.b0)):
            owner = self.n_types if self.version == 3 else g
            for name, shape in network.items():
                add(f"{name}[{g}]", np.full(shape[1:], owner))
        add("bias", np.array(self.n_types))
        for name, shape in coefficients.items():
            add(name, np.broadcast_to(np.arange(self.n_types)[:, None], shape))
        return blocks, np.concatenate(owners)

    # ---- making models --------------------------------------------------------------------------------------------

    @classmethod
    def zeros(
        cls,
        species: Sequence[str],
        *,
        cutoff=(6.0, 4.0),
        n_max=(4, 4),
        basis_size=(8, 8),
        l_max=(4, 2, 0),
        neurons=10,
        version: int = 4,
        zbl=None,
        temperature: bool = False,
        q_scaler=None,
        max_neighbors=UNKNOWN_NEIGHBORS,
    ) -> NEPModel:
        """A model with all parameters zero and the scaler ``q_scaler`` (default: ones, 0.001 for the temperature).

        ``cutoff`` in Å: (radial, angular) or {label: (radial, angular)}. ``l_max``: L and the switches as in the file
        (q222, q1111, q112, q123, q233, q134; non-zero is on). ``neurons``: N1 or (N1, N2). ``zbl``: :class:`ZBL`,
        (inner, outer) or (inner, outer, factor).
        """
        species = check_species(species)
        version = check_integer("version", version, 3, 5)
        per_type = isinstance(cutoff, Mapping)
        if per_type:
            if set(cutoff) != set(species):
                raise ModelError(f"cutoff: expected the labels {', '.join(species)}, got {', '.join(map(str, cutoff))}")
            cutoffs = [two(f"cutoff of {label}", cutoff[label]) for label in species]
        else:
            cutoffs = [two("cutoff", cutoff)] * len(species)
        order, many_body = switches(l_max)
        n_max = check_pair("n_max", n_max, MAX_N)
        basis_size = check_pair("basis_size", basis_size, MAX_BASIS)
        n_descriptor = check_size(n_max, *check_l_max(order, many_body)) + bool(temperature)
        sizes = (neurons, 0) if np.ndim(neurons) == 0 else two("neurons", neurons)
        network, coefficients = array_shapes(
            version, len(species), n_max, basis_size, n_descriptor, check_neurons(version, *sizes)
        )
        if q_scaler is None:
            q_scaler = np.ones(n_descriptor)
            if temperature:
                q_scaler[-1] = 0.001
        if zbl is not None and not isinstance(zbl, ZBL):
            zbl = ZBL(*zbl)
        return cls(
            version=version,
            species=species,
            cutoff_radial=np.array([radial for radial, _ in cutoffs]),
            cutoff_angular=np.array([angular for _, angular in cutoffs]),
            n_max=n_max,
            basis_size=basis_size,
            l_max=order,
            many_body=many_body,
            bias=0.0,
            q_scaler=q_scaler,
            temperature=temperature,
            zbl=zbl,
            max_neighbors=max_neighbors,
            per_type=per_type,
            **{name: np.zeros(shape) for name, shape in (network | coefficients).items()},
        )

    @classmethod
    def random(cls, species: Sequence[str], *, seed=0, q_scaler=None, **settings) -> NEPModel:
        """A model with random parameters of moderate size; ``settings`` as for :meth:`zeros`.

        Independent normal numbers of mean 0 and these standard deviations: weights 1/√(number of inputs) (D, N1, N2;
        w1 in eV), c 1/√(K+1), biases ½ (in eV where they belong to the energy). The default scaler makes the scaled
        descriptors of a disordered arrangement of 0.05 beads per Å³ of order 1. All numbers have the 8 digits of the
        file: writing is exact.
        """
        model = cls.zeros(species, q_scaler=q_scaler, **settings)
        rng = np.random.default_rng(seed)
        network, coefficients = model._shapes()
        inputs = {
            "w0": model.n_descriptor,
            "w_hidden2": model.neurons,
            "w1": model.neurons2 or model.neurons,
            "c_radial": model.basis_size[0] + 1,
            "c_angular": model.basis_size[1] + 1,
        }
        arrays = {
            name: _file_digits(rng.normal(0.0, inputs.get(name, 4) ** -0.5, shape))
            for name, shape in (network | coefficients).items()
        }
        if q_scaler is None:
            arrays["q_scaler"] = _file_digits(model._typical_scaler())
        return replace(model, bias=float(_file_digits(rng.normal(0.0, 0.5))), **arrays)

    def _typical_scaler(self) -> np.ndarray:
        # ρ ∫ g² d³r sets the size of all angular sums, ρ ∫ f_k d³r that of the radial ones
        density = 0.05
        radial = 4 * math.pi * density * float(np.mean(self.cutoff_radial)) ** 3 * 0.035
        angular = 4 * math.pi * density * float(np.mean(self.cutoff_angular)) ** 3 * 0.01
        size = [radial] * self.n_components[0]
        for order in range(1, self.l_max + 1):
            size += [(2 * order + 1) / (4 * math.pi) * angular] * self.n_components[1]
        for name in self.many_body:
            size += [0.05 * angular ** ((len(name) - 1) / 2)] * self.n_components[1]
        if self.temperature:
            size.append(1000.0)
        return 1 / np.array(size)

    # ---- files ----------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, path) -> NEPModel:
        """Read a ``nep.txt``; :class:`~ase_nepcg.errors.ModelFileError` names the line of any defect."""
        from .nepfile import read_model

        return read_model(path)

    def write(self, path) -> None:
        """Write a ``nep.txt`` that reads back exactly; an existing file is replaced at once or not at all."""
        from .nepfile import write_model

        write_model(path, self)

    @classmethod
    def from_text(cls, text: str) -> NEPModel:
        """The model described by ``text``, the content of a ``nep.txt``."""
        from .nepfile import parse_model

        return parse_model(text)

    def to_text(self) -> str:
        """The content of the ``nep.txt`` of this model."""
        from .nepfile import format_model

        return format_model(self)


def _axis(name: str, value, axis: int) -> int:
    shape = np.shape(value)
    if len(shape) <= axis:
        raise ModelError(f"{name}: expected an array of shape (networks, neurons), got shape {shape}")
    return shape[axis]


def _file_digits(values) -> np.ndarray:
    """Round to the 8 significant digits of the file."""
    values = np.asarray(values)
    return np.array([float(f"{value:.7e}") for value in values.ravel()]).reshape(values.shape)
