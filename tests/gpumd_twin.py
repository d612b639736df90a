"""GPUMD's parser of extended XYZ, written anew from what it does (main_nep and model reader, August 2026)."""

import re

import numpy as np


class GPUMDError(Exception):
    pass


def stod(text):
    """C++ ``std::stod``: the longest number at the beginning; out of range for infinities and subnormal numbers."""
    match = re.match(r"\s*[+-]?(inf|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", text, re.IGNORECASE)
    if not match:
        raise GPUMDError(f"no number: {text!r}")
    value = float(match.group())
    if not np.isfinite(value) or 0 < abs(value) < 2.2250738585072014e-308:
        raise GPUMDError(f"out of range: {text!r}")
    return value


def gpumd_tokens(line):
    """Blanks around '=' and inside of quotes, next to them, are removed; then blanks separate; then lower case."""
    line = re.sub(r"[ \t]*=[ \t]*", "=", line)
    if line.startswith('"'):
        raise GPUMDError("begins with a quote")
    line = re.sub(r'="[ \t]+', '="', line)
    line = re.sub(r'(?<!=)(?<![ \t=])[ \t]+"', '"', line)
    return [token.lower() for token in line.split()]


def values(tokens, key):
    """What follows ``key=`` at the beginning of tokens, the last one counts; None without any."""
    found = [token[len(key) + 1 :] for token in tokens if token.startswith(key + "=")]
    return stod(found[-1]) if found else None


def nine(tokens, key):
    found = None
    for k, token in enumerate(tokens):
        if token.startswith(key + "="):
            words = [token[len(key) + 2 :], *tokens[k + 1 : k + 8], tokens[k + 8][:-1]]
            found = [stod(word) for word in words]
    return found


def gpumd_properties(tokens, names):
    """Offset of each of ``names`` and the number of columns."""
    (fields,) = [token[len("properties=") :].split(":") for token in tokens if token.startswith("properties=")]
    offsets, total = {}, 0
    for name, width in zip(fields[::3], fields[2::3], strict=False):
        if name in names:
            offsets[names[name]] = total
        total += int(width)
    return offsets, total


def gpumd_trainer(text):
    """The frames as ``nep`` sees them: per-site energy, (xx, yy, zz, xy, yz, zx) of the virial per site, …"""
    lines = iter(text.split("\n"))
    frames = []
    while True:
        head = next(lines, "").split()
        if not head:
            return frames
        if len(head) > 1:
            raise GPUMDError("The first line for each frame should have one value.")
        n = int(head[0])
        if n < 1:
            raise GPUMDError("Number of atoms for each frame should >= 1.")
        tokens = gpumd_tokens(next(lines))
        energy, lattice = values(tokens, "energy"), nine(tokens, "lattice")
        if energy is None or lattice is None:
            raise GPUMDError("energy or lattice is missing")
        weight = values(tokens, "weight")
        if weight is not None and not 0 < weight <= 100:
            raise GPUMDError("Configuration weight should > 0 and <= 100.")
        lattice = np.reshape(lattice, (3, 3))
        full = nine(tokens, "virial")
        stress = nine(tokens, "stress")
        if stress is not None:
            from_stress = -np.array(stress) * abs(np.linalg.det(lattice))
            if full is not None and np.abs(np.subtract(full, from_stress)).max() > 1e-3 * n:
                raise GPUMDError("Virials and stresses for structure are inconsistent!")
            full = from_stress if full is None else full
        names = {"species": "species", "pos": "pos", "force": "forces", "forces": "forces"}
        offsets, total = gpumd_properties(tokens, names)
        if offsets.keys() != set(names.values()):
            raise GPUMDError("species, pos or force is missing in properties.")
        rows = [next(lines).split() for _ in range(n)]
        if any(len(row) != total for row in rows):
            raise GPUMDError("Number of items for an atom line mismatches properties.")
        three = {k: [[stod(w) for w in row[o : o + 3]] for row in rows] for k, o in offsets.items() if k != "species"}
        energy_weight = values(tokens, "energy_weight")
        frames.append(
            {
                "energy": energy / n,
                "energy_weight": 1.0 if energy_weight is None else energy_weight,
                "weight": 1.0 if weight is None else weight,
                "charge": values(tokens, "charge") or 0.0,
                "temperature": values(tokens, "temperature"),
                "lattice": lattice,
                "virial": None if full is None else np.array([full[k] for k in (0, 4, 8, 3, 7, 6)]) / n,
                "species": [row[offsets["species"]] for row in rows],
                **{name: np.array(table) for name, table in three.items()},
            }
        )


def gpumd_model(text):
    """A frame as ``gpumd`` reads it from ``model.xyz``: periodic directions, masses or None, groups or None."""
    count, comment, *rows = text.splitlines()
    tokens = gpumd_tokens(comment)
    pbc = [True] * 3
    for k, token in enumerate(tokens):
        if token.startswith("pbc="):
            pbc = [token[-1] == "t", tokens[k + 1] == "t", tokens[k + 2][0] == "t"]
    names = {name: name for name in ("species", "pos", "mass", "charge", "vel", "group")}
    offsets, total = gpumd_properties(tokens, names)
    rows = [row.split() for row in rows]
    assert len(rows) == int(count)
    assert all(len(row) == total for row in rows)
    masses = [stod(row[offsets["mass"]]) for row in rows] if "mass" in offsets else None
    return {"pbc": pbc, "masses": masses, "known": set(offsets)}
