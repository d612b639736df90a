# %% [markdown]
# # From frames to a model
#
# Training frames in, `nep.txt` out. This tutorial trains a small model on frames whose answer is known, looks at what
# is learnt and what is noise, and shows the calls a real project needs. It takes a minute or two, half of it compiling
# (once per kind of model).
#
# The frames here come from a pair potential for beads, with noise of a known size added to the forces: what
# constrained sampling gives (`02_mean_force.py`), made in a moment.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.calculators.lj import LennardJones

from ase_nepcg import NEP, plot, read_dataset, train, write_dataset
from ase_nepcg.dataset import FrameCalculator

NOISE = 0.003  # eV/Å, standard error of every force component
rng = np.random.default_rng(1)


def frame(density, n=4):
    """A disordered arrangement of n³ beads with mean forces, their errors and a virial."""
    edge = n / density ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    beads = Atoms(f"Ar{n**3}", cell=[edge] * 3, pbc=True)
    beads.positions = (grid + 0.5) * edge / n + rng.normal(0, 0.25, (n**3, 3))
    beads.set_masses([18.015] * len(beads))
    beads.calc = LennardJones(sigma=2.6, epsilon=0.02, rc=6.0, smooth=True, ro=4.5)
    forces, virial = beads.get_forces(), -beads.get_stress(voigt=False) * beads.get_volume()
    beads.calc = FrameCalculator(beads, forces=forces + rng.normal(0, NOISE, forces.shape))
    beads.arrays["force_errors"] = np.full_like(forces, NOISE)
    beads.info |= {"virial": virial, "energy_weight": 0.0}
    return beads


frames = [frame(density) for density in np.linspace(0.030, 0.036, 12)]
test = [frame(density) for density in (0.031, 0.033, 0.035)]

# %% [markdown]
# ## Training
#
# The default is the exact gradient with L-BFGS on all frames at once. With `test` frames the model that is best there
# is kept. `weighting="errorbars"` would weight every force by its own error bar.

# %%
training = train(
    frames,
    test=test,
    cutoff=(6.0, 4.0),
    n_max=(4, 2),
    basis_size=(8, 4),
    l_max=(2, 0, 0),
    neurons=8,
    lambda_1=1e-4,
    lambda_2=1e-4,
    steps=300,
    seed=1,
    progress=False,
)
print(training)

# %% [markdown]
# ## Is it good?
#
# The frames know how certain they are, so the question has an answer: `force_noise` is the error of the data, and
# `force_chi2` the mean of (error / error bar)², 1 for a model that is as good as the data can tell.

# %%
report = training.report(test)
for name, value in report.items():
    print(f"{name:14s} {value:.5f}")
assert report["force"] < 2 * NOISE
assert report["force_chi2"] < 4

# %% [markdown]
# Since the noise is ours, the model can also be compared with the truth. It is closer to it than the data it was
# trained on: a fit averages.

# %%
exact = test[0].copy()
exact.calc = LennardJones(sigma=2.6, epsilon=0.02, rc=6.0, smooth=True, ro=4.5)
beads = test[0].copy()
beads.calc = NEP(training.model)
error = np.sqrt(np.mean((beads.get_forces() - exact.get_forces()) ** 2))
print(f"rms error of the model {error:.4f} eV/Å, of the data {NOISE:.4f} eV/Å")
assert error < 1.7 * NOISE

# %% [markdown]
# ## Files
#
# `nep.txt` is read by `NEP`, GPUMD and LAMMPS. The same training from the command line:
#
# ```
# nepcg train train.xyz --test test.xyz --cutoff 6 4 --n-max 4 2 --basis-size 8 4 --l-max 2 0 0 --neurons 8
# nepcg predict nep.txt test.xyz
# ```
#
# and a folder with GPUMD's `nep.in` and `train.xyz` is trained by `nepcg train FOLDER`, with the published evolution
# strategy and the usual output files.

# %%
training.model.write("nep.txt")
write_dataset("train.xyz", frames)
write_dataset("test.xyz", test)
assert len(read_dataset("train.xyz")) == len(frames)

# %% [markdown]
# ## One figure
#
# The loss, then predicted against reference forces and virials; the gray band is the noise of the data.

# %%
axes = plot.training_summary(training)
axes[0].figure.savefig("training.png", dpi=120)
plt.close(axes[0].figure)
