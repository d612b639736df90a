"""A whole quickstart, small: what its stages leave, what a rerun does, and the report."""

import base64
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.io import read

from ase_nepcg import Mapping, NEPModel, quickstart, read_dataset
from ase_nepcg.cli import COMMANDS, Parser, main
from ase_nepcg.quickstart import QuickstartError, stages
from ase_nepcg.quickstart.commands import commands
from ase_nepcg.quickstart.figures import FIGURES
from ase_nepcg.quickstart.folder import FolderError
from ase_nepcg.quickstart.results import checks, correction_GPa, differences, speed_factors, summary
from ase_nepcg.quickstart.settings import settings_of

quiet = {"workers": 1, "threads": 1, "progress": False, "tell": lambda line: None}
PNG = b"\x89PNG\r\n\x1a\n"


# ---- stages -----------------------------------------------------------------------------------------------------


def test_what_is_in_the_folder(journey, tiny):
    folder, numbers, _ = journey
    assert NEPModel.read(folder / "nep.txt").species == ("Ar",)
    assert numbers["boxes"]["atoms"] == 24
    assert numbers["boxes"]["sites"] == 8
    train, test = (read_dataset(folder / name) for name in ("train.xyz", "test.xyz"))
    assert (len(train), len(test)) == (4, 2)
    cells = sorted({round(frame.cell.volume, 6) for frame in train})
    assert np.allclose(cells, sorted(numbers["boxes"]["volumes_A3"]))
    # no test frame is a training frame
    assert not any(np.array_equal(a.positions, b.positions) for a in train for b in test)
    for name in FIGURES:
        assert (folder / "figures" / f"{name}_0.png").read_bytes().startswith(PNG)


def test_boxes_have_their_densities(journey, tiny):
    folder = journey[0]
    for density, box in zip(tiny["densities"], read(folder / "boxes.traj", ":"), strict=True):
        assert np.isclose(box.get_masses().sum() / units.kg * 1e3 / box.cell.volume * 1e24, density)


def test_only_the_virial_differs_without_correction(journey):
    folder, _, _ = journey
    for name in ("train", "test"):
        frames, plain = (read_dataset(folder / f"{name}{kind}.xyz") for kind in ("", "_uncorrected"))
        for frame, other in zip(frames, plain, strict=True):
            assert np.array_equal(frame.get_forces(), other.get_forces())
            difference = np.asarray(frame.info["virial"]) - np.asarray(other.info["virial"])
            assert np.allclose(difference, 16 * units.kB * 330 * np.eye(3), atol=1e-7)
            stress = frame.get_stress(voigt=False) - other.get_stress(voigt=False)
            assert np.allclose(-stress * frame.cell.volume, difference, atol=1e-6)


def test_pressure_of_the_atoms_is_that_of_the_records(journey):
    """The stage's number against the atoms' own stress, which scatters more: identity 8 of the papers' frames."""
    folder, numbers, _ = journey
    for k, pressure in enumerate(numbers["atomistic"]["pressure_GPa"]):
        frames = read(folder / f"atomistic_{k}.traj", ":")
        own = np.array([-np.trace(frame.get_stress(voigt=False)) / 3 for frame in frames]) / units.GPa
        own += 24 * units.kB * 330 / frames[0].cell.volume / units.GPa
        assert abs(own.mean() - pressure) < 5 * own.std() / np.sqrt(len(frames) / 4)


def test_rerun_does_nothing_again(journey, tiny, monkeypatch):
    folder, numbers, _ = journey
    for stage in stages.STAGES:
        monkeypatch.setattr(stages.Journey, stage, lambda self: pytest.fail("done before"))
    before = (folder / "report.html").read_bytes()
    again = quickstart.quickstart(folder, name="<b>water</b> & co", command="x<y", **quiet, **tiny)
    assert json.dumps(again) == json.dumps(numbers)
    assert (folder / "report.html").read_bytes() == before


