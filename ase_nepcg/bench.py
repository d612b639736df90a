"""``nepcg bench``: the time of one force evaluation, against other installed NEP calculators on the same systems.

What is timed is ``atoms.get_forces()`` after the positions have changed, with everything that belongs to it (checks,
neighbour list, results). Every calculator and number of threads has its own process, with ``OMP_NUM_THREADS`` and its
relatives set; the processes take turns of a few calls, so that a disturbance of the machine meets all of them. The best
of N calls is reported, and the median.

Two kinds of moves: "small" (0.001 Å, as in molecular dynamics: a neighbour list with a skin stays valid) and "rebuild"
(sites go back and forth by up to 1 Å, a smooth shear wave, so that no list survives and no sites overlap).

Times are comparable within one run only.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from . import __version__
from .bench_report import OURS, format_report
from .bench_systems import DATA_SYSTEMS, SYSTEMS, System, bead_water
from .cli import UsageError
from .errors import NepCGError, closest

__all__ = ["PEERS", "Bench", "BenchError", "busy", "compare", "machine", "scaling", "startup"]

#: name of a peer -> (distribution, module to import)
PEERS = {"calorine": ("calorine", "calorine.calculators"), "nep-adapters": ("nep-adapters", "nep_adapters.ase")}

SMALL_MOVE = 0.001  # Å, standard deviation per coordinate
WAVE = 0.5  # Å, amplitude; the two configurations of "rebuild" differ by twice this
_TURN = 5  # calls


class BenchError(NepCGError, RuntimeError):
    """A benchmark process that failed."""


# ---- the process of one calculator --------------------------------------------------------------------------------


class _Moves:
    """Positions for one call after the other; the same sequence for every calculator."""

    def __init__(self, atoms):
        self.base = atoms.positions.copy()
        self.rng = np.random.default_rng(7)
        extent = np.ptp(self.base, axis=0)
        cell = atoms.cell.complete().array
        # phase along the first direction, motion along the second: distances change to second order of small strains
        phase = np.linalg.solve(cell.T, self.base.T)[0] if atoms.pbc[0] else self.base[:, 0] / max(extent[0], 10.0)
        along = cell[1] / np.linalg.norm(cell[1])
        self.wave = WAVE * np.cos(2 * np.pi * phase)[:, None] * along
        self.sign = 1.0

    def small(self):
        return self.base + self.rng.normal(0.0, SMALL_MOVE, self.base.shape)

    def rebuild(self):
        self.sign = -self.sign
        return self.base + self.sign * self.wave


def _make_calculator(name: str, model: str, threads: int):
    if name == OURS:
        from .calculator import NEP

        return NEP(model, device="cpu", threads=threads)
    if name == "calorine":
        from calorine.calculators import CPUNEP

        return CPUNEP(model)
    if name == "nep-adapters":
        from nep_adapters.ase import NepAseCalculator

        return NepAseCalculator(model, backend="cpu")
    raise ValueError(f"no calculator {name!r}")


def _serve(name: str, folder: str, threads: int) -> None:
    """Answer the lines of stdin (a kind of move and a number of calls, or "memory") with JSON lines until it ends."""
    # what the peers print must not get between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    folder = Path(folder)
    try:
        # written by the parent process into a directory of its own
        atoms = pickle.loads((folder / "atoms.pickle").read_bytes())
        atoms.calc = _make_calculator(name, (folder / "path").read_text(), threads)
        start = time.perf_counter()
        forces = atoms.get_forces()
        first = time.perf_counter() - start
        np.save(folder / f"forces-{name}-{threads}.npy", forces)
        answer(first_s=first)
        moves = _Moves(atoms)
        for line in sys.stdin:
            request, *count = line.split()
            if request == "memory":
                answer(peak_bytes=_peak_memory())
                continue
            seconds = []
            for _ in range(int(count[0])):
                atoms.positions = getattr(moves, request)()
                start = time.perf_counter()
                atoms.get_forces()
                seconds.append(time.perf_counter() - start)
            answer(seconds=seconds)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")


def _peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _environment(threads: int | None) -> dict[str, str]:
    """Environment of a process with ``threads`` threads, in which this package is found as it was here."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    if threads is not None:
        for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
            environment[f"{name}_NUM_THREADS"] = str(threads)
    return environment


