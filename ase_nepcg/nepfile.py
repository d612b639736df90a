"""Reading and writing ``nep.txt`` and ``nep.restart``, the files of GPUMD.

Format: Fan et al., PRB 104, 104309 (2021); JCP 157, 114801 (2022); Song et al., Nat. Commun. 15, 10208 (2024).
Six header lines (seven with ZBL), then one number per line: network parameters, descriptor coefficients, scaler,
flexible ZBL. The reader accepts nothing that it does not understand completely: every defect is a
:class:`ModelFileError` that names the line.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress

import numpy as np

from .errors import ModelError, ModelFileError, closest, validate_array
from .hyper import (
    MANY_BODY,
    MAX_BASIS,
    MAX_N,
    MAX_TYPES,
    array_shapes,
    check_cutoff,
    check_l_max,
    check_neurons,
    check_pair,
    check_size,
    check_species,
    check_typewise,
    count_parameters,
    flexible_defect,
    switches,
    symbols_needed_by,
    unpack_parameters,
)
from .model import ZBL, NEPModel

__all__ = ["read_model", "read_restart", "write_atomically", "write_model", "write_restart"]

_TOKENS = {
    f"nep{version}{suffix}": (version, "_zbl" in suffix, "_temperature" in suffix)
    for version in (3, 4, 5)
    for suffix in ("", "_zbl", "_temperature", "_zbl_temperature", "_temperature_zbl")
    if version != 5 or "_temperature" not in suffix
}
_VARIANT = re.compile(r"nep[0-9]?(?:_zbl)?_(charge[0-9]?_vdw|charge[0-9]?|vdw|dipole|polarizability)(?:_zbl)?")
_REFUSED = {
    "dipole": "dipole model: its output is a dipole moment, not an energy",
    "polarizability": "polarizability model: its output is a polarizability, not an energy",
    "charge": "charge model (qNEP): the long-range part of its energy is not implemented",
    "vdw": "dispersion model: the long-range part of its energy is not implemented",
    "charge_vdw": "model with charges and dispersion: the long-range part of its energy is not implemented",
}
_TOO_OLD = "current programs cannot read these either; train the model again as NEP4"

# strict ASCII: Python's float() and int() also take "1_000", "infinity", "nan" and the digits of all scripts
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_PRINTABLE = bytes([9, *range(32, 127)])
_NUMERIC = b"0123456789+-.eE \t\r\n"

# generous, but a wrong file must not fill the memory
_HEADER_BYTES = 65_536
_BYTES_PER_NUMBER = 100
_RESTART_BYTES = 500_000_000


class _File:
    """An open binary file that knows its name and the number of the current line."""

    def __init__(self, path, file):
        self.path = path
        self.file = file
        self.line = 0
        self.header_bytes = 0
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def error(self, message: str, line: int | None = None) -> ModelFileError:
        return ModelFileError(self.path, self.line if line is None else line, message)

    @contextmanager
    def here(self):
        """Turn a ModelError of a value check into one that names file and line."""
        try:
            yield
        except ModelFileError:
            raise
        except ModelError as error:
            raise self.error(str(error)) from None

    def header_line(self, keyword: str) -> list[str]:
        """The tokens of the next line that is not blank; ``keyword`` names it in messages."""
        while True:
            raw = self.file.readline(_HEADER_BYTES - self.header_bytes + 1)
            self.header_bytes += len(raw)
            if not raw:
                self.line += 1
                raise self.error(f"expected the {keyword} line, got the end of the file")
            self.line += 1
            if self.header_bytes > _HEADER_BYTES:
                raise self.error(f"expected the {keyword} line, got a header of more than {_HEADER_BYTES} bytes")
            text = raw.strip(b" \t\r\n")
            strange = text.translate(None, _PRINTABLE)
            if strange:
                raise self.error(f"expected plain text, got the byte 0x{strange[0]:02x}")
            if text:
                return text.decode("ascii").split()

    def keyword_line(self, keyword: str) -> list[str]:
        """The tokens after the keyword."""
        tokens = self.header_line(repr(keyword))
        if tokens[0] == keyword:
            return tokens[1:]
        hint = ""
        if tokens[0] == "zbl":
            hint = " (a zbl line belongs to a model name with _zbl)"
        elif keyword == "basis_size":
            hint = f" (files without this line are NEP1 or NEP2; {_TOO_OLD})"
        raise self.error(f"expected the keyword {keyword!r}, got {_shown(tokens[0])}{hint}")

    def integer(self, what: str, token: str) -> int:
        if not _INTEGER.fullmatch(token):
            raise self.error(f"{what}: expected an integer, got {_shown(token)}")
        return int(token)

    def integers(self, keyword: str, names: str) -> list[int]:
        tokens = self.keyword_line(keyword)
        if len(tokens) != len(names.split()):
            raise self.error(f"expected '{keyword} {names}', got {len(tokens)} numbers")
        return [self.integer(f"{keyword} {name}", token) for name, token in zip(names.split(), tokens, strict=True)]

    def real(self, what: str, token: str) -> float:
        if not _FLOAT.fullmatch(token):
            raise self.error(f"{what}: expected a number, got {_shown(token)}")
        value = float(token)
        if not np.isfinite(value):
            raise self.error(f"{what}: expected a finite number, got {_shown(token)}")
        return value

    def rows(self, count: int | None, columns: int) -> np.ndarray:
        """The rest of the file, ``count`` lines (None: any) of ``columns`` numbers, as (count, columns)."""
        limit = _RESTART_BYTES if count is None else 1_000_000 + _BYTES_PER_NUMBER * columns * count
        data = self.file.read(min(limit, self.size) + 1)
        if len(data) > limit:
            # the number at the end may be incomplete; surplus numbers are the better message if there are any
            self._careful_rows(data[: data.rfind(b"\n") + 1], count, columns, complete=False)
            line = self.line + data.count(b"\n") + 1
            raise self.error(f"expected {_lines(count)}, got more than {limit} bytes", line)
        table = self._fast_rows(data, count, columns)
        if table is None:
            table = self._careful_rows(data, count, columns)
        self._check_last_line(data)
        return table

    def _check_last_line(self, data: bytes) -> None:
        # a number that is cut off still is a number: only its length and the missing line end show it
        # (in a file of fixed width, as programs write it)
        *before, last = (row.rstrip() for row in data[-2000:].split(b"\n"))
        widths = {len(row) for row in before[len(data) > 2000 :] if row}
        if last and len(widths) == 1 and len(last) < widths.pop():
            raise self.error(
                f"expected a line end after {_shown(last.strip().decode('ascii'))}, which is shorter than the lines "
                "before, got the end of the file: it is cut off (if not, add a line end)",
                self.line + data.count(b"\n") + 1,
            )

    def _fast_rows(self, data: bytes, count: int | None, columns: int) -> np.ndarray | None:
        """The table if nothing at all is wrong with ``data``."""
        if data.translate(None, _NUMERIC):
            return None
        try:
            if columns == 1:
                values = [float(row) for row in data.split(b"\n") if row and not row.isspace()]
            else:
                values = [tuple(map(float, row.split())) for row in data.split(b"\n") if row and not row.isspace()]
            table = np.array(values, dtype=float).reshape(-1, columns)
        except ValueError:
            return None
        if len(table) != len(values) or count not in (None, len(table)) or not np.isfinite(table).all():
            return None
        return table

    def _careful_rows(self, data: bytes, count: int | None, columns: int, complete: bool = True) -> np.ndarray:
        """The table, or the first defect with its line."""
        values = []
        line = self.line
        for raw in data.split(b"\n"):
            line += 1
            text = raw.strip(b" \t\r")
            if not text:
                continue
            strange = text.translate(None, _PRINTABLE)
            if strange:
                raise self.error(f"expected {_per_line(columns)}, got the byte 0x{strange[0]:02x}", line)
            tokens = text.decode("ascii").split()
            if len(values) == count:
                raise self.error(f"expected the end of the file after {_lines(count)}, got {_shown(tokens[0])}", line)
            if len(tokens) != columns:
                raise self.error(f"expected {_per_line(columns)}, got {_shown(text.decode('ascii'))}", line)
            row = []
            for token in tokens:
                if not _FLOAT.fullmatch(token):
                    raise self.error(f"expected a number, got {_shown(token)}", line)
                row.append(float(token))
                if not np.isfinite(row[-1]):
                    raise self.error(f"expected a finite number, got {_shown(token)}", line)
            values.append(row)
        if complete and count is not None and len(values) < count:
            raise self.error(f"the file is truncated: expected {_lines(count)}, found {len(values)}", line)
        return np.array(values, dtype=float).reshape(-1, columns)

    def line_of(self, data_start: int, index: int) -> int:
        """Line number of the ``index``-th row (from 0) of the number block that starts at byte ``data_start``."""
        self.file.seek(data_start)
        for number, row in enumerate(self.file, start=self.line + 1):
            if row.strip():
                index -= 1
                if index < 0:
                    return number
        return self.line


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _per_line(columns: int) -> str:
    return "one number per line" if columns == 1 else f"{columns} numbers per line"


def _lines(count: int | None) -> str:
    return "lines of numbers" if count is None else f"{count} lines of numbers"


@contextmanager
def _open(path):
    path = os.fsdecode(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ModelFileError(path, None, f"expected a file, got {kind}")
    with open(path, "rb") as file:
        yield _File(path, file)


# ---- reading nep.txt ----------------------------------------------------------------------------------------------


def read_model(path) -> NEPModel:
    """Read a ``nep.txt`` of version 3, 4 or 5 that describes an energy or, with temperature input, a free energy.

    Raises :class:`ModelFileError` (file, line, got, expected) for every defect and ``FileNotFoundError``.
    """
    with _open(path) as file:
        return _parse(file)


def parse_model(text: str, name: str = "model text") -> NEPModel:
    """The model in ``text``, the content of a ``nep.txt``; ``name`` stands for the file in errors."""
    return _parse(_File(name, io.BytesIO(text.encode())))


def format_model(model: NEPModel) -> str:
    """The content of the file that :func:`write_model` writes."""
    tail = [model.q_scaler]
    if model.zbl is not None and model.zbl.flexible is not None:
        tail.append(model.zbl.flexible.ravel())
    numbers = np.concatenate([model.parameters(), *tail])
    return "\n".join(_header_lines(model)) + "\n" + _formatted(numbers[:, None])


def _parse(file: _File) -> NEPModel:
    header = _read_header(file)
    version, species = header["version"], header["species"]
    n_descriptor = check_size(header["n_max"], header["l_max"], header["many_body"]) + header["temperature"]
    shapes = array_shapes(
        version, len(species), header["n_max"], header["basis_size"], n_descriptor, header.pop("neurons")
    )
    n_parameters = count_parameters(*shapes)
    zbl_line = header.pop("zbl_numbers")
    flexible = zbl_line is not None and zbl_line[:2] == [0, 0]
    n_pairs = len(species) * (len(species) + 1) // 2 if flexible else 0

    start = file.file.tell()
    numbers = file.rows(n_parameters + n_descriptor + 10 * n_pairs, 1)[:, 0]
    scaler = numbers[n_parameters : n_parameters + n_descriptor]
    for index in np.flatnonzero(~(scaler > 0))[:1]:
        line = file.line_of(start, n_parameters + int(index))
        raise file.error(f"scaler: expected a number above 0, got {scaler[index]:g}", line)
    if flexible:
        table = numbers[n_parameters + n_descriptor :].reshape(n_pairs, 10)
        defect = flexible_defect(table)
        if defect is not None:
            row, message = defect
            raise file.error(message, file.line_of(start, n_parameters + n_descriptor + 10 * row))
        header["zbl"] = ZBL(0, 0, flexible=table)
    elif zbl_line is not None:
        header["zbl"] = ZBL(*zbl_line)
    with file.here():
        return NEPModel(q_scaler=scaler, **header, **unpack_parameters(numbers[:n_parameters], *shapes))


def _read_header(file: _File) -> dict:
    """Hyper-parameters, each checked on its line, so that nothing is allocated for a nonsensical size."""
    header = _read_name(file)
    has_zbl = header.pop("has_zbl")
    header["zbl_numbers"] = _read_zbl(file) if has_zbl else None
    _read_cutoff(file, header)
    with file.here():
        header["n_max"] = check_pair("n_max", file.integers("n_max", "nR nA"), MAX_N)
        header["basis_size"] = check_pair("basis_size", file.integers("basis_size", "KR KA"), MAX_BASIS)
        tokens = file.keyword_line("l_max")
        if not 1 <= len(tokens) <= 1 + len(MANY_BODY):
            raise file.error(f"l_max: expected 1 to {1 + len(MANY_BODY)} numbers, got {len(tokens)}")
        numbers = [file.integer("l_max", token) for token in tokens]
        header["l_max"], header["many_body"] = check_l_max(*switches(numbers))
        check_size(header["n_max"], header["l_max"], header["many_body"])
        header["neurons"] = check_neurons(header["version"], *file.integers("ANN", "N1 N2"))
    return header


def _read_name(file: _File) -> dict:
    name, *rest = file.header_line("model name")
    variant = _VARIANT.fullmatch(name)
    if variant:
        raise file.error(f"{_shown(name)} is not supported, {_REFUSED[re.sub('[0-9]', '', variant[1])]}")
    if re.fullmatch(r"nep[12]?(_zbl)?", name):
        raise file.error(f"{name} is a model of the format NEP{2 if '2' in name else 1}; {_TOO_OLD}")
    if name not in _TOKENS:
        raise file.error(
            "expected a model name (nep3, nep4 or nep5, with or without _zbl; nep3 and nep4 also with _temperature), "
            f"got {_shown(name)}; {closest(name, _TOKENS)}"
        )
    version, has_zbl, temperature = _TOKENS[name]
    if not rest:
        raise file.error(f"expected '{name} T label_1 … label_T', got {name!r} alone")
    n_types = file.integer("number of types", rest[0])
    if not 1 <= n_types <= MAX_TYPES:
        raise file.error(f"number of types: expected 1 to {MAX_TYPES}, got {n_types}")
    if len(rest) - 1 != n_types:
        raise file.error(f"expected {n_types} labels, got {len(rest) - 1}")
    with file.here():
        species = check_species(rest[1:], "ZBL" if has_zbl else None)
    return {"version": version, "species": species, "temperature": temperature, "has_zbl": has_zbl}


def _read_zbl(file: _File) -> list[float]:
    tokens = file.keyword_line("zbl")
    if len(tokens) not in (2, 3):
        raise file.error(f"expected 'zbl inner outer [factor]', got {len(tokens)} numbers")
    numbers = [file.real("zbl", token) for token in tokens]
    if numbers[:2] != [0, 0]:
        with file.here():
            ZBL(*numbers)
    elif len(numbers) == 3:
        raise file.error("expected 'zbl 0 0' (flexible) or 'zbl inner outer factor', got 'zbl 0 0' with a factor")
    return numbers


def _read_cutoff(file: _File, header: dict) -> None:
    tokens = file.keyword_line("cutoff")
    n_types = len(header["species"])
    # counts of numbers after the keyword; with one type the second form is the first one
    forms = {4: "uniform", 2 * n_types + 2: "per-type", 7: "typewise", 2: "short"}
    if len(tokens) not in forms:
        counts = ", ".join(map(str, sorted(forms)))
        raise file.error(f"cutoff: expected {counts} numbers (for {n_types} types), got {len(tokens)}")
    form = forms[len(tokens)]
    n_pairs = n_types if form == "per-type" else 1
    radii, rest = tokens[: 2 * n_pairs], tokens[2 * n_pairs :]
    with file.here():
        radii = [check_cutoff("cutoff", file.real("cutoff", token)) for token in radii]
        header["cutoff_radial"] = np.resize(radii[0::2], n_types)
        header["cutoff_angular"] = np.resize(radii[1::2], n_types)
        header["per_type"] = form == "per-type"
        if rest:
            counts = [file.integer("largest neighbor count", token) for token in rest[:2]]
            header["max_neighbors"] = check_pair("largest neighbor count", counts, (2**31 - 1, 2**31 - 1))
        if form == "typewise":
            factors = check_typewise([file.real("typewise factor", token) for token in rest[2:]])
            header["typewise"] = factors
            check_species(header["species"], symbols_needed_by(None, factors))
            if factors[2] > 0 and header["zbl_numbers"] is not None and len(header["zbl_numbers"]) == 3:
                raise file.error("a ZBL factor stands here and in the zbl line, expected one of them")


# ---- writing nep.txt ----------------------------------------------------------------------------------------------


def write_model(path, model: NEPModel) -> None:
    """Write ``model`` as GPUMD does: numbers with 8 digits, but with more where reading back would not be exact."""
    write_atomically(path, format_model(model))


def _header_lines(model: NEPModel) -> list[str]:
    # GPUMD ends the first line with a blank; the same bytes make files comparable
    lines = [f"{model.name} {model.n_types} {' '.join(model.species)} "]
    if model.zbl is not None:
        numbers = [model.zbl.inner, model.zbl.outer] + [model.zbl.factor] * (model.zbl.factor is not None)
        lines.append("zbl " + " ".join(map(_short, numbers)))

    n_pairs = model.n_types if model.cutoff_form == "per-type" else 1
    pairs = zip(model.cutoff_radial[:n_pairs], model.cutoff_angular[:n_pairs], strict=True)
    numbers = [_short(radius) for pair in pairs for radius in pair]
    numbers += [str(count) for count in model.max_neighbors or ()]
    numbers += [_short(factor) for factor in model.typewise or ()]
    lines.append("cutoff " + " ".join(numbers))

    lines.append(f"n_max {model.n_max[0]} {model.n_max[1]}")
    lines.append(f"basis_size {model.basis_size[0]} {model.basis_size[1]}")
    # the first switch once was the order of the four-body terms: 2 or 0
    on = [2 * ("q222" in model.many_body)] + [int(name in model.many_body) for name in list(MANY_BODY)[1:]]
    while len(on) > 2 and not on[-1]:
        on.pop()
    lines.append(f"l_max {model.l_max} " + " ".join(map(str, on)))
    lines.append(f"ANN {model.neurons} {model.neurons2}")
    return lines


def _short(value: float) -> str:
    value = float(value)
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def _formatted(table: np.ndarray) -> str:
    """Lines of ``%15.7e`` numbers, with more digits where reading back would not be exact."""
    rows, columns = table.shape
    text = (" ".join(["%15.7e"] * columns) + "\n") * rows % tuple(table.ravel())
    back = np.array(text.split(), dtype=float).reshape(table.shape)
    inexact = np.flatnonzero((back != table).any(axis=1))
    if inexact.size:
        lines = text.splitlines()
        for row in inexact:
            lines[row] = " ".join(
                f"{value:15.7e}" if float(f"{value:.7e}") == value else f"{_exact(value):>15}" for value in table[row]
            )
        text = "\n".join(lines) + "\n"
    return text


def _exact(value: float) -> str:
    return np.format_float_scientific(value, unique=True, trim="0", exp_digits=2)


def write_atomically(path, content: str | bytes) -> None:
    """Replace the file ``path`` by ``content`` (ASCII or bytes) at once: a killed program leaves the old file or the
    new one."""
    # through a link, so that the file it points to is replaced and not the link
    path = os.path.realpath(os.fsdecode(path))
    mode = os.stat(path).st_mode if os.path.exists(path) else None
    if mode is not None and not stat.S_ISREG(mode):
        kind = IsADirectoryError if stat.S_ISDIR(mode) else OSError
        raise kind(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "expected a regular file or a new name", path)
    temporary = os.path.join(os.path.dirname(path), f".nepcg-{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            # those of a full disk name no file, others the temporary one
            raise type(error)(error.errno, error.strerror, path) from error
        raise


# ---- nep.restart --------------------------------------------------------------------------------------------------


def read_restart(path, model: NEPModel | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each parameter from a ``nep.restart``, two arrays (n_parameters,).

    The order is that of :meth:`NEPModel.parameters`. With ``model`` the number of lines must be its ``n_parameters``.
    Raises :class:`ModelFileError`.
    """
    with _open(path) as file:
        table = file.rows(None if model is None else model.n_parameters, 2)
        if not len(table):
            raise file.error("expected lines of numbers, got an empty file", 1)
        for index in np.flatnonzero(table[:, 1] < 0)[:1]:
            line = file.line_of(0, int(index))
            raise file.error(f"expected a standard deviation of at least 0, got {table[index, 1]:g}", line)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def write_restart(path, mu, sigma) -> None:
    """Write means and standard deviations, two arrays (n_parameters,), as ``nep.restart``; atomic and exact."""
    mu = validate_array("mu", mu, (None,))
    sigma = validate_array("sigma", sigma, mu.shape)
    if (sigma < 0).any():
        raise ModelError(f"sigma: expected numbers of at least 0, got {sigma.min():g}")
    write_atomically(path, _formatted(np.column_stack([mu, sigma])))
