import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ase.build import bulk

from ase_nepcg.cli import Parser, UsageError
from ase_nepcg.cli_calculator import (
    CALCULATORS,
    CalculatorFileError,
    add_calculator_arguments,
    calculator_options,
    check_calculator_usage,
    make_calculator,
)
from ase_nepcg.data import WATER_AA

FILE = """
from ase.calculators.lj import LennardJones

class Mine(LennardJones):
    pass

def stiff():
    return Mine(epsilon=2.0)

soft = Mine(epsilon=0.5)
number = 3
"""


@pytest.fixture
def file(tmp_path):
    # a name of its own for each test: modules are kept
    path = tmp_path / f"calculators_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop(path.stem, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def parsed(words):
    parser = Parser(prog="test")
    add_calculator_arguments(parser)
    return SimpleNamespace(**vars(parser.parse(words)), temperature_K=300.0)


@pytest.mark.parametrize("name", CALCULATORS)
def test_calculators_of_ase(name):
    words = ["--calculator", name]
    for key in CALCULATORS[name][3]:
        words += ["--calculator-option", f"{key}=0.5"]
    args = parsed(words)
    check_calculator_usage(args)
    assert type(make_calculator(args)).__name__ == CALCULATORS[name][1]
    assert calculator_options(args) == " ".join(words)


def test_model():
    args = parsed(["--model", WATER_AA])
    check_calculator_usage(args)
    assert set(make_calculator(args).model.species) == {"O", "H"}


@pytest.mark.parametrize(("name", "epsilon"), [("Mine", 1.0), ("stiff", 2.0), ("soft", 0.5)])
def test_calculator_in_a_file(file, name, epsilon):
    args = parsed(["--calculator", f"{file}:{name}"])
    check_calculator_usage(args)
    calculator = make_calculator(args)
    assert calculator.parameters.epsilon == epsilon
    # as a worker process gets it
    program = (
        f"import sys, pickle; sys.path[:] = {sys.path!r};"
        "print(pickle.loads(sys.stdin.buffer.read()).parameters.epsilon)"
    )
    shown = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(calculator), capture_output=True)
    assert float(shown.stdout) == epsilon
    assert make_calculator(args).get_potential_energy(bulk("Ar")) is not None


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("Mein", FILE, "has no 'Mein'; did you mean 'Mine'"),
        ("number", FILE, "expected an ASE calculator, got int"),
        ("Mine", "import no_such_module", "cannot be imported .ModuleNotFoundError"),
        ("Mine", "def", "cannot be imported .SyntaxError"),
    ],
)
def test_files_that_give_no_calculator(file, name, content, text):
    file.write_text(content)
    with pytest.raises(CalculatorFileError, match=text):
        make_calculator(parsed(["--calculator", f"{file}:{name}"]))


def test_names_of_other_modules(tmp_path):
    before = list(sys.path)
    for name in ("json.py", "time.py", "a.b.py"):
        path = tmp_path / name
        path.write_text(FILE)
        with pytest.raises(CalculatorFileError, match=r"another module called .*; rename the file"):
            make_calculator(parsed(["--calculator", f"{path}:Mine"]))
    assert sys.path == before
    with pytest.raises(FileNotFoundError, match=r"none\.py"):
        make_calculator(parsed(["--calculator", f"{tmp_path / 'none.py'}:Mine"]))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "where do the forces come from"),
        (["--model", "a", "--calculator", "emt"], "not both"),
        (["--calculator-option", "a=1", "--model", "a"], "goes with --calculator"),
        (["--calculator", "a.py:B", "--calculator-option", "a=1"], "set options in your file"),
        (["--calculator", "ljj"], "did you mean 'lj'"),
        (["--calculator", "a.py"], "FILE.py:NAME"),
        (["--calculator", "a.txt:B"], "FILE.py:NAME"),
        (["--calculator", "lj", "--calculator-option", "epsilon"], "expected KEY=VALUE"),
    ],
)
def test_wrong_usage(words, text):
    with pytest.raises(UsageError, match=text):
        check_calculator_usage(parsed(words))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--calculator-option", "epsilon=1"], "needs --calculator-option sigma="),
        (["--calculator-option", "epsilom=1"], "did you mean 'epsilon'"),
        (["--calculator-option", "epsilon=-1", "--calculator-option", "sigma=1"], "expected a positive number"),
    ],
)
def test_wrong_options(words, text):
    with pytest.raises(UsageError, match=text):
        make_calculator(parsed(["--calculator", "lj", *words]))


def test_neither_where_none_is_needed():
    check_calculator_usage(parsed([]), needed=False)