def test_same_seed_same_numbers_in_another_folder(journey, tiny, tmp_path):
    _, numbers, _ = journey
    again = quickstart.quickstart(tmp_path / "again", **quiet, **tiny)
    assert plain(again) == plain(numbers)
    other = quickstart.quickstart(tmp_path / "other", **quiet, **tiny | {"seed": 2})
    assert plain(other) != plain(numbers)


def plain(numbers):
    """Numbers without timings, as text (NaN equals NaN)."""
    kept = {name: {k: v for k, v in one.items() if k != "seconds"} for name, one in numbers.items() if name != "speed"}
    return json.dumps(kept)


def test_other_settings_need_another_folder(journey, tiny):
    folder, _, _ = journey
    with pytest.raises(FolderError, match=r"temperature_K was 330\.0, now 310\.0"):
        quickstart.quickstart(folder, **quiet, **tiny | {"temperature_K": 310.0})


def test_disk_full_loses_nothing(journey, tiny, tmp_path, monkeypatch):
    """A write that fails ends the run with its reason; later it goes on to the same numbers."""
    _, numbers, _ = journey
    write, left = stages.write_dataset, [1]

    def full(path, frames):
        if left[0] == 0:
            raise OSError(28, "No space left on device", str(path))
        left[0] -= 1
        write(path, frames)

    monkeypatch.setattr(stages, "write_dataset", full)
    with pytest.raises(OSError, match="No space left on device"):
        quickstart.quickstart(tmp_path / "run", **quiet, **tiny)
    monkeypatch.undo()
    assert plain(quickstart.quickstart(tmp_path / "run", **quiet, **tiny)) == plain(numbers)


def test_interrupted_training_is_not_finished(journey, tiny, tmp_path, monkeypatch):
    _, numbers, _ = journey
    train = stages.train

    def interrupted(*arguments, **settings):
        result = train(*arguments, **settings | {"steps": 2})
        return replace(result, reason="interrupted")

    monkeypatch.setattr(stages, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart.quickstart(tmp_path / "run", **quiet, **tiny)
    assert not (tmp_path / "run" / "nep.txt").exists()
    monkeypatch.undo()
    assert plain(quickstart.quickstart(tmp_path / "run", **quiet, **tiny)) == plain(numbers)


def test_calculators_that_change_are_refused(tmp_path, tiny, monkeypatch):
    argon = bulk("Ar", "sc", a=4.0) * 3
    settings = quiet | {"atoms": argon, "mapping": Mapping.from_groups([[k] for k in range(27)], "Ne")}
    calculator = Picky(epsilon=0.01, sigma=3.4, rc=5.0)
    monkeypatch.setattr(stages.Journey, "atomistic", lambda self: 1 / 0)
    argon.rattle(0.1)
    with pytest.raises(ZeroDivisionError):
        quickstart.quickstart(tmp_path / "run", calculator=calculator, **settings)
    # what no name and no file tells
    calculator.least, calculator.answer = 1e9, 1.001
    with pytest.raises(FolderError, match="a calculator of other forces"):
        quickstart.quickstart(tmp_path / "run", calculator=calculator, **settings)


def test_calculators_that_cannot_be_sent(tmp_path):
    calculator = Picky(epsilon=0.01, sigma=3.4, rc=5.0)
    calculator.lock = threading.Lock()
    argon = bulk("Ar", "sc", a=4.0) * 3
    mapping = Mapping.from_groups([[k] for k in range(27)], "Ne")
    with pytest.raises(QuickstartError, match=r"Picky cannot be sent to worker processes .*use workers=1"):
        quickstart.quickstart(tmp_path / "run", atoms=argon, calculator=calculator, mapping=mapping)
    with pytest.raises(QuickstartError, match="edge: is for the embedded water"):
        quickstart.quickstart(tmp_path / "run", atoms=argon, calculator=calculator, mapping=mapping, edge=3)
    with pytest.raises(QuickstartError, match="expected Atoms, got str"):
        quickstart.quickstart(tmp_path / "run", atoms="box.xyz")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"workers": 0}, {"threads": 1.5}])
