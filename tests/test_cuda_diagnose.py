"""What is said about CUDA, on machines as they are and as they may be."""

import pytest
from ase_nepcg_cuda import diagnose

from ase_nepcg import devices
from ase_nepcg.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.mark.parametrize(
    ("driver", "ptx"), [((12, 0), (8, 0)), ((12, 6), (8, 5)), ((12, 8), (8, 7)), ((13, 0), (9, 0))]
)
def test_what_a_driver_loads(driver, ptx):
    assert diagnose.ptx_of_driver(driver) == ptx


def test_kernels_run_in_the_simulator_or_on_the_device(capsys):
    found = {one.what: one for one in diagnose.diagnose()}
    assert found["kernels"].answer.startswith("compile and run; forces as on the CPU to")
    status = main(["info", "--cuda"])
    out = capsys.readouterr().out
    assert "kernels" in out
    assert status == int(devices.driver_version() is None)


def test_no_driver(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(devices, "driver_version", lambda: None)
    monkeypatch.setattr(diagnose, "newest_ptx", lambda: (9, 4))
    found = diagnose.diagnose()
    assert found[0].advice == "install the NVIDIA driver of your GPU"
    assert found[-1].answer == "writes PTX 9.4"


def test_a_driver_too_old_for_the_compiler(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(devices, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(devices, "why_no_cuda", lambda: "no device")
    monkeypatch.setattr(diagnose, "newest_ptx", lambda: (9, 4))
    found = {one.what: one for one in diagnose.diagnose()}
    assert "loads PTX up to 9.0, the compiler writes 9.4" in found["driver and compiler"].answer
    assert "nvidia-nvvm==13.0.*" in found["driver and compiler"].advice
    assert found["device"].answer == "no device"


@pytest.mark.parametrize(("version", "warned"), [((12, 0), True), ((12, 1), False), ((13, 0), False)])
def test_a_driver_too_old_for_the_kernel_of_many_steps(monkeypatch, version, warned):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(devices, "driver_version", lambda: version)
    monkeypatch.setattr(devices, "why_no_cuda", lambda: "no device")
    monkeypatch.setattr(diagnose, "newest_ptx", lambda: (8, 0))
    found = {one.what: one for one in diagnose.diagnose()}
    assert ("driver for MD" in found) == warned
    if warned:
        assert "CUDA 12.1 or newer" in found["driver for MD"].advice


def test_a_compiler_that_fails(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(devices, "driver_version", lambda: (12, 4))

    def broken():
        raise OSError("libnvvm.so:\n cannot open")

    monkeypatch.setattr(diagnose, "newest_ptx", broken)
    last = diagnose.diagnose()[-1]
    assert last == ("compiler", "OSError: libnvvm.so: cannot open", "pip install --force-reinstall 'ase_nepcg[cuda12]'")


def test_numba_cuda_is_missing(monkeypatch):
    monkeypatch.setattr(devices, "driver_version", lambda: (12, 4))

    def version(name):
        raise diagnose.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagnose.importlib.metadata, "version", version)
    assert diagnose.diagnose()[-1].advice == "pip install 'ase_nepcg[cuda12]'"


def test_kernels_that_are_wrong_or_do_not_run(monkeypatch):
    from ase_nepcg_cuda import evaluate

    class Wrong:
        def __init__(self, model):
            pass

        def __call__(self, geometry):
            raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    monkeypatch.setattr(evaluate, "CudaEvaluator", Wrong)
    found = diagnose._run()
    assert "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" in found.answer
    assert found.advice


def test_info_wants_files_or_cuda(capsys):
    assert main(["info"]) == 2
    assert "required: FILE (or --cuda)" in capsys.readouterr().err