class _Worker:
    """A process that evaluates one system with one calculator on request. Use as a context manager."""

    def __init__(self, name: str, folder: Path, threads: int):
        self.name, self.threads = name, threads
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=_environment(threads),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def receive(self) -> dict:
        """The next answer; :class:`BenchError` if the process failed."""
        line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "error" not in answer:
                return answer
            raise BenchError(f"{self.name}: {answer['error']}")
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"{self.name}: its process ended with status {self.process.wait()}: {' '.join(last)}")

    def ask(self, request: str) -> dict:
        """Send a request and wait for the answer."""
        # if the process is gone, receive() says why
        with contextlib.suppress(BrokenPipeError):
            print(request, file=self.process.stdin, flush=True)
        return self.receive()

    def call(self, kind: str, count: int = 1) -> list[float]:
        """Seconds of ``count`` calls after moves of one kind."""
        return self.ask(f"{kind} {count}")["seconds"]


def _prepare(system: System, folder: Path) -> None:
    """Write what a worker needs."""
    path = system.model
    if not isinstance(path, str | os.PathLike):
        path = folder / "nep.txt"
        system.model.write(path)
    (folder / "path").write_text(os.path.abspath(path))
    atoms = system.atoms.copy()
    atoms.calc = None
    (folder / "atoms.pickle").write_bytes(pickle.dumps(atoms))


def _turns(repeat: int) -> list[int]:
    """Numbers of calls in one turn; several in a row find the caches as a simulation would."""
    return [_TURN] * (repeat // _TURN) + [repeat % _TURN] * (repeat % _TURN > 0)


def _statistics(seconds: list[float], n: int) -> dict[str, float]:
    """Best and median in µs per site."""
    return {"best": 1e6 * min(seconds) / n, "median": 1e6 * statistics.median(seconds) / n}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- comparison ---------------------------------------------------------------------------------------------------


def installed(peer: str) -> str | None:
    """Version of a peer, or None if it is not installed."""
    distribution, module = PEERS[peer]
    try:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            return None
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def compare(
    systems: list[System], peers: list[str], threads: list[int], repeat: int, say: Callable[[str], None] = _say
) -> list[dict]:
    """One row per system, number of threads and calculator.

    A row has system, sites, threads, calculator and status ("ok", "not installed" or what went wrong). If ok also
    ``first_s`` (seconds of the first call), ``small``, ``rebuild`` ({"best", "median"}, µs per site), ``ratio_small``
    and ``ratio_rebuild`` (best time over ours) and ``max_force_deviation`` (from ours, eV/Å). Raises
    :class:`BenchError` if this package's own calculator fails.
    """
    rows = []
    for system in systems:
        for count in threads:
            say(f"{system.name}: {len(system.atoms)} sites, {count} thread{'s' * (count > 1)}")
            rows += _compare_one(system, peers, count, repeat, say)
    return rows


def _compare_one(system, peers, threads, repeat, say) -> list[dict]:
    n = len(system.atoms)
    rows = {
        name: {"system": system.name, "sites": n, "threads": threads, "calculator": name, "status": "ok"}
        for name in [OURS, *peers]
    }
    for name in peers:
        if installed(name) is None:
            rows[name]["status"] = "not installed"
    workers = {}
    with tempfile.TemporaryDirectory(prefix="nepcg-bench-") as folder:
        folder = Path(folder)
        _prepare(system, folder)

        def attempt(name, action):
            try:
                return action()
            except BenchError as error:
                if name == OURS:
                    raise
                rows[name]["status"] = str(error).removeprefix(f"{name}: ")
                workers.pop(name).__exit__()
                say(f"  {error}")
                return None

        try:
            for name in [name for name, row in rows.items() if row["status"] == "ok"]:
                # one after the other: the first call includes compilation
                workers[name] = _Worker(name, folder, threads)
                answer = attempt(name, workers[name].receive)
                if answer:
                    rows[name]["first_s"] = answer["first_s"]
            times = {name: {"small": [], "rebuild": []} for name in rows}
            for kind in ("small", "rebuild"):
                for turn, calls in enumerate([1, *_turns(repeat)]):
                    for name in list(workers):
                        seconds = attempt(name, partial(workers[name].call, kind, calls))
                        # the first one is not counted
                        if seconds and turn:
                            times[name][kind] += seconds
            ours = np.load(folder / f"forces-{OURS}-{threads}.npy")
            for name in workers:
                row = rows[name]
                for kind in ("small", "rebuild"):
                    row[kind] = _statistics(times[name][kind], n)
                    row[f"ratio_{kind}"] = row[kind]["best"] / rows[OURS][kind]["best"]
                forces = np.load(folder / f"forces-{name}-{threads}.npy")
                row["max_force_deviation"] = float(abs(forces - ours).max())
        finally:
            for worker in workers.values():
                worker.__exit__()
    return list(rows.values())


# ---- scaling, start-up, a busy machine ----------------------------------------------------------------------------


def scaling(sizes=(10_000, 100_000), huge: int = 1_000_000, repeat: int = 5, threads: int = 1, say=_say) -> dict:
    """Cost per site of bead water at ``sizes`` and the memory of ``huge`` sites.

    ``sizes``: µs per site; ``ratio``: that of the last size over that of the first; ``memory``: peak in bytes of a
    process that evaluates ``huge`` sites after a small and after a large move.
    """
    result = {"threads": threads, "sizes": {}}
    for n in sizes:
        say(f"scaling: {n} beads")
        result["sizes"][str(n)] = _time_alone(bead_water(n), threads, repeat)[0]
    costs = list(result["sizes"].values())
    result["ratio"] = {kind: costs[-1][kind]["best"] / costs[0][kind]["best"] for kind in ("small", "rebuild")}
    say(f"scaling: memory of {huge} beads")
    result["memory"] = {"sites": huge, "peak_bytes": _time_alone(bead_water(huge), threads, 0)[1]}
    return result


def _time_alone(system: System, threads: int, repeat: int) -> tuple[dict, int]:
    with tempfile.TemporaryDirectory(prefix="nepcg-bench-") as folder:
        _prepare(system, Path(folder))
        with _Worker(OURS, Path(folder), threads) as worker:
            worker.receive()
            costs = {}
            for kind in ("small", "rebuild"):
                worker.call(kind)
                if repeat:
                    costs[kind] = _statistics(worker.call(kind, repeat), len(system.atoms))
            return costs, worker.ask("memory")["peak_bytes"]


_IMPORT = """
import time; start = time.perf_counter()
{}
print(time.perf_counter() - start)
"""

_FIRST_FORCE = """
import time; start = time.perf_counter()
from ase_nepcg import NEP
from ase_nepcg.bench_systems import bead_water
system = bead_water(216)
system.atoms.calc = NEP(system.model)
system.atoms.get_forces()
print(time.perf_counter() - start)
"""


def startup(say=_say) -> dict:
    """Seconds in new processes.

    ``import_s``: ``import ase_nepcg``; ``import_nep_s``: ``from ase_nepcg import NEP``, which imports ASE too;
    ``cold_…``, ``warm_…``: the first force with an empty and with a filled cache of kernels, from the first import to
    the result (``first_force_s``) and for the process as a whole (``process_s``). Best of 3, except cold.
    """
    say("start-up: import, cold cache, warm cache")
    result = {
        name: min(_timed_process(_IMPORT.format(code), {})[0] for _ in range(3))
        for name, code in (("import_s", "import ase_nepcg"), ("import_nep_s", "from ase_nepcg import NEP"))
    }
    with tempfile.TemporaryDirectory(prefix="nepcg-bench-") as cache:
        cold = _timed_process(_FIRST_FORCE, {"NUMBA_CACHE_DIR": cache})
        warm = min(_timed_process(_FIRST_FORCE, {"NUMBA_CACHE_DIR": cache}) for _ in range(3))
    for name, (inside, process) in (("cold", cold), ("warm", warm)):
        result[f"{name}_first_force_s"], result[f"{name}_process_s"] = inside, process
    return result


def _timed_process(code: str, variables: dict[str, str]) -> tuple[float, float]:
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(None) | variables, check=False
    )
    if run.returncode:
        raise BenchError(
            f"start-up: a process ended with status {run.returncode}: {' '.join(run.stderr.split()[-30:])}"
        )
    return float(run.stdout), time.perf_counter() - start