def test_threads_and_workers(given, tmp_path):
    with pytest.raises(QuickstartError, match="expected a positive integer or None"):
        quickstart.quickstart(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


class Picky(LennardJones):
    """Fails, or gives no number, for boxes below a volume."""

    least, answer = 0.0, None

    def calculate(self, *arguments, **keywords):
        super().calculate(*arguments, **keywords)
        if self.atoms.cell.volume < self.least:
            if self.answer is None:
                raise ValueError("cell too small")
            self.results["forces"] = self.results["forces"] * self.answer


@pytest.mark.parametrize(
    ("answer", "text"), [(None, "fails for the box at 1.8 g/cm³: cell too small"), (np.nan, "1.8 g/cm³ are not finite")]
)
def test_boxes_are_tried_before_anything_runs(tmp_path, answer, text):
    argon = bulk("Ar", "sc", a=4.0) * 3
    calculator = Picky(epsilon=0.01, sigma=3.4, rc=5.0)
    calculator.least, calculator.answer = 0.99 * argon.cell.volume, answer
    settings = quiet | {"atoms": argon, "calculator": calculator, "densities": (1.0, 1.8)}
    with pytest.raises(QuickstartError, match=text):
        quickstart.quickstart(tmp_path / "run", mapping=Mapping.from_groups([[k] for k in range(27)], "Ne"), **settings)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path, journey, tiny):
    """Kill -9 at random moments: the rerun ends with the numbers of a run that was not killed."""
    _, numbers, _ = journey
    program = (
        "import sys; from ase_nepcg.quickstart import quickstart;"
        f"quickstart(sys.argv[1], workers=1, threads=1, progress=False, **{tiny!r})"
    )
    rng = np.random.default_rng(1)
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    began = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    killed = 0
    for delay in rng.uniform(0.1, 0.8, 20) * whole:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert killed >= 3
    done = {stage: json.loads((tmp_path / "run" / f"{stage}.done.json").read_text()) for stage in stages.STAGES}
    assert plain(done) == plain(numbers)


# ---- what the numbers say ---------------------------------------------------------------------------------------


def made_up(deviation=0.02, halves=0.01, off=0.0, error=0.005):
    volume = 1000.0
    kT = units.kB * 300 / volume / units.GPa
    return {
        "boxes": {"atoms": 300, "sites": 100, "volumes_A3": [volume]},
        "atomistic": {"pressure_GPa": [0.1], "pressure_error": [0.003], "pressure_reliable": [True]},
        "beads": {
            "rdf": [{"deviation": deviation, "halves": halves}],
            "corrected": {"pressure_GPa": [0.1 + off], "pressure_error": [error]},
            "uncorrected": {"pressure_GPa": [0.1 + off - 200 * kT], "pressure_error": [error]},
        },
    }


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, [True, True]),
        ({"deviation": 0.0401}, [False, True]),
        ({"deviation": 0.0399}, [True, True]),
        # 0.03 + 2 * hypot(0.003, 0.004) = 0.04
        ({"off": 0.0399, "error": 0.004}, [True, True]),
        ({"off": -0.0401, "error": 0.004}, [True, False]),
        ({"error": float("nan")}, [True, False]),
    ],
)
def test_limits(change, kept):
    settings = settings_of(densities=(1.0,))
    assert [check.kept for check in checks(made_up(**change), settings)] == kept


def test_difference_without_correction():
    numbers = made_up(off=0.01, error=0.004)
    [(off, error)] = differences(numbers, "uncorrected")
    assert np.isclose(off, 0.01 - correction_GPa(numbers, 300.0)[0])
    assert np.isclose(error, 0.005)


def test_correction(journey):
    _, numbers, _ = journey
    volumes = np.array(numbers["boxes"]["volumes_A3"])
    assert np.allclose(correction_GPa(numbers, 330.0), 16 * 1.380649e-23 * 330 / (volumes * 1e-30) / 1e9)


