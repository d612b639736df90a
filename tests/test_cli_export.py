"""nepcg export; what the files say is tested in test_export.py."""

from pathlib import Path

import ase.io
from ase.build import molecule

from ase_nepcg.cli import main


def test_groups_of_molecules(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models["plain"].write("nep.txt")
    ase.io.write("water.xyz", molecule("H2O", cell=[6, 6, 6], pbc=True).repeat((2, 1, 1)))
    start = ["water.xyz", "nep.txt", "--timestep", "0.5", "--steps", "100", "--temperature", "300"]
    assert main(["export", "gpumd", *start, "--groups", "--species", "F"]) == 0
    assert ase.io.read("gpumd/model.xyz").arrays["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert Path("gpumd/bead_name.txt").read_text() == "F\n" * 6
    assert main(["export", "gpumd", *start, "--replicate", "2 1 1", "--output", "big"]) == 0
    assert len(ase.io.read("big/model.xyz")) == 12
    capsys.readouterr()
    assert main(["export", "gpumd", *start]) == 1
    assert "there already" in capsys.readouterr().err
