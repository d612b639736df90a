"""One evaluation on the device: the same arguments and results as ``ase_nepcg.potential.evaluate``."""

from __future__ import annotations

import numpy as np
from numba import cuda

from ase_nepcg.potential.evaluate import Evaluation, EvaluationError, Geometry, check_temperature, number_types
from ase_nepcg.potential.layout import Shape
from ase_nepcg.potential.neighbors import complete_cell

from .box import make_box
from .device import BLOCK, blocks_for
from .lists import ANGULAR, BINS, NEAR, NOT_FINITE, OVERLAP, STALE, STATE, build_lists, not_stale
from .nep import build_kernels, parts
from .parameters import pack
from .precision import precision
from .totals import TOTALS, add_totals
from .totals import totals as sum_over_sites

__all__ = ["CudaEvaluator"]

# up to this many sites a thread does a part of a site's work, not all of it
_FEW_SITES = 30_000
# blocks that sum over the sites of one replica
_MOST_BLOCKS = 256


class CudaEvaluator:
    """Evaluates one model on the device; keeps neighbour lists and buffers between calls.

    ``lanes``: threads per site, None: by the number of sites. Not for two threads at once.
    """

    def __init__(self, model, *, precision="mixed", temperature_K=None, lanes=None, skin: float = 0.6):
        check_temperature(model, temperature_K)
        self.model = model
        self.precision = precision
        self.temperature_K = temperature_K
        self.skin = skin
        self.lanes = lanes
        self.shape = Shape.of(model)
        self.kernels = build_kernels(self.shape, precision)
        self.lists = build_lists(precision)
        self.builds = 0
        self._key = self.present = self._cells = self.box = None

    def __call__(self, geometry: Geometry, *, virials: bool = False, descriptors: bool = False) -> Evaluation:
        """Energies, forces and virial of ``geometry``; per-site virials and descriptors on request.

        Raises EvaluationError for overlapping sites and non-finite results.
        """
        n = len(geometry.positions)
        if n == 0:
            raise EvaluationError("there are no sites to evaluate")
        self.take(geometry)
        self._bring(geometry)
        self.compute(2 if virials else 1)
        state = self.state.copy_to_host()
        if state[OVERLAP]:
            self.report_overlap(geometry.positions, geometry.cell, geometry.pbc, int(state[OVERLAP]) - 1)
        energies = self.energies.copy_to_host().astype(float)
        forces = np.ascontiguousarray(self.forces.copy_to_host().reshape(3, n).T, float)
        if state[NOT_FINITE]:
            finite = np.isfinite(energies) & np.isfinite(forces).all(axis=1)
            bad = int(state[NOT_FINITE]) - 1 if finite.all() else int(np.argmin(finite))
            raise EvaluationError(
                f"energy or force of site {bad} is not finite (energy {energies[bad]}, force {forces[bad].tolist()}): "
                "are sites very close to each other?"
            )
        shape = (n, 3, 3)
        q = None
        if descriptors:
            q = self.Q.copy_to_host().reshape(-1, n).T.astype(float) * self.model.q_scaler
        return Evaluation(
            energies=energies,
            forces=forces,
            virial=self.replica_totals()[:, 1:].sum(axis=0).reshape(3, 3),
            virials=self.virials.copy_to_host().reshape(9, n).T.astype(float).reshape(shape) if virials else None,
            descriptors=q,
        )

    # --- memory ---------------------------------------------------------------------------------------------------

    def take(self, geometry: Geometry) -> None:
        """Parameters and memory for these types and replicas."""
        n = len(geometry.positions)
        first = np.array([0, n]) if geometry.first is None else np.asarray(geometry.first)
        key = n, geometry.types.tobytes(), first.tobytes()
        if key == self._key:
            return
        types, present = number_types(geometry.types, self.model.n_types)
        if present != self.present:
            self.parameters, self.present = pack(self.model, present, self.precision), present
        self.n, self.n_types, self.first_host = n, len(present), first
        real, shape = precision(self.precision).real, self.shape
        self.types = cuda.to_device(types)
        self.replica = cuda.to_device(np.repeat(np.arange(len(first) - 1, dtype=np.int32), np.diff(first)))
        self.first = cuda.to_device(first.astype(np.int32))
        self.temperatures = cuda.to_device(np.full(len(first) - 1, self.temperature_K or 0.0, real))
        self.x = cuda.device_array(3 * n, np.float64)
        self.origin = cuda.device_array(3 * n, precision(self.precision).fixed)
        self.energies, self.zbl_energies = (cuda.device_array(n, real) for _ in range(2))
        self.forces, self.virials = cuda.device_array(3 * n, real), cuda.device_array(9 * n, real)
        self.Q, self.P = (cuda.device_array(shape.n_descriptor * n, real) for _ in range(2))
        self.S = cuda.device_array(shape.n_angular * shape.n_sums * n, real)
        self.slope = cuda.device_array(n * self.n_types * shape.k_radial, real)
        self.near_end, self.angular_end = (cuda.device_array((self.n_types + 1) * n, np.int32) for _ in range(2))
        self.state = cuda.to_device(np.zeros(STATE, np.int32))
        replicas = len(first) - 1
        self.sum_blocks = min(_MOST_BLOCKS, blocks_for(int(np.diff(first).max())))
        self.block_sums = cuda.device_array(replicas * self.sum_blocks * TOTALS, np.float64)
        self.sums = cuda.device_array(replicas * TOTALS, np.float64)
        self.box = None
        self._slots(near=32, angular=16, room=8)
        self._key, self._cells = key, None

    def _slots(self, near: int = 0, angular: int = 0, room: int = 0) -> None:
        """Memory for so many neighbours, angular neighbours and members of a bin."""
        n, real = self.n, precision(self.precision).real
        if near:
            self.near_slots, self.near = near, cuda.device_array(near * n, np.int32)
        if angular:
            self.slots = angular
            self.angular, self.back = (cuda.device_array(angular * n, np.int32) for _ in range(2))
            self.part = cuda.device_array(3 * angular * n, real)
        if room:
            self.room = room
            if self.box is not None:
                self.members = cuda.device_array(self.bin_count * room, np.int32)

    # --- neighbours -----------------------------------------------------------------------------------------------

    def _bring(self, geometry: Geometry) -> None:
        """Positions to the device; a new list where the old one does not serve."""
        replicas = len(self.first_host) - 1
        cell, pbc = geometry.cell.reshape(replicas, 3, 3), geometry.pbc.reshape(replicas, 3)
        cells = cell.tobytes() + pbc.tobytes()
        self.x.copy_to_device(np.ascontiguousarray(geometry.positions).ravel())
        self.state.copy_to_device(np.zeros(STATE, np.int32))
        if cells == self._cells:
            self.place()
            self.check_moved()
            if not self.state.copy_to_host()[STALE]:
                return
        self.set_box(geometry.positions, cell, pbc)
        self.place()
        self.find_all()
        self._cells = cells

    def set_box(self, positions, cell, pbc, spare: float = 1.0) -> None:
        """Boxes for these cells, wide enough for ``spare`` times the list cutoff."""
        kinds = precision(self.precision)
        self.list_cutoff = float(self.parameters.limits[0].max()) + self.skin
        reach = spare * self.list_cutoff
        self.box = make_box(positions, cell, pbc, self.first_host, reach, self.precision)
        limits = (self.parameters.limits + self.skin) ** 2
        self.limits = cuda.to_device(limits.astype(kinds.real).ravel())
        self.copies = int(self.box.copies.prod())
        if self.copies * self.n >= 2**31:
            raise ValueError(f"{self.copies} copies of {self.n} sites are too many for 32-bit numbers")
        self.to_box = cuda.to_device(self.box.to_box.ravel())
        self.to_vector = cuda.to_device(self.box.to_vector.astype(kinds.real).ravel())
        self.offsets = cuda.to_device(self.box.offsets.ravel())
        self.bins = cuda.to_device(self.box.bins.ravel())
        self.bin_first = cuda.to_device(self.box.bin_first)
        self.u = cuda.device_array(3 * self.copies * self.n, kinds.fixed)
        self.boxed = cuda.to_device(np.ascontiguousarray(positions, float).ravel())
        self.free = cuda.to_device(self.box.free)
        self.reach = cuda.to_device(np.full(len(cell), 0.5 * self.skin, kinds.real))
        self.bin_count = int(self.box.bin_first[-1])
        self.counts = cuda.device_array(self.bin_count, np.int32)
        self._slots(room=self.room)

    def place_arguments(self) -> tuple:
        """Of the stages ``place`` and ``moved``."""
        n, copied = self.n, self.n * self.copies
        return (
            (n, self.copies, self.x, self.replica, self.to_box, self.offsets, self.u),
            (
                n,
                copied,
                self.u,
                self.origin,
                self.replica,
                self.to_vector,
                self.reach,
                self.x,
                self.boxed,
                self.free,
                self.state,
            ),
        )

    def list_arguments(self) -> tuple:
        """Of the stages from ``clear`` to ``settle``."""
        n, copied, words = self.n, self.n * self.copies, self.state
        bins = self.bins, self.bin_first, self.counts, self.members, self.room
        sites = n, self.copies, self.n_types, self.u, self.replica, self.types, self.to_vector, self.limits
        angular = self.angular_end, self.angular
        return (
            (self.counts, words),
            (n, self.copies, self.u, self.replica, *bins, words),
            (self.counts, self.members, self.room, words),
            (*sites, *bins, self.near_end, self.near, self.near_slots, words),
            (*sites, self.near_end, self.near, *angular, self.slots, words),
            (n, *map(int, self.box.copies), self.n_types, self.types, *angular, self.back, words),
            (n, copied, self.u, self.origin, words),
        )

    def list_counts(self) -> tuple:
        """Items of the stages from ``clear`` to ``settle``."""
        n, bins = self.n, self.bin_count
        return bins, n * self.copies, bins, n, n, n, n

    def place(self) -> None:
        """Places of all sites at their present positions."""
        not_stale[1, 1](self.state)
        self.lists.place.launch(self.n * self.copies, self.place_arguments()[0])

    def check_moved(self) -> None:
        """STALE, if the list does not serve for the present places."""
        self.lists.moved.launch(self.n, self.place_arguments()[1])

    def find(self) -> None:
        """A new list, if the old one is STALE; nothing comes back to the host."""
        for one, count, arguments in zip(self.lists[2:], self.list_counts(), self.list_arguments(), strict=True):
            one.launch(count, arguments)

    @staticmethod
    def needed(state) -> dict:
        """Neighbours, angular neighbours and members of a bin for which there was no memory; 0: there was."""
        return {name: int(state[word]) for name, word in (("near", NEAR), ("angular", ANGULAR), ("room", BINS))}

    def grow(self, state) -> bool:
        """More memory where ``state`` says that there was not enough; whether there was not."""
        need = self.needed(state)
        # an eighth more, as densities fluctuate
        self._slots(**{name: k + k // 8 + 2 for name, k in need.items() if k})
        return any(need.values())

    def find_all(self) -> None:
        """A new list; again with more memory until it has enough."""
        stale = np.zeros(STATE, np.int32)
        stale[STALE] = 1
        while True:
            self.state.copy_to_device(stale)
            self.find()
            if not self.grow(self.state.copy_to_host()):
                break
        self.state.copy_to_device(np.zeros(STATE, np.int32))
        self.builds += 1

    # --- forces ---------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The next call makes a new list."""
        self._cells = None

    def replica_totals(self) -> np.ndarray:
        """Energy and virial (nine numbers) of each replica, eV, after an evaluation with totals."""
        return self.sums.copy_to_host().reshape(-1, TOTALS)

    def lanes_now(self) -> int:
        """Threads that share a site."""
        return self.lanes or (parts(self.shape) if self.n < _FEW_SITES else 1)

    def force_arguments(self) -> tuple:
        """Of the stages ``sums``, ``network``, ``partial_forces`` and ``gather``."""
        n, n_types, p = self.n, self.n_types, self.parameters
        sites = n, self.copies, n_types
        places = self.u, self.replica, self.types, self.to_vector
        near, angular = (self.near_end, self.near), (self.angular_end, self.angular)
        return (
            (
                *(*sites, *places, *near, *angular, p.pair, p.c_radial, p.c_angular, p.zbl, self.temperatures),
                *(self.Q, self.S, self.zbl_energies, self.state),
            ),
            (
                *(n, n_types, self.types, p.c_radial, p.w0, p.b0, p.w1, p.w2, p.b2, p.bias),
                *(self.Q, self.P, self.S, self.slope, self.zbl_energies, self.energies),
            ),
            (*sites, self.slots, *places, *angular, p.pair, p.c_angular, p.zbl, self.S, self.part),
            (
                *(*sites, self.slots, *places, *near, *angular, self.back, p.pair),
                *(self.slope, self.part, self.forces, self.virials),
            ),
        )

    def compute(self, virials: int, totals: bool = True) -> None:
        """Energies and forces; ``virials``: 0 none, 1 the total, 2 those of all sites too; ``totals``: of replicas."""
        n, lanes = self.n, self.lanes_now()
        sums, network, partial_forces, gather = self.force_arguments()
        self.kernels.sums.launch(n, sums, lanes)
        self.kernels.network.launch(n, network)
        self.kernels.partial_forces.launch(n, partial_forces, lanes)
        self.kernels.gather[virials].launch(n, gather)
        if not totals:
            return
        replicas = len(self.first_host) - 1
        of_blocks, add = self.totals_arguments(virials > 0)
        sum_over_sites[(replicas, self.sum_blocks), BLOCK](*of_blocks)
        add_totals.launch(replicas * TOTALS, add)

    def totals_arguments(self, with_virials: bool = True) -> tuple:
        """Of ``block_totals`` and ``add_totals``."""
        arrays = self.energies, self.forces, self.virials, self.block_sums
        of_blocks = self.first, self.n, with_virials, *arrays, self.state
        return of_blocks, (self.sum_blocks, self.block_sums, self.sums)

    def report_overlap(self, positions, cell, pbc, i: int) -> None:
        """Name the two sites at one place, of which one is ``i``."""
        r = int(np.searchsorted(self.first_host, i, side="right")) - 1
        sites = np.arange(self.first_host[r], self.first_host[r + 1])
        periodic = np.asarray(pbc).reshape(-1, 3)[r]
        box = complete_cell(np.asarray(cell).reshape(-1, 3, 3)[r], periodic)
        d = (positions[sites] - positions[i]) @ np.linalg.inv(box)
        distance = np.linalg.norm((d - np.round(d) * periodic) @ box, axis=1)
        distance[sites == i] = np.inf
        j = int(sites[np.argmin(distance)]) if len(sites) > 1 else i
        raise EvaluationError(
            f"sites {min(i, j)} and {max(i, j)} are at the same place"
            if i != j and distance.min() < 1e-3
            else f"site {i} is at the place of its own image"
        )
