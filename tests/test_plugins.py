"""What every ``import ase.io`` loads."""

import importlib
import subprocess
import sys

import ase.constraints
from ase.utils.plugins import ExternalIOFormat

import ase_nepcg.constraints
import ase_nepcg.plugins
from ase_nepcg import FixBeads
from ase_nepcg.plugins import train_format


def test_format_is_what_ase_expects():
    assert isinstance(train_format, ExternalIOFormat)
    assert train_format.code == "+F"
    assert train_format.module == "ase_nepcg.io"
    assert train_format.glob == "*.nepcg.xyz"


def test_loading_the_plugin_loads_neither_numba_nor_kernels():
    program = (
        "import sys, ase_nepcg.plugins;"
        "heavy = ('numba', 'matplotlib', 'ase_nepcg.potential', 'ase_nepcg.io', 'ase_nepcg.m');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_the_plugin_loads_nothing_that_ase_would_not_load():
    """``ase.io`` loads all constraints anyway; of this package come the constraint and the error classes on top."""
    program = (
        "import sys, ase.io; mine = {name for name in sys.modules if name.split('.')[0] == 'ase_nepcg'};"
        "print(*sorted(mine)); print('FixBeads' in sys.modules['ase.constraints'].__all__)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    loaded, registered = done.stdout.strip().split("\n")
    own = ["constraints", "constraints_rigid", "errors", "plugins"]
    assert loaded.split() == ["ase_nepcg", *(f"ase_nepcg.{name}" for name in own)]
    assert registered == "True"


def test_constraint_is_registered_once():
    assert ase.constraints.FixBeads is FixBeads
    for _ in range(2):
        importlib.reload(ase_nepcg.plugins)
        ase_nepcg.constraints._register()
    assert ase.constraints.FixBeads is FixBeads
    assert ase.constraints.__all__.count("FixBeads") == 1


def test_a_class_of_that_name_from_elsewhere_is_left_alone(monkeypatch):
    other = type("FixBeads", (), {"__module__": "ase.constraints.fix_beads"})
    monkeypatch.setattr(ase.constraints, "FixBeads", other)
    ase_nepcg.constraints._register()
    assert ase.constraints.FixBeads is other
