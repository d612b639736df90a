"""NEP in plain numpy: slow, obvious and written apart from the kernels, whose results the tests compare with it.

Energy of site i with neighbours j (all periodic images), u = r_ij / r, weights g_n and pair cut-offs rc::

    fc(r) = (1 + cos(π r/rc)) / 2      x = 2 (r/rc - 1)² - 1      f_k = (T_k(x) + 1) fc(r) / 2
    g_n(r) = Σ_k c[n,k,a,b] f_k(r)                                               a, b = types of i, j
    q_n = Σ_j g_n(r_ij)                                                          radial set
    q_nl = (2l+1)/(4π) Σ_j Σ_k g_n(r_ij) g_n(r_ik) P_l(u_ij·u_ik)                angular set, l = 1…L
    v = Σ_j g_n u    M = Σ_j g_n (uu)'    T = Σ_j g_n (uuu)'    H = Σ_j g_n (uuuu)'    ' = traceless part
    q222 ∝ tr M³     q1111 ∝ (v·v)²       q112 ∝ v·M·v          q123 ∝ v_a M_bc T_abc
    q233 ∝ M_ab T_acd T_bcd               q134 ∝ v_a T_bcd H_abcd
    U_i = w1·tanh(w0 (s q) - b0) - b1 + ½ Σ_j V_ZBL(r_ij)                        s = q_scaler
    f_ij = ∂U_i/∂r_ij (``partial``)    F_i = Σ_j (f_ij - f_ji)    W_i^{αβ} = Σ_j r_ij^α f_ji^β

Every derivative is a complex step, f'(x) = Im f(x + ih)/h, and no tables of harmonics or monomials occur.

======== ================ ====== ================================================
symbol   name here        unit   shape (m neighbours, D components)
======== ================ ====== ================================================
r_ij     ``vector``       Å      (m, 3), from the centre to the neighbour
rc, c    ``cutoff``, ``c`` Å, -  (m,) and (m, n_max + 1, basis_size + 1)
q        ``q``, ``dq``    -      (D,) and ∂q/∂r_ij (m, D, 3) in 1/Å
======== ================ ====== ================================================

Sources: Fan et al., PRB 104, 104309 (2021) (network, forces, virial); Fan et al., JCP 157, 114801 (2022) (radial
functions, three- to five-body terms); Song et al., Nat. Commun. 15, 10208 (2024) (one network per type, ZBL).
"""

from itertools import permutations, product

import numpy as np
from numpy.polynomial.legendre import legvander

from .errors import ModelError, validate_array

__all__ = ["evaluate", "neighbors"]
STEP, DELTA = 1e-30, np.eye(3)
MANY_BODY = {  # prefactor, contraction, tensors contracted
    "q222": (-45 / np.sqrt(14) / (4 * np.pi) ** 1.5, "...ab,...bc,...ca", "MMM"),
    "q1111": (21 / 5 / (4 * np.pi) ** 2, "...a,...a,...b,...b", "vvvv"),
    "q112": (np.sqrt(27 / 2) / (4 * np.pi) ** 1.5, "...a,...ab,...b", "vMv"),
    "q123": (-15 / 2 / (4 * np.pi) ** 1.5, "...a,...bc,...abc", "vMT"),
    "q233": (np.sqrt(13125) / 4 / (4 * np.pi) ** 1.5, "...ab,...acd,...bcd", "MTT"),
    "q134": (np.sqrt(3675) / 4 / (4 * np.pi) ** 1.5, "...a,...bcd,...abcd", "vTH"),
}


def gradient(function, x):
    """∂function/∂x along the last axis of ``x``, appended as the last axis of the result (complex step)."""
    return np.stack([function(x + 1j * STEP * e).imag / STEP for e in np.eye(x.shape[-1])], axis=-1)


def length(vector):
    """√(r·r) without modulus, so that it stays differentiable for complex arguments."""
    return np.sqrt((vector**2).sum(-1))


