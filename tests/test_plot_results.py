"""Figures of results: what is drawn, not how it looks."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

from ase_nepcg import plot
from ase_nepcg.analysis.angles import ADFResult
from ase_nepcg.analysis.deformation import StressStrain
from ase_nepcg.analysis.state_equation import EOSResult
from ase_nepcg.analysis.vibrations import VDOSResult
from ase_nepcg.md.observers.motion import MSDResult
from ase_nepcg.md.observers.rdf import RDFResult
from ase_nepcg.md.observers.spectral import SpectralHeatCurrentResult
from ase_nepcg.plot import PlotError


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def filled(kind, **given):
    """A result of which only some fields matter."""
    return kind(**{name: given.get(name) for name in kind.__dataclass_fields__})


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curves(ax):
    return [line for line in ax.lines if line.get_gid() == "curve"]


R = np.linspace(0.5, 5.5, 6)


def rdf_result(pairs=(("O", "O"), ("O", "H")), errors=True):
    g = np.arange(6.0) + np.arange(len(pairs))[:, None]
    return filled(RDFResult, pairs=pairs, r=R, g=g, g_error=np.full(g.shape, 0.1 if errors else np.nan))


def test_rdf():
    result = rdf_result()
    ax = plot.rdf(result)
    assert texts(ax) == ["O-O", "O-H"]
    for line, g in zip(curves(ax), result.g, strict=True):
        assert np.array_equal(line.get_xdata(), R)
        assert np.array_equal(line.get_ydata(), g)
    assert len(ax.collections) == 2
    assert ax.get_xlabel() == "distance (Å)"
    # the band is one standard error
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(5.1)


def test_rdf_laid_over_each_other():
    ax = plot.rdf({"AA": rdf_result(), "CG": rdf_result(errors=False)}, pairs=[("H", "O")])
    assert texts(ax) == ["AA: O-H", "CG: O-H"]
    assert len(ax.collections) == 1
    one, two = curves(ax)
    assert one.get_color() != two.get_color()
    # more into the same Axes, in another colour
    assert plot.rdf({"more": rdf_result((("O", "O"),))}, ax) is ax
    assert len({line.get_color() for line in curves(ax)}) == 3
    with pytest.raises(PlotError, match="nothing to draw"):
        plot.rdf(rdf_result(), pairs=[("N", "N")])
    with pytest.raises(PlotError, match="empty dict"):
        plot.rdf({})


def test_many_curves_can_be_told_apart():
    ax = plot.rdf({str(k): rdf_result() for k in range(10)})
    assert len({(line.get_color(), line.get_linestyle()) for line in curves(ax)}) == 20


def test_adf_and_vdos():
    density = np.full((1, 4), 1 / 180)
    ax = plot.adf(
        filled(
            ADFResult,
            triplets=(("H", "O", "H"),),
            angle=np.array([22.5, 67.5, 112.5, 157.5]),
            density=density,
            density_error=0.1 * density,
        )
    )
    assert texts(ax) == ["H-O-H"]
    assert ax.get_xlim() == (0, 180)
    ax = plot.vdos(
        filled(VDOSResult, species=("O",), frequency_THz=R, dos=np.ones((1, 6)), dos_error=np.full((1, 6), np.nan))
    )
    assert ax.get_xlabel() == "frequency (THz)"
    assert texts(ax) == ["O"]


def test_msd():
    def result(value, error):
        return filled(
            MSDResult,
            species=("W",),
            time_fs=1000 * R,
            msd=6 * R[None],
            msd_error=0.1 * R[None],
            diffusion=np.array([value]),
            diffusion_error=np.array([error]),
        )

    ax = plot.msd({"CG": result(2.3041, 0.0412), "AA": result(0.23, np.nan)})
    assert texts(ax) == ["CG: W, D = 2.30(4) Å²/ps", "AA: W, D = 0.23 Å²/ps"]
    np.testing.assert_allclose(curves(ax)[0].get_xdata(), R)


def eos_result():
    volume = np.array([2000.0, 1800.0, 2200.0])
    return filled(
        EOSResult,
        given="volume",
        volume_A3=volume,
        volume_error=np.zeros(3),
        density_g_cm3=1900 / volume,
        density_error=np.zeros(3),
        pressure_GPa=2000 / volume,
        pressure_error=np.array([0.1, 0.2, np.nan]),
    )


def test_eos():
    ax = plot.eos({"with": eos_result(), "without": eos_result()}, against="volume", training_range=(2100, 1900))
    assert set(texts(ax)) == {"with", "without", "training frames"}
    assert ax.get_xlabel() == "volume (Å³)"
    one, two = ax.containers
    # in the order of volumes
    assert one.lines[0].get_xdata().tolist() == [1800.0, 2000.0, 2200.0]
    assert one.lines[0].get_ydata()[1] == pytest.approx(1.0)
    assert one.lines[0].get_color() != two.lines[0].get_color()
    assert plot.eos(eos_result()).get_xlabel() == "density (g/cm³)"
    with pytest.raises(PlotError, match="against: expected"):
        plot.eos(eos_result(), against="pressure")
    with pytest.raises(PlotError, match="training_range: expected two numbers"):
        plot.eos(eos_result(), training_range=(1.0,))


def test_running_conductivity():
    hnemd = SimpleNamespace(
        time_fs=1000 * R,
        running=np.stack([R, 2 * R, 3 * R], axis=1),
        field_per_A=np.array([0, 1e-4, 0]),
        kappa_parallel=2.5,
        kappa_parallel_error=0.2,
    )
    ax = plot.running_conductivity(hnemd)
    np.testing.assert_allclose(curves(ax)[0].get_ydata(), 2 * R)
    assert texts(ax) == ["2.5(2) W/(m K)"]
    assert ax.get_xlabel() == "time (ps)"
    green_kubo = SimpleNamespace(time_fs=1000 * R, kappa_mean=R, kappa_mean_error=0.1 * R)
    ax = plot.running_conductivity({"Green-Kubo": green_kubo})
    assert ax.get_xlabel() == "correlation time (ps)"
    assert len(ax.collections) == 1
    with pytest.raises(PlotError, match="two Axes"):
        plot.running_conductivity({"a": hnemd, "b": green_kubo})


def test_spectral_conductivity():
    def result(value, error):
        return filled(
            SpectralHeatCurrentResult,
            frequency_THz=R,
            spectrum=np.cos(R),
            spectrum_error=np.full(6, error),
            kappa=value,
            kappa_error=error,
        )

    ax = plot.spectral_conductivity({"100 K": result(2.5, 0.2), "300 K": result(1.5, np.nan)})
    assert texts(ax) == ["100 K: κ = 2.5(2) W/(m K)", "300 K: κ = 1.5 W/(m K)"]
    np.testing.assert_allclose(curves(ax)[0].get_xdata(), R)
    np.testing.assert_allclose(curves(ax)[0].get_ydata(), np.cos(R))
    assert len(ax.collections) == 1
    # modes may carry heat against the field
    assert ax.get_ylim()[0] < -1.0
    assert ax.get_ylabel() == "spectral conductivity (W/(m K THz))"


def test_stress_strain():
    stress = np.zeros((6, 6))
    stress[:, 2] = 70 * R
    ax = plot.stress_strain(
        filled(
            StressStrain,
            axis="z",
            strain=R,
            stress_GPa=stress,
            stress_error=np.ones((6, 6)),
            modulus_GPa=70.0,
            modulus_error=1.0,
        )
    )
    assert texts(ax) == ["along z, initial slope 70(1) GPa"]
    np.testing.assert_allclose(curves(ax)[0].get_ydata(), 70 * R)
