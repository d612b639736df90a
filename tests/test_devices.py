"""Which device is chosen, and what is said where there is none."""

import ctypes

import pytest
from ase.calculators.calculator import CalculatorSetupError

from ase_nepcg import NEP, devices


@pytest.fixture
def machine(monkeypatch):
    """Function: driver (None or version), numba-cuda installed -> a machine like that, outside the simulator."""

    find_spec = devices.importlib.util.find_spec

    def make(version, numba_cuda=True):
        def installed(name):
            return find_spec(name) if numba_cuda or name != "numba_cuda" else None

        monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
        monkeypatch.setattr(devices, "driver_version", lambda: version)
        monkeypatch.setattr(
            devices.importlib.util,
            "find_spec",
            installed,
        )
        devices.why_no_cuda.cache_clear()

    yield make
    devices.why_no_cuda.cache_clear()


@pytest.mark.parametrize(
    ("version", "numba_cuda", "message"),
    [
        (None, True, "no NVIDIA driver .* was found: use device='cpu'"),
        ((13, 0), False, r"pip install 'ase_nepcg\[cuda13\]' \(the driver is of CUDA 13\)"),
        ((12, 4), False, r"pip install 'ase_nepcg\[cuda12\]'"),
    ],
)
def test_what_is_missing(machine, models, version, numba_cuda, message):
    machine(version, numba_cuda)
    assert devices.resolve("auto") == "cpu"
    with pytest.raises(CalculatorSetupError, match=f"device='cuda': .*{message}"):
        NEP(models["plain"], device="cuda")
    assert NEP(models["plain"]).device == "cpu"


def test_a_device_that_fails_is_quoted(machine, models, monkeypatch):
    machine((13, 0))
    from numba import cuda

    def no_device():
        raise RuntimeError("no device\n found")

    monkeypatch.setattr(cuda, "current_context", no_device, raising=False)
    with pytest.raises(CalculatorSetupError, match="cannot be used: no device found"):
        NEP(models["plain"], device="cuda")


def test_auto_takes_a_device_and_says_so_once(machine, models, monkeypatch, capsys):
    machine((13, 0))
    from numba import cuda

    class Device:
        name = b"Some GPU"

    monkeypatch.setattr(cuda, "current_context", lambda: None, raising=False)
    monkeypatch.setattr(cuda, "get_current_device", Device, raising=False)
    devices._say_once.cache_clear()
    for _ in range(2):
        assert NEP(models["plain"]).device == "cuda"
    assert capsys.readouterr().err.count("evaluated on Some GPU in mixed precision") == 1
    assert NEP(models["plain"], device="cpu").device == "cpu"


def test_the_simulator_is_never_chosen_by_itself(monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert devices.simulated()
    assert devices.resolve("auto") == "cpu"
    devices.why_no_cuda.cache_clear()
    assert devices.why_no_cuda() is None
    devices.why_no_cuda.cache_clear()
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    assert not devices.simulated()


def test_devices_by_name(monkeypatch):
    class Driver:
        status = 0

        def cuInit(self, flags):
            return self.status

        def cuDeviceGetCount(self, pointer):
            pointer._obj.value = 3
            return 0

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "driver_version", lambda: None)
    assert devices.visible() == []
    monkeypatch.setattr(devices, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert devices.visible() == ["0", "1", "2"]
    monkeypatch.setattr(Driver, "status", 100)
    assert devices.visible() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a, 2,")
    assert devices.visible() == ["GPU-1a", "2"]


def test_the_driver_says_its_version(monkeypatch):
    class Driver:
        status = 0

        def cuDriverGetVersion(self, pointer):
            pointer._obj.value = 12040
            return self.status

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert devices.driver_version.__wrapped__() == (12, 4)
    monkeypatch.setattr(Driver, "status", 100)
    assert devices.driver_version.__wrapped__() is None

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert devices.driver_version.__wrapped__() is None