def neighbors(i, positions, cell, pbc, cutoff):
    """All images j of all atoms with r_ij < ``cutoff``, except atom i itself: indices (m,) and r_ij (m, 3).

    Any cell (triclinic, left-handed, thin, singular where not periodic), atoms may lie outside it: for the lattice
    vectors a_k of the periodic directions with duals b_k, |r + Σ n_k a_k| < rc implies |n_k + r·b_k| < rc |b_k|.
    """
    lattice = cell[pbc]
    if len(lattice) and np.linalg.matrix_rank(lattice) < len(lattice):
        raise ModelError(f"cell: expected independent lattice vectors where pbc is {pbc.tolist()}, got {cell.tolist()}")
    dual = np.linalg.pinv(lattice)
    vector = positions - positions[i]
    vector = vector - np.rint(vector @ dual) @ lattice
    bounds = np.ceil(cutoff * length(dual.T) + 0.5).astype(int)
    images = np.array(list(product(*[range(-n, n + 1) for n in bounds])))
    vector = vector[:, None] + images @ lattice
    found = length(vector) < cutoff
    found[i, (images == 0).all(1)] = False
    if not vector[found].any(1).all():
        raise ModelError(f"positions: expected distinct positions, got another atom on top of atom {i}")
    return np.nonzero(found)[0], vector[found]


def select(vector, cutoff, c):
    """The pairs with r < rc: mask (m,), then the arguments of :func:`radial_functions` for them."""
    near = length(vector) < cutoff
    return near, vector[near], cutoff[near], np.moveaxis(c[:, :, near], -1, 0)


def radial_functions(vector, cutoff, c):
    """g_n(r) = Σ_k c_nk (T_k(x) + 1) fc(r) / 2, shape (m, n)."""
    r = length(vector)
    x = 2 * (r / cutoff - 1) ** 2 - 1
    chebyshev = [x**0, x]
    while len(chebyshev) < c.shape[-1]:
        chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
    fc = (1 + np.cos(np.pi * r / cutoff)) / 2
    f = (np.stack(chebyshev[: c.shape[-1]], -1) + 1) / 2 * fc[:, None]
    return np.einsum("mnk,mk->mn", c, f)


def traceless(u):
    """Traceless symmetric products u, (uu)', (uuu)', (uuuu)' of unit vectors, flattened side by side: (m, 120)."""

    def symmetric(tensor, distinct):  # sum over the distinct permutations of the indices behind m
        orders = list(permutations(range(1, tensor.ndim)))
        return sum(tensor.transpose(0, *order) for order in orders) * (distinct / len(orders))

    uu = np.einsum("ma,mb->mab", u, u)
    du, duu, dd = (np.moveaxis(np.multiply.outer(DELTA, x), 2, 0) for x in (u, uu, DELTA[None]))
    three = np.einsum("mab,mc->mabc", uu, u) - symmetric(du, 3) / 5
    four = np.einsum("mab,mcd->mabcd", uu, uu) - symmetric(duu, 6) / 7 + symmetric(dd, 3) / 35
    return np.concatenate([t.reshape(len(u), 3 ** (t.ndim - 1)) for t in (u, uu - DELTA / 3, three, four)], axis=-1)


def invariants(moments, names):
    """The four- and five-body components of the summed tensors: (…, 120) -> (number of names, …)."""
    columns = {"v": (0, 3, 1), "M": (3, 12, 2), "T": (12, 39, 3), "H": (39, 120, 4)}
    tensors = {s: moments[..., i:k].reshape(*moments.shape[:-1], *[3] * n) for s, (i, k, n) in columns.items()}
    return np.stack([k * np.einsum(form, *map(tensors.get, symbols)) for k, form, symbols in map(MANY_BODY.get, names)])


def angular_components(vector, cutoff, c, l_max, many_body):
    """Angular q in file order (block slow, n fast) and ∂q/∂r_ij: (B (n_max+1),) and (m, B (n_max+1), 3)."""

    def legendre_terms(moved):  # of one j with all k; moving j changes the double sum by twice this
        cosine = moved @ unit.T / length(moved)[:, None]
        legendre = legvander(cosine, l_max)[..., 1:] * (2 * np.arange(1, l_max + 1) + 1) / (4 * np.pi)
        return radial_functions(moved, cutoff, c)[:, None] * (legendre.swapaxes(1, 2) @ g)

    def tensor_terms(moved):  # of one j in v, M, T, H
        return radial_functions(moved, cutoff, c)[:, :, None] * traceless(moved / length(moved)[:, None])[:, None]

    unit, g = vector / length(vector)[:, None], radial_functions(vector, cutoff, c)
    q, dq = legendre_terms(vector).sum(0), 2 * gradient(legendre_terms, vector)
    if many_body:
        moments = (fixed := tensor_terms(vector)).sum(0)
        q = np.concatenate([q, invariants(moments, many_body)])
        slope = gradient(lambda x: invariants(moments + tensor_terms(x) - fixed, many_body), vector)
        dq = np.concatenate([dq, slope.swapaxes(0, 1)], axis=1)
    return q.reshape(-1), dq.reshape(len(vector), q.size, 3)