# leaves when its parent does, however that ends
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1000000): pass
"""


def busy(repeat: int = 50, system: System | None = None, say=_say) -> dict:
    """One thread against two on bead water, in µs per site: on the machine as it is, and with a core kept busy.

    ``speedup`` is the median time of one thread over that of two.
    """
    system = system or bead_water()
    result = {"cores": _cores()}
    with tempfile.TemporaryDirectory(prefix="nepcg-bench-") as folder:
        _prepare(system, Path(folder))
        with _Worker(OURS, Path(folder), 1) as one, _Worker(OURS, Path(folder), 2) as two:
            workers = (one, two)
            for worker in workers:
                worker.receive()
                worker.call("small")
            for name in ("idle", "busy"):
                say(f"one and two threads, machine {name}")
                other = subprocess.Popen([sys.executable, "-c", _BUSY]) if name == "busy" else None
                try:
                    times = {1: [], 2: []}
                    for calls in _turns(repeat):
                        for worker in workers:
                            times[worker.threads] += worker.call("small", calls)
                finally:
                    if other is not None:
                        other.kill()
                        other.wait()
                costs = {str(count): _statistics(values, len(system.atoms)) for count, values in times.items()}
                result[name] = {"threads": costs, "speedup": costs["1"]["median"] / costs["2"]["median"]}
    return result


# ---- the machine --------------------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict:
    """CPU, cores, doubles per SIMD vector of the kernels, and versions."""
    from .potential.simd import LANES

    names = ("numba", "llvmlite", "numpy", "ase")
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "lanes": LANES,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {OURS: __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in names},
        "peers": {name: installed(name) for name in PEERS},
    }


# ---- nepcg bench --------------------------------------------------------------------------------------------------


def _counts(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"expected positive integers separated by commas, got {text!r}")
    return numbers


def _names(text: str, valid, what: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in valid:
            raise UsageError(f"unknown {what} {name!r}; {closest(name, valid)}")
    return names


class Bench:
    """Time get_forces() on changed positions, everything included, against other installed NEP calculators.

    Without options: all systems with random models, one thread, all installed peers. Every calculator runs in a process
    of its own and the processes take turns; compare times within one run only. "small": moves as in molecular dynamics;
    "rebuild": moves so large that neighbour lists have to be made anew.

    --scaling, --startup and --busy are done instead of the comparison, unless --systems, --model or --data ask for it.
    """

    @staticmethod
    def add_arguments(parser):
        add = parser.add_argument
        add("--systems", metavar="A,B", help=f"of {', '.join(SYSTEMS)}; with --data also {', '.join(DATA_SYSTEMS)}")
        add("--model", metavar="FILE", help="a model file of your own (needs --structure)")
        add("--structure", metavar="FILE", help="structure that ASE can read (needs --model)")
        add(
            "--data",
            metavar="DIR",
            help="folder with published models (models/, pbte/): adds the systems that need them",
        )
        add(
            "--peers", metavar="A,B", default=",".join(PEERS), help="calculators to compare with (%(default)s), or none"
        )
        add("--threads", metavar="N,M", default="1", help="numbers of threads (default %(default)s)")
        add("--repeat", metavar="N", default="10", help="timed calls (default %(default)s)")
        add("--scaling", action="store_true", help="cost per site at 10 000 and 100 000 beads, memory of one million")
        add("--startup", action="store_true", help="import, and first force in a new process with cold and warm cache")
        add("--busy", action="store_true", help="1 and 2 threads, also with another process keeping one core busy")
        add("--json", metavar="FILE", help="write all numbers to FILE")

    @staticmethod
    def run(args) -> int:
        from .nepfile import write_atomically

        # everything is checked before anything is timed
        threads, repeat = _counts(args.threads), _counts(args.repeat)
        if len(repeat) != 1:
            raise UsageError(f"--repeat: expected one number, got {args.repeat!r}")
        peers = [] if args.peers == "none" else _names(args.peers, PEERS, "peer")
        builders = _builders(args)
        if args.json:
            folder = os.path.dirname(os.path.abspath(args.json))
            if not os.path.isdir(folder):
                raise UsageError(f"--json: the folder of {args.json!r} does not exist")
            if os.path.isdir(args.json) or not os.access(folder, os.W_OK):
                raise UsageError(f"--json: {args.json!r} is a folder, or lies in one that cannot be written to")
        report = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "machine": machine()}
        if builders:
            report["repeat"] = repeat[0]
            report["comparison"] = compare([build() for build in builders], peers, threads, repeat[0])
        if args.scaling:
            report["scaling"] = scaling(repeat=repeat[0], threads=threads[0])
        if args.startup:
            report["startup"] = startup()
        if args.busy:
            report["busy"] = busy(repeat=5 * repeat[0])
        print(format_report(report))
        if args.json:
            write_atomically(args.json, json.dumps(report, indent=2) + "\n")
        return 0


def _builders(args) -> list[Callable[[], System]]:
    """What to compare on, in the order given."""
    if (args.model is None) != (args.structure is None):
        raise UsageError("--model and --structure belong together: give both")
    available = dict(SYSTEMS)
    if args.data is not None:
        folder = Path(args.data)
        if not (folder / "models").is_dir():
            raise UsageError(f"--data: expected a folder that holds models/, got {args.data!r}")
        available |= {name: lambda build=build: build(folder) for name, build in DATA_SYSTEMS.items()}
    if args.systems is not None:
        chosen = _names(args.systems, available, "system")
    elif args.model is not None or ((args.scaling or args.startup or args.busy) and args.data is None):
        chosen = []
    else:
        chosen = list(SYSTEMS) if args.data is None else ["bead-water", *DATA_SYSTEMS]
    builders = [available[name] for name in chosen]
    if args.model is not None:
        builders.append(lambda: _own(args.model, args.structure))
    return builders


def _own(model: str, structure: str) -> System:
    from ase.io import read

    from .model import NEPModel

    NEPModel.read(model)  # a bad file is reported here, not by a process
    atoms = read(structure)
    return System(Path(structure).stem, atoms, Path(model))


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
