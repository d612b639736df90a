"""The geometry of a training set: who is near whom, and what that says whatever the parameters."""

from __future__ import annotations

import numpy as np

from ..potential.neighbors import NeighborList
from ..potential.simd import LANES, aligned_empty, padded
from ..potential.threads import default_threads, run_chunks
from .kernels.basis import build_fill, collect_pairs, count_pairs
from .kernels.layout import Layout, workspace
from .targets import TargetError, Targets

__all__ = ["Geometry"]

# The partition of a gradient into chunks depends on the sites only, so that sums are the same for any number of threads
_CHUNKS = 64


class Geometry:
    """Neighbours of all sites of a data set within the cutoffs of a model, and as much of their basis as memory allows.

    ``cache_GB``: how much memory the basis (radial functions, polynomials and their sums) may take; what does not fit
    is recomputed where it is needed, with the same results. Neighbours of sites, about 30 bytes each, are always kept.
    """

    def __init__(self, model, targets: Targets, layout: Layout, *, threads: int | None = None, cache_GB: float = 3.0):
        if targets.species != model.species:
            raise TargetError(
                f"the model is for the species {', '.join(model.species)}, the frames were taken for "
                f"{', '.join(targets.species)}"
            )
        self.layout = layout
        self.threads = threads or default_threads()
        self.n_types = model.n_types
        limits = np.stack(model.pair_cutoffs())
        self.cutoffs = np.stack([limits[0], 1 / limits[0], limits[1], 1 / limits[1]], axis=-1).ravel()
        self.first = targets.first.astype(np.int64)
        self.types = targets.types.astype(np.int64)
        self.frame_of = np.repeat(np.arange(len(targets)), targets.n_sites)
        n = len(self.types)
        # for each site: where its frame's list of types begins, how many types, where its ends begin
        self.local = np.zeros((n, 3), np.int64)
        self.radial_begin, self.angular_begin = np.zeros(n, np.int64), np.zeros(n, np.int64)
        parts = {
            name: []
            for name in ("present", "radial_end", "angular_end", "radial_j", "radial_x", "angular_j", "angular_x")
        }
        used = {"present": 0, "ends": 0, "blocks": 0, "pairs": 0}
        self.max_neighbors = np.zeros(2, int)
        for frame in range(len(targets)):
            self._add_frame(targets, frame, limits, parts, used)
        joined = {name: np.concatenate(values) if values else np.zeros(0) for name, values in parts.items()}
        self.present, self.radial_end, self.angular_end = (
            joined[name].astype(np.int64) for name in ("present", "radial_end", "angular_end")
        )
        self.radial_j, self.angular_j = (joined[name].astype(np.int32) for name in ("radial_j", "angular_j"))
        # whole vectors are read
        self.radial_x = aligned_empty(joined["radial_x"].size + LANES)
        self.radial_x[:-LANES], self.radial_x[-LANES:] = joined["radial_x"], 0.0
        self.angular_x = joined["angular_x"]
        self._make_room(cache_GB)
        self._fill()

    def _add_frame(self, targets: Targets, frame: int, limits, parts: dict, used: dict) -> None:
        sites = targets.sites(frame)
        types = targets.types[sites]
        n = len(types)
        present = np.unique(types)
        local_types = np.searchsorted(present, types).astype(np.int32)
        limit = np.ascontiguousarray(limits[:, present][:, :, present])
        near = NeighborList(skin=0.0)
        chunks = np.array([0, n])
        near.update(
            np.ascontiguousarray(targets.positions[sites]),
            np.ascontiguousarray(targets.cells[frame]),
            np.ascontiguousarray(targets.pbc[frame]),
            local_types,
            limit.max(axis=0),
            chunks,
        )
        t = len(present)
        counts = np.zeros((n, t, 2), np.int64)
        arguments = (
            near.positions,
            near.seg,
            near.neighbors,
            near.shifts,
            t,
            local_types,
            limit,
            np.zeros(len(near.neighbors), np.uint8),
        )
        count_pairs(*arguments, counts)
        blocks, pairs = -(-counts[..., 0] // LANES), counts[..., 1]
        radial_end, angular_end = np.cumsum(blocks).reshape(n, t), np.cumsum(pairs).reshape(n, t)
        n_blocks, n_pairs = int(radial_end[-1, -1]), int(angular_end[-1, -1])
        radial_j, angular_j = np.zeros(n_blocks * LANES, np.int64), np.zeros(n_pairs, np.int64)
        radial_x, angular_x = np.zeros(n_blocks * 3 * LANES), np.zeros(3 * n_pairs)
        bad = collect_pairs(
            *arguments, radial_end - blocks, angular_end - pairs, radial_j, radial_x, angular_j, angular_x
        )
        if bad >= 0:
            raise TargetError(f"site {bad} has another site at the same place", frame=frame)
        self.local[sites, 0] = used["present"]
        self.local[sites, 1] = t
        self.local[sites, 2] = used["ends"] + t * np.arange(n)
        self.radial_begin[sites] = used["blocks"] + np.concatenate([[0], radial_end[:-1, -1]])
        self.angular_begin[sites] = used["pairs"] + np.concatenate([[0], angular_end[:-1, -1]])
        parts["present"].append(present)
        parts["radial_end"].append((used["blocks"] + radial_end).ravel())
        parts["angular_end"].append((used["pairs"] + angular_end).ravel())
        parts["radial_j"].append(radial_j.astype(np.int32))
        parts["angular_j"].append(angular_j.astype(np.int32))
        parts["radial_x"].append(radial_x)
        parts["angular_x"].append(angular_x)
        used["present"] += t
        used["ends"] += t * n
        used["blocks"] += n_blocks
        used["pairs"] += n_pairs
        self.max_neighbors = np.maximum(self.max_neighbors, counts.sum(axis=1).max(axis=0))

    def _make_room(self, cache_GB: float) -> None:
        """Decide which sites have their basis in memory: those from the first one on for which there is room."""
        last = self.local[:, 2] + self.local[:, 1] - 1
        blocks = self.radial_end[last] - self.radial_begin
        pairs = self.angular_end[last] - self.angular_begin
        self.max_blocks, self.max_pairs = int(blocks.max()), int(pairs.max())
        sizes = np.array(
            [padded(int(self.layout.site(t, b, p))) for t, b, p in zip(self.local[:, 1], blocks, pairs, strict=True)]
        )
        ends = np.cumsum(sizes)
        self.n_cached = int(np.searchsorted(ends, cache_GB * 1e9 / 8, side="right"))
        self.basis_at = np.where(np.arange(len(sizes)) < self.n_cached, ends - sizes, -1)
        self.basis = aligned_empty(int(ends[self.n_cached - 1]) if self.n_cached else 0)
        self.n_local_most = int(self.local[:, 1].max())

    def _fill(self) -> None:
        work, place = self.workspace(self.threads, 0)
        run_chunks(
            build_fill(self.layout),
            (
                *(self.partition(np.arange(len(self.types)))[0], self.n_types, self.types, self.local, self.present),
                *(self.cutoffs, self.radial_x, self.radial_begin, self.radial_end, self.angular_x, self.angular_begin),
                *(self.angular_end, self.basis_at, self.basis, work, place),
            ),
            self.threads,
        )

    def workspace(self, threads: int, sites: int) -> tuple[np.ndarray, np.ndarray]:
        """Memory for ``threads`` threads with room for forces on ``sites`` sites each, and the offsets of its parts."""
        place = workspace(self.layout, self.n_local_most, self.max_blocks, self.max_pairs, sites)
        work = aligned_empty(threads * place[-1])
        work[:] = 0.0
        return work, place

    def sites_of(self, frames) -> np.ndarray:
        """Numbers of the sites of some frames."""
        return np.concatenate([np.arange(self.first[s], self.first[s + 1]) for s in frames])

    def partition(self, sites) -> tuple[np.ndarray, np.ndarray]:
        """Chunks of ``sites``: boundaries and the sites themselves."""
        n = len(sites)
        return np.linspace(0, n, min(_CHUNKS, -(-n // 16)) + 1).astype(np.int64), np.ascontiguousarray(sites, np.int64)

    @property
    def arrays(self) -> tuple:
        """What every kernel takes about the neighbours, in this order."""
        return (
            *(self.types, self.local, self.present, self.cutoffs, self.radial_x, self.radial_j, self.radial_begin),
            *(self.radial_end, self.angular_x, self.angular_j, self.angular_begin, self.angular_end, self.basis_at),
            self.basis,
        )