def test_factors_are_those_of_the_speeds(journey):
    _, numbers, lines = journey
    speed, factors = numbers["speed"], speed_factors(numbers)
    assert factors["particles"] == 3
    assert factors["time step"] == 8
    ratio = speed["beads"]["ns_per_day"] / speed["atoms"]["ns_per_day"]
    assert np.isclose(np.prod(list(factors.values())), ratio)
    assert any(f"{ratio:.3g} = 3 (particles) × 8 (time step)" in line for line in lines)


def test_every_stage_says_something(journey, tiny):
    _, numbers, lines = journey
    settings = settings_of(**tiny)
    for stage, title in stages.STAGES.items():
        assert any(title in line for line in lines)
        for text in summary(stage, numbers, settings):
            assert any(text in line for line in lines)


# ---- commands ---------------------------------------------------------------------------------------------------


def test_commands_are_understood_and_name_files_that_are_there(journey, tiny):
    folder, numbers, _ = journey
    found = commands(settings_of(**tiny), numbers, "--model atomistic.txt")
    assert set(found) == {"atomistic", "frames", "models", "beads"}
    for line in itertools.chain.from_iterable(found.values()):
        program, name, *words = shlex.split(line)
        assert program == "nepcg"
        module, command = COMMANDS[name][1].split(":")
        parser = Parser(prog=name)
        getattr(import_module(module), command).add_arguments(parser)
        parser.parse(words)
        for word in words:
            file = word.split("@")[0]
            if file.endswith((".txt", ".traj", ".json", ".xyz")) and not file.startswith("my_"):
                assert (folder / file).exists(), line
    assert "frames" not in commands(settings_of(**tiny), numbers, None)


def test_training_command_gives_the_same_model(journey, tiny, tmp_path, monkeypatch):
    folder, numbers, _ = journey
    line = commands(settings_of(**tiny), numbers, None)["models"][0].replace("my_corrected", str(tmp_path))
    monkeypatch.chdir(folder)
    assert main(shlex.split(line)[1:]) == 0
    assert (tmp_path / "nep.txt").read_text() == (folder / "nep.txt").read_text()


# ---- report -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are open, what is shown, and where it points to."""

    VOID = ("meta", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.images, self.links, self.tables = [], [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attributes))
        self.tables += tag == "table"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_whole_and_needs_no_network(journey, tiny):
    folder = journey[0]
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert page.tables == 1 + len(FIGURES)
    assert len(page.images) == 2 + len(tiny["densities"]) + 1 + 2
    for image in page.images:
        kind, content = image["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(PNG)
        assert image["alt"]
    assert all(link.startswith("data:") for link in page.links)


def test_names_and_commands_are_escaped(journey):
    folder, _, _ = journey
    text = (folder / "report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;water&lt;/b&gt; &amp; co" in text
    assert "x&lt;y" in text


def test_report_shows_the_numbers(journey, tiny):
    folder, numbers, _ = journey
    shown = "".join(Page((folder / "report.html").read_text()).text)
    assert f"{numbers['speed']['beads']['ns_per_day']:.3g}" in shown
    for one in numbers["beads"]["rdf"]:
        assert f"{one['deviation']:.4f}" in shown
    for error in (numbers["models"]["corrected"]["test"], numbers["models"]["uncorrected"]["train"]):
        assert f"{error['force']:.4f}" in shown
    for line in commands(settings_of(**tiny), numbers, "--model atomistic.txt")["beads"]:
        assert line in shown


def test_figures_are_the_same_every_time(journey, tiny):
    from ase_nepcg.quickstart.figures import draw_figures
    from ase_nepcg.quickstart.folder import RunFolder

    folder, numbers, _ = journey
    place = RunFolder(folder, {})
    first, second = (draw_figures(place, numbers, settings_of(**tiny)) for _ in range(2))
    assert first == second
