"""``nepcg rdf | eos | hnemd | stress-strain``: measurements on trajectories and models, as tables and figures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .cli_md import _adder, _masses, _one_of, _replicate, _write_table
from .cli_md_start import starting_structure
from .cli_numbers import finite, positive, positive_integer

__all__ = ["EOSCommand", "HNEMDCommand", "RDFCommand", "StressStrainCommand"]

_FIGURES = ("png", "pdf", "svg", "none")


# ---- what all of them have ----------------------------------------------------------------------------------------


def _add_outputs(parser, prefix: str) -> None:
    files = parser.add_argument_group("files")
    files.add_argument("--output", metavar="PREFIX", default=prefix, help=f"of the files (default {prefix})")
    files.add_argument("--overwrite", action="store_true", help="replace the files if they exist")
    files.add_argument("--figure", type=_figure, default="png", metavar="F", help="png (default), pdf, svg or none")


def _figure(text: str) -> str:
    return _one_of(text.lower().lstrip("."), _FIGURES)


def _add_system(parser) -> None:
    parser.add_argument("structure", metavar="STRUCTURE", help="file with atoms or beads, or FILE@INDEX")
    start = _adder(parser.add_argument_group("start"))
    start("--replicate", type=_replicate, metavar='"A B C"', help="repeat the cell along its vectors")
    start("--masses", type=_masses, action="append", metavar="LABEL=M", help="in u, e.g. WAT=18.015,MET=32.042")


def _add_run(parser, time_ps: bool = True) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--temperature-K", "--temperature", type=positive, required=True, metavar="T", help="in K")
    run.add_argument("--timestep-fs", "--timestep", type=positive, required=True, metavar="T", help="time step in fs")
    if time_ps:
        run.add_argument("--time-ps", type=positive, required=True, metavar="T", help="averaged over, of each run")
    run.add_argument("--equilibration-ps", type=positive, default=10.0, metavar="T", help="before (default 10)")
    run.add_argument("--seed", type=_seed, default=0, metavar="N", help="of noise and velocities (default 0)")
    run.add_argument("--threads", type=positive_integer, metavar="N", help="threads (default: all cores)")


def _axis(text: str) -> str:
    return _one_of(text.lower(), ("x", "y", "z"))


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**62):
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2^62 - 1, got {text!r}")
    return int(text)


def _numbers(check):
    def read(text: str) -> list:
        return [check(part) for part in text.split(",")]

    return read


def _outputs(args, *names) -> dict:
    """Names of the files that will be written; UsageError now, and not after the work, if one is there already."""
    from .cli import UsageError

    folder = Path(args.output).parent
    if os.path.basename(args.output) in ("", ".", ".."):
        raise UsageError(
            f"--output {args.output}: expected the beginning of file names, got a folder; for example "
            f"{os.path.join(args.output, 'run')}"
        )
    if not folder.is_dir():
        raise UsageError(f"--output {args.output}: there is no folder {folder}; make it first")
    paths = {name: f"{args.output}{'.' * bool(name)}{name}.csv" for name in names}
    if args.figure != "none":
        paths["figure"] = f"{args.output}.{args.figure}"
    existing = [path for path in paths.values() if os.path.exists(path)]
    if existing and not args.overwrite:
        raise UsageError(f"there already: {', '.join(existing)}; choose another --output, or --overwrite")
    return paths


def _calculator(args, path, atoms):
    from .calculator import NEP
    from .labels import get_types
    from .model import NEPModel

    model = NEPModel.read(path)
    get_types(atoms, model.species)
    kelvin = args.temperature_K if model.temperature else None
    return NEP(model, device="cpu", threads=args.threads, temperature_K=kelvin)


def _draw(paths, plot, *arguments, **settings) -> None:
    """The figure, if one is wanted; written in one go."""
    if "figure" not in paths:
        return
    import io

    import matplotlib as mpl

    from .nepfile import write_atomically

    with mpl.rc_context({"backend": "Agg"}):
        from matplotlib import pyplot as plt

        figure, ax = plt.subplots(layout="constrained")
        plot(*arguments, ax=ax, **settings)
        content = io.BytesIO()
        figure.savefig(content, format=paths["figure"].rpartition(".")[2], dpi=150)
        plt.close(figure)
    write_atomically(paths["figure"], content.getvalue())


def _value(mean, error) -> str:
    import math

    return f"{mean:.5g} +- {error:.2g}" if math.isfinite(error) else f"{mean:.5g} (too short for an error)"


def _wrote(paths) -> None:
    print("wrote", *paths.values())


# ---- nepcg rdf ----------------------------------------------------------------------------------------------------


class RDFCommand:
    """Radial distribution functions of trajectories: table PREFIX.csv and figure PREFIX.png.

    Reads what nepcg md writes, and everything that ASE reads. Columns: distance in Å, then for each pair of labels g
    and the number of neighbours up to there, each with its standard error. All periodic images are counted, so that
    distances beyond half the cell are allowed.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("trajectory", nargs="+", metavar="TRAJECTORY", help="one run, in one or several files")
        parser.add_argument("--r-max", type=positive, required=True, metavar="R", help="largest distance, Å")
        parser.add_argument(
            "--bins", type=positive_integer, default=200, metavar="N", help="between 0 and R (default 200)"
        )
        parser.add_argument("--pairs", type=_pairs, metavar="A-B,...", help="of labels (default: all)")
        parser.add_argument("--skip", type=_skip, default=0, metavar="N", help="leave out the first N frames")
        _add_outputs(parser, "rdf")

    @staticmethod
    def run(args) -> int:
        import itertools

        import numpy as np

        from . import analysis, plot

        paths = _outputs(args, "")
        frames = itertools.islice(analysis.read_frames(args.trajectory), args.skip, None)
        first = next(frames, None)
        if first is None:
            raise analysis.AnalysisError(f"--skip {args.skip}: there are no more frames in {' '.join(args.trajectory)}")
        result = analysis.rdf(itertools.chain([first], frames), args.r_max, args.bins, pairs=args.pairs)
        print(f"{result.samples} frames, average volume {result.volume_A3:.6g} Å^3")
        if not np.isfinite(result.volume_A3):
            print("The cell has no volume, so there is no density and no g: the table has numbers of neighbours only.")
        elif not first.pbc.all():
            print("Not periodic in all directions: g refers to the density of the cell with the vacuum in it.")
        for k, pair in enumerate(result.pairs):
            g = np.nan_to_num(result.g[k])
            top = int(np.argmax(g))
            peak = f"{_value(g[top], result.g_error[k, top])} at {result.r[top]:.3f} Å" if g[top] else "none"
            print(f"  {'-'.join(pair)}: largest g {peak}")
        _write_table(paths[""], *result.as_table())
        _draw(paths, plot.rdf, result)
        _wrote(paths)
        return 0


