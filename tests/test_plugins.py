"""What every ``import ase.io`` loads."""

import subprocess
import sys

from ase.utils.plugins import ExternalIOFormat

from ase_nepcg.plugins import train_format


def test_format_is_what_ase_expects():
    assert isinstance(train_format, ExternalIOFormat)
    assert train_format.code == "+F"
    assert train_format.module == "ase_nepcg.io"
    assert train_format.glob == "*.nepcg.xyz"


def test_loading_the_plugin_loads_neither_numba_nor_kernels():
    program = (
        "import sys, ase_nepcg.plugins; heavy = ('numba', 'matplotlib', 'ase_nepcg.potential', 'ase_nepcg.io');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