def network(model, a, inputs):
    """U of a centre of type ``a`` for the scaled descriptor, eV; all biases are subtracted."""
    group = 0 if model.version == 3 else a
    h = np.tanh(model.w0[group] @ inputs - model.b0[group])
    if model.w_hidden2 is not None:
        h = np.tanh(model.w_hidden2[group] @ h - model.b_hidden2[group])
    return model.w1[group] @ h - model.bias - (0 if model.type_bias is None else model.type_bias[a])


def zbl_energy(vector, parameters):
    """V(r) = s(r)/r Σ_p A_p exp(-α_p r) in eV; ``parameters`` (m, 10): r_in, r_out, A_1, α_1, … A_4, α_4."""
    r, (r_in, r_out) = length(vector), parameters[:, :2].T
    switch = (1 + np.cos(np.pi * (r - r_in) / np.where(r_out > r_in, r_out - r_in, 1))) / 2
    s = np.select([r.real < r_in, r.real < r_out], [1, switch], 0)
    return s / r * (parameters[:, 2::2] * np.exp(-parameters[:, 3::2] * r[:, None])).sum(-1)


def evaluate(model, positions, cell, pbc, types, temperature_K=None):
    """Energies, forces, virials and descriptors of a :class:`~ase_nepcg.model.NEPModel`, by the formulas above.

    Takes ``positions`` (N, 3) and ``cell`` (3, 3, lattice vectors as rows) in Å, ``pbc`` (one or three booleans),
    ``types`` (N,) indices into ``model.species``, ``temperature_K`` for temperature-dependent models and only for them.
    Returns a dictionary: ``energies`` (N,), ``energy`` in eV; ``forces`` (N, 3) in eV/Å; ``virials`` (N, 3, 3) in eV,
    booked on the neighbour and not symmetric (as the heat current needs them), their sum ``virial`` (3, 3) = -dE/dε;
    ``descriptors`` (N, D), scaled. Raises ``ModelError`` for arrays that do not fit, dependent lattice vectors,
    coinciding atoms, and a temperature that is missing or not wanted.
    """
    positions = validate_array("positions", positions, (None, 3))
    cell = validate_array("cell", np.asarray(cell), (3, 3))
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), 3)
    types = validate_array("types", types, (len(positions),), int)
    if not np.isin(types, range(len(model.species))).all():
        raise ModelError(f"types: expected 0 to {len(model.species) - 1}, got {sorted(set(types.tolist()))}")
    if model.temperature != (temperature_K is not None):
        raise ModelError(f"temperature_K: got {temperature_K}, but model.temperature is {model.temperature}")
    cutoffs, zbl, n_radial = model.pair_cutoffs(), model.zbl_pairs(), model.n_max[0] + 1
    n, d = len(positions), len(model.q_scaler)
    energies, forces, virials, descriptors = (np.zeros((n, *shape)) for shape in ((), (3,), (3, 3), (d,)))
    for i, a in enumerate(types):
        j, vector = neighbors(i, positions, cell, pbc, np.max(cutoffs))
        b, q, dq = types[j], np.full(d, temperature_K or 0.0), np.zeros((len(j), d, 3))  # last q: the temperature
        near, *radial = select(vector, cutoffs[0][a, b], model.c_radial[:, :, a, b])
        q[:n_radial] = radial_functions(*radial).sum(0)
        dq[near, :n_radial] = gradient(lambda x, rest=radial[1:]: radial_functions(x, *rest), radial[0])
        near, *angular = select(vector, cutoffs[1][a, b], model.c_angular[:, :, a, b])
        columns = slice(n_radial, d - bool(model.temperature))
        q[columns], dq[near, columns] = angular_components(*angular, model.l_max, model.many_body)
        descriptors[i] = q * model.q_scaler
        energies[i] = network(model, a, descriptors[i])
        slope = model.q_scaler * gradient(lambda x, a=a: network(model, a, x), descriptors[i])
        partial = np.einsum("d,mdc->mc", slope, dq)
        if zbl is not None:  # only pairs of the angular list, half of each to either atom
            pair = zbl[a, b[near]]
            energies[i] += zbl_energy(angular[0], pair).sum() / 2
            partial[near] += gradient(lambda x, pair=pair: zbl_energy(x, pair), angular[0]) / 2
        forces[i] += partial.sum(0)
        np.subtract.at(forces, j, partial)
        np.subtract.at(virials, j, np.einsum("ma,mb->mab", vector, partial))
    results = {"energies": energies, "forces": forces, "virials": virials, "descriptors": descriptors}
    return results | {"energy": energies.sum(), "virial": virials.sum(0)}