def _pairs(text: str) -> list:
    pairs = []
    for part in text.split(","):
        labels = part.split("-")
        if len(labels) != 2 or not all(labels):
            raise argparse.ArgumentTypeError(f"expected pairs of labels like O-H,O-O, got {part!r}")
        pairs.append(tuple(labels))
    return pairs


def _skip(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a number of frames, got {text!r}")
    return int(text)


# ---- nepcg eos ----------------------------------------------------------------------------------------------------


class EOSCommand:
    """Equation of state of one or several models: pressures at volumes or densities, or densities at pressures.

        nepcg eos beads.xyz nep.txt --temperature-K 300 --densities 0.9,1.0,1.1 --timestep-fs 2 --time-ps 100

    All state points of a model advance together; the structure is scaled to each volume. Writes PREFIX.csv (for several
    models PREFIX.NAME.csv) and the figure PREFIX.png, with standard errors.
    """

    @staticmethod
    def add_arguments(parser):
        _add_system(parser)
        parser.add_argument(
            "model", nargs="+", metavar="MODEL", help="model file (nep.txt), or NAME=FILE for the legend"
        )
        points = parser.add_mutually_exclusive_group(required=True)
        points.add_argument("--volumes-A3", "--volumes", type=_numbers(positive), metavar="V,...", help="of the cell")
        points.add_argument("--densities", type=_numbers(positive), metavar="D,...", help="in g/cm^3")
        points.add_argument("--pressures-GPa", "--pressures", type=_numbers(finite), metavar="P,...", help="in GPa")
        _add_run(parser)
        _add_outputs(parser, "eos")

    @staticmethod
    def run(args) -> int:
        from . import analysis, plot
        from .quantities import GRAMS_PER_CM3

        models = _named_models(args.model)
        names = list(models) if len(models) > 1 else [""]
        paths = _outputs(args, *names)
        atoms = starting_structure(args)
        calculators = {name: _calculator(args, path, atoms) for name, path in models.items()}
        volumes = args.volumes_A3
        if args.densities is not None:
            volumes = [GRAMS_PER_CM3 * float(atoms.get_masses().sum()) / density for density in args.densities]
        results = analysis.eos(
            atoms,
            temperature_K=args.temperature_K,
            volumes_A3=volumes,
            pressures_GPa=args.pressures_GPa,
            models=calculators,
            timestep_fs=args.timestep_fs,
            equilibration_ps=args.equilibration_ps,
            time_ps=args.time_ps,
            seed=args.seed,
        )
        for (name, result), file in zip(results.items(), names, strict=True):
            print(f"{name}: volume (Å^3), density (g/cm^3), pressure (GPa)")
            for k in range(len(result.volume_A3)):
                short = "" if result.reliable[k] else " (short run)"
                print(
                    f"  {_value(result.volume_A3[k], result.volume_error[k])}, "
                    f"{_value(result.density_g_cm3[k], result.density_error[k])}, "
                    f"{_value(result.pressure_GPa[k], result.pressure_error[k])}{short}"
                )
            _write_table(paths[file], *result.as_table())
        _draw(paths, plot.eos, results if len(results) > 1 else next(iter(results.values())))
        _wrote(paths)
        return 0


def _named_models(entries) -> dict:
    """{name: file}; names are those given, or of the files without suffix."""
    from .cli import UsageError

    models = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or os.path.exists(entry):
            name, path = Path(entry).stem, entry
        if not name or "/" in name:
            raise UsageError(f"{entry}: expected NAME=FILE with a name without '/'")
        if name in models:
            raise UsageError(f"two models are called {name!r}: name them, as NAME=FILE")
        models[name] = path
    return models


# ---- nepcg hnemd --------------------------------------------------------------------------------------------------


class HNEMDCommand:
    """Thermal conductivity by homogeneous non-equilibrium molecular dynamics (HNEMD).

        nepcg hnemd crystal.xyz nep.txt --axis x --fields-per-A 1e-4,2e-4 --temperature-K 300 --timestep-fs 1 \\
            --time-ps 500

    Several runs for each driving force, all in one batch; with two forces or more one sees whether the response is
    linear. Writes PREFIX.csv and the running averages PREFIX.png. For fluids: --convective.
    """

    @staticmethod
    def add_arguments(parser):
        _add_system(parser)
        parser.add_argument("model", metavar="MODEL", help="model file (nep.txt)")
        parser.add_argument("--axis", type=_axis, required=True, metavar="A", help="x, y or z")
        parser.add_argument(
            *("--fields-per-A", "--fields"), type=_numbers(positive), required=True, metavar="F,...", help="in 1/Å"
        )
        parser.add_argument("--convective", action="store_true", help="with the heat that moving beads carry (fluids)")
        parser.add_argument("--thickness-A", "--thickness", type=positive, metavar="H", help="of a sheet, in Å")
        parser.add_argument(
            "--settle-ps", type=positive, default=10.0, metavar="T", help="under the force (default 10)"
        )
        parser.add_argument(
            "--replicas", type=positive_integer, default=4, metavar="N", help="runs for each force (default 4)"
        )
        _add_run(parser)
        _add_outputs(parser, "hnemd")

    @staticmethod
    def run(args) -> int:
        from . import analysis, plot

        paths = _outputs(args, "")
        atoms = starting_structure(args)
        atoms.calc = _calculator(args, args.model, atoms)
        result = analysis.hnemd(
            atoms,
            args.axis,
            temperature_K=args.temperature_K,
            fields_per_A=args.fields_per_A,
            convective=args.convective,
            thickness_A=args.thickness_A,
            timestep_fs=args.timestep_fs,
            equilibration_ps=args.equilibration_ps,
            settle_ps=args.settle_ps,
            time_ps=args.time_ps,
            replicas=args.replicas,
            seed=args.seed,
        )
        for k, field in enumerate(result.fields_per_A):
            text = f"  {field:g} 1/Å: {_value(result.kappa[k], result.kappa_error[k])} W/(m K)"
            if field > result.fields_per_A.min():
                text += f", {result.linear[k]:+.1f} standard errors from the weakest"
            print(text)
        _write_table(paths[""], *result.as_table())
        curves = {
            f"{field:g} 1/Å, run {r + 1}": run
            for field, runs in zip(result.fields_per_A, result.runs, strict=True)
            for r, run in enumerate(runs)
        }
        _draw(paths, plot.running_conductivity, curves)
        _wrote(paths)
        return 0


# ---- nepcg stress-strain ------------------------------------------------------------------------------------------


class StressStrainCommand:
    """Stress-strain curve: replicas are stretched at a constant rate along an axis, all in one batch.

        nepcg stress-strain crystal.xyz nep.txt --axis x --rate-per-ps 0.001 --max-strain 0.1 --free yz \\
            --temperature-K 300 --timestep-fs 2

    Prints the modulus and Poisson's ratios of the linear part; writes PREFIX.csv and the figure PREFIX.png.
    """

    @staticmethod
    def add_arguments(parser):
        _add_system(parser)
        parser.add_argument("model", metavar="MODEL", help="model file (nep.txt)")
        parser.add_argument("--axis", type=_axis, required=True, metavar="A", help="x, y or z")
        parser.add_argument(
            *("--rate-per-ps", "--rate"),
            type=finite,
            required=True,
            metavar="R",
            help="strain per ps; < 0: compression",
        )
        parser.add_argument("--max-strain", type=positive, required=True, metavar="E", help="where to end")
        parser.add_argument("--free", metavar="AXES", help="axes that follow the pressure, e.g. yz (default: none)")
        parser.add_argument("--pressure-GPa", "--pressure", type=finite, default=0.0, metavar="P", help="of free axes")
        parser.add_argument("--tau-p-fs", "--tau-p", type=positive, default=1000.0, metavar="T", help="of free axes")
        parser.add_argument(
            "--compressibility-per-GPa", type=positive, default=0.45, metavar="X", help="(default 0.45, water's)"
        )
        parser.add_argument("--linear", type=positive, default=0.02, metavar="E", help="end of the fit (default 0.02)")
        parser.add_argument(
            "--thickness-A", "--thickness", type=positive, metavar="H", help="of a sheet, in Å: stresses refer to it"
        )
        parser.add_argument(
            "--windows", type=positive_integer, default=20, metavar="N", help="points of the curve (default 20)"
        )
        parser.add_argument("--replicas", type=positive_integer, default=4, metavar="N", help="runs (default 4)")
        _add_run(parser, time_ps=False)
        _add_outputs(parser, "stress-strain")

    @staticmethod
    def run(args) -> int:
        import numpy as np

        from . import analysis, plot

        paths = _outputs(args, "")
        atoms = starting_structure(args)
        atoms.calc = _calculator(args, args.model, atoms)
        result = analysis.stress_strain(
            atoms,
            args.axis,
            rate_per_ps=args.rate_per_ps,
            max_strain=args.max_strain,
            temperature_K=args.temperature_K,
            free=args.free,
            pressure_GPa=args.pressure_GPa,
            tau_p_fs=args.tau_p_fs,
            compressibility_per_GPa=args.compressibility_per_GPa,
            windows=args.windows,
            linear=args.linear,
            thickness_A=args.thickness_A,
            replicas=args.replicas,
            timestep_fs=args.timestep_fs,
            equilibration_ps=args.equilibration_ps,
            seed=args.seed,
        )
        print(f"slope of the stress below {result.linear:g}: {_value(result.modulus_GPa, result.modulus_error)} GPa")
        for k, name in enumerate("xyz"):
            if np.isfinite(result.poisson[k]):
                print(f"Poisson's ratio {args.axis}{name}: {_value(result.poisson[k], result.poisson_error[k])}")
        _write_table(paths[""], *result.as_table())
        _draw(paths, plot.stress_strain, result)
        _wrote(paths)
        return 0
