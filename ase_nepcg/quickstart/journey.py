"""``quickstart``: all stages, then the report."""

from __future__ import annotations

import pickle

from ase import Atoms

from ..calculator import NEP
from ..errors import is_integer
from ..meanforce.workers import refuse_unguarded_script
from ..nepfile import write_atomically
from .commands import commands
from .figures import draw_figures
from .folder import RunFolder
from .report import html_report
from .settings import QuickstartError, settings_of
from .stages import Journey
from .system import default_densities, make_system

__all__ = ["REPORT", "quickstart"]

REPORT = "report.html"


def quickstart(
    folder,
    *,
    atoms=None,
    calculator=None,
    mapping=None,
    preset="full",
    threads=None,
    workers=None,
    progress=True,
    tell=print,
    name=None,
    calculator_options=None,
    command=None,
    **settings,
) -> dict:
    """Make, run and compare a coarse-grained model in ``folder``; returns the numbers of all stages.

    Parameters
    ----------
    folder
        Made if it is not there. A rerun with the same arguments goes on from what is finished.
    atoms, calculator, mapping
        A periodic box (``Atoms``), any ASE calculator with forces and stress (default: that of the atoms), and a
        :class:`~ase_nepcg.Mapping` (default: a bead per molecule). Without atoms: boxes of water, an embedded model.
    preset
        "full"; "quick": a minute, to see that everything works; "long": half an hour or more, up to 1 GPa.
    threads, workers
        Threads of NEP models, processes for mean forces; None: all cores.
    progress, tell
        Bars where stderr is a terminal; a function that is given every line of text.
    name
        Of the system in the report.
    calculator_options, command
        How the command line names the calculator and the whole; for the report.
    **settings
        Any of :class:`~ase_nepcg.quickstart.Settings`.

    The folder then holds ``report.html``, ``nep.txt``, ``nep_uncorrected.txt``, ``train.xyz``, ``test.xyz``, figures,
    trajectories and checkpoints.

    With one-atom sites among the beads their time step is by default that of the atoms.

    Raises QuickstartError or TypeError for arguments that make no sense, FolderError for a folder that cannot be used,
    MappingError, and whatever the stages raise; nothing that was finished is lost.
    """
    for what, value in (("threads", threads), ("workers", workers)):
        if value is not None and (not is_integer(value) or value < 1):
            raise QuickstartError(f"{what}: expected a positive integer or None, got {value!r}")
    if atoms is not None:
        if not isinstance(atoms, Atoms):
            raise QuickstartError(f"atoms: expected Atoms, got {type(atoms).__name__}")
        for what in ("edge", "melt_ps", "melt_K"):
            if what in settings:
                raise QuickstartError(f"{what}: is for the embedded water; a structure of yours is taken as it is")
        if "densities" not in settings and atoms.cell.rank == 3:
            settings["densities"] = default_densities(atoms)
        if mapping is not None and "bead_timestep_fs" not in settings and min(map(len, mapping.groups)) == 1:
            # atoms among the beads
            settings["bead_timestep_fs"] = settings_of(preset, **settings).timestep_fs
    chosen = settings_of(preset, **settings)
    system = make_system(atoms, calculator, mapping, chosen)
    if workers != 1:
        refuse_unguarded_script()
        _check_picklable(system.calculator)
    name = system.name if name is None else str(name)
    with RunFolder(folder, chosen.as_dict() | system.identity()) as place:
        numbers = Journey(place, chosen, system, threads, workers, progress, tell).run()
        figures = draw_figures(place, numbers, chosen)
        own = "--model atomistic.txt" if isinstance(system.calculator, NEP) else calculator_options
        shown = f'quickstart("{folder}", ...)' if command is None else command
        text = html_report(name, numbers, chosen, figures, commands(chosen, numbers, own), shown)
        write_atomically(place.file(REPORT), text.encode())
        tell(f"{place.file(REPORT)}")
    return numbers


def _check_picklable(calculator) -> None:
    try:
        pickle.dumps(calculator)
    except Exception as error:
        # pickling runs code of the calculator's
        raise QuickstartError(
            f"{type(calculator).__name__} cannot be sent to worker processes ({' '.join(str(error).split())}); use "
            "workers=1 (--workers 1)"
        ) from error
