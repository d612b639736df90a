"""``nep.in``, the input file of GPUMD's trainer: text to checked settings.

>>> settings = read_nep_in("folder/nep.in")
>>> model = settings.model()

One keyword and its values per line, in any order (``type`` before ``cutoff`` and ``type_weight``); a token that starts
with ``#`` begins a comment. Keywords, defaults and ranges are those of GPUMD 5.6; what it has and this package has not
(dipoles, charges, dispersion, …) is refused by name unless it has the value that switches it off. Stricter than GPUMD:
a keyword that stands there twice is an error. More liberal: names of species may be any labels, since the sites may be
beads, except where a repulsion (``zbl``) needs chemical symbols.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import ModelError, NepCGError, closest
from ..hyper import (
    MANY_BODY,
    MAX_BASIS,
    MAX_CUTOFF,
    MAX_NEURONS,
    check_l_max,
    check_pair,
    check_size,
    check_species,
    flexible_defect,
    switches,
)
from ..model import ZBL, NEPModel

__all__ = ["NepInError", "NepInput", "parse_nep_in", "read_nep_in"]

# strict ASCII: Python's float() and int() also take "1_000", "nan" and the digits of all scripts
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MAX_BYTES = 1_000_000
_MANY = 2**31 - 1
# the trainer takes fewer angular functions than a model file may have
_MAX_N = (12, 8)
_MIN_CUTOFF = 3.0


class NepInError(NepCGError, ValueError):
    """A ``nep.in`` (or ``zbl.in``) that cannot be used: names file, line and what was expected."""

    def __init__(self, path, line: int, message: str):
        self.path = str(path)
        self.line = line
        super().__init__(f"{self.path}, line {line}: {message}")


@dataclass(frozen=True)
class NepInput:
    """What a ``nep.in`` says, with the defaults of GPUMD 5.6 for what it does not say. Lengths in Å."""

    species: tuple[str, ...]  #: keyword ``type``
    version: int = 4  #: 3 or 4
    model_type: int = 0  #: 0 potential, 3 free energy with a temperature input
    prediction: bool = False  #: only evaluate
    cutoff: tuple[tuple[float, float], ...] = ((8.0, 4.0),)  #: (radial, angular): one pair, or one per species
    n_max: tuple[int, int] = (6, 6)
    basis_size: tuple[int, int] = (6, 6)
    l_max: tuple[int, ...] = (4, 1, 0, 0, 0, 0, 0)  #: L and the switches of ``MANY_BODY``, 0 or 1
    neuron: int = 30
    lambda_1: float | None = None  #: None: sqrt(1e-6 n_parameters / n_types)
    lambda_2: float | None = None  #: likewise
    lambda_e: float = 1.0
    lambda_f: float = 1.0
    lambda_v: float = 0.1
    lambda_shear: float = 1.0
    force_delta: float = 0.0  #: eV/Å
    type_weight: tuple[float, ...] | None = None  #: one per species; None: 1
    zbl: float | None = None  #: outer radius of the repulsion, the inner one is half of it; None: no repulsion
    use_typewise_cutoff_zbl: float | None = None  #: factor of the sum of covalent radii; None: off
    flexible_zbl: tuple[tuple[float, ...], ...] | None = None  #: from ``zbl.in``: ten numbers per pair of species
    batch: int = 1000
    full_batch: bool = False  #: all batches in every generation
    population: int = 50
    generation: int = 100_000
    output_interval: int = 100
    save_potential: tuple[int, int, bool] = (100_000, 1, False)  #: every N, name (0: with generation, 1: time), restart
    initial_para: float = 1.0
    sigma0: float = 0.1
    fine_tune: tuple[str, str] | None = None  #: names of the model and restart file to start from
    fine_tune_descriptor: bool = True  #: False: the descriptor parameters stay as they are
    import_q_scaler: bool = False  #: take the scaler from the ``nep.txt`` that is there

    def model(self) -> NEPModel:
        """A model with these hyper-parameters, all parameters zero and the default scaler."""
        cutoff = self.cutoff[0] if len(self.cutoff) == 1 else dict(zip(self.species, self.cutoff, strict=True))
        zbl = None
        if self.flexible_zbl is not None:
            zbl = ZBL(0, 0, flexible=np.array(self.flexible_zbl))
        elif self.zbl is not None:
            zbl = ZBL(self.zbl / 2, self.zbl, self.use_typewise_cutoff_zbl)
        return NEPModel.zeros(
            self.species,
            cutoff=cutoff,
            n_max=self.n_max,
            basis_size=self.basis_size,
            l_max=self.l_max,
            neurons=self.neuron,
            version=self.version,
            zbl=zbl,
            temperature=self.model_type == 3,
        )

    def loss_settings(self) -> dict:
        """The weights of the loss by name: ``lambda_…``, ``force_delta`` (eV/Å) and ``type_weight``."""
        return {name: getattr(self, name) for name in (*_LAMBDAS, "force_delta", "type_weight")}


def read_nep_in(path) -> NepInput:
    """Read a ``nep.in``; with ``zbl``, a file ``zbl.in`` beside it gives the parameters of the repulsion.

    Names of other files (``fine_tune``) stay as they stand there: relative to the folder of the file. Raises
    :class:`NepInError` for what is wrong in the files, ``OSError`` where there is none.
    """
    path = Path(os.fsdecode(path))
    settings, lines = _parse(_read(path), str(path))
    if settings.zbl is None or not (path.parent / "zbl.in").exists():
        return settings
    if settings.use_typewise_cutoff_zbl is not None:
        raise NepInError(
            path,
            lines["use_typewise_cutoff_zbl"].number,
            "use_typewise_cutoff_zbl: expected no file zbl.in beside it, whose radii would be used instead",
        )
    table = _read_zbl_in(path.parent / "zbl.in", len(settings.species))
    return replace(settings, flexible_zbl=table)


def parse_nep_in(text: str, name: str = "nep.in") -> NepInput:
    """The settings in ``text``, the content of a ``nep.in``; ``name`` is for messages. Raises :class:`NepInError`."""
    return _parse(text, name)[0]


# ---- one line -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A keyword, its values, and where they stand."""

    path: str
    number: int
    keyword: str
    values: list[str]

    def error(self, message: str) -> NepInError:
        return NepInError(self.path, self.number, f"{self.keyword}: {message}")

    @contextmanager
    def here(self):
        """Turn the ModelError of a value check into one that names file and line."""
        try:
            yield
        except ModelError as error:
            message = str(error).removeprefix(f"{self.keyword}: ").removeprefix(f"{self.keyword} ")
            raise self.error(message) from None

    def expect(self, form: str) -> None:
        """Check the number of values: one per word in ``form``, those in brackets may be missing."""
        words = form.split()
        least = sum(not word.startswith("[") for word in words)
        if not least <= len(self.values) <= len(words):
            raise self.error(f"expected '{self.keyword} {form}', got {_counted(len(self.values), 'value')}")

    def integer(self, index: int, low: int, high: int) -> int:
        token = self.values[index]
        if not _INTEGER.fullmatch(token):
            raise self.error(f"expected an integer, got {_shown(token)}")
        return self._within(int(token), low, high)

    def real(self, index: int, low: float, high: float = np.inf) -> float:
        token = self.values[index]
        if not _FLOAT.fullmatch(token) or not np.isfinite(float(token)):
            raise self.error(f"expected a number, got {_shown(token)}")
        return self._within(float(token), low, high)

    def _within(self, value, low, high):
        if not low <= value <= high:
            limits = f"{low:g} to {high:.8g}" if high not in (np.inf, _MANY) else f"at least {low:g}"
            raise self.error(f"expected {limits}, got {value}")
        return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"


# ---- keywords -----------------------------------------------------------------------------------------------------
# Each takes its line and the species (None: not known yet) and returns the fields of NepInput that it sets.


def _one_integer(low: int, high: int) -> Callable:
    return lambda line, species: {line.keyword: line.integer(0, low, high)}


def _one_real(low: float, high: float = np.inf) -> Callable:
    return lambda line, species: {line.keyword: line.real(0, low, high)}


def _switch(line, species):
    return {line.keyword: bool(line.integer(0, 0, 1))}


def _type(line, species):
    if not line.values:
        raise line.error("expected 'type T label_1 … label_T', got no value")
    count = line.integer(0, 1, 94)
    if len(line.values) != count + 1:
        raise line.error(f"expected {_counted(count, 'label')}, got {len(line.values) - 1}")
    with line.here():
        return {"species": check_species(line.values[1:])}


def _model_type(line, species):
    value = line.integer(0, 0, 3)
    if value in (1, 2):
        kind = {1: "dipole", 2: "polarizability"}[value]
        raise line.error(f"{value} is a {kind} model, not supported; expected 0 (potential) or 3 (temperature)")
    return {"model_type": value}


def _cutoff(line, species):
    if species is None:
        raise line.error("expected a line with type before this one")
    if len(line.values) not in (2, 2 * len(species)):
        pairs = "2 numbers" if len(species) == 1 else f"2 numbers or {2 * len(species)} (a pair per species)"
        raise line.error(f"expected {pairs}, got {len(line.values)}")
    radii = [line.real(k, _MIN_CUTOFF, MAX_CUTOFF) for k in range(len(line.values))]
    pairs = tuple(zip(radii[::2], radii[1::2], strict=True))
    for radial, angular in pairs:
        if angular > radial:
            raise line.error(f"expected an angular radius up to the radial one, got {radial:g} and {angular:g}")
    return {"cutoff": pairs}


def _pair_up_to(limits: tuple[int, int]) -> Callable:
    def pair(line, species):
        with line.here():
            return {line.keyword: check_pair(line.keyword, [line.integer(k, -_MANY, _MANY) for k in range(2)], limits)}

    return pair


def _l_max(line, species):
    order = line.integer(0, 2, 8)
    # the first switch is on unless it is said to be off
    on = [1, *[0] * (len(MANY_BODY) - 1)]
    for k in range(1, len(line.values)):
        on[k - 1] = int(line.integer(k, -_MANY, _MANY) != 0)
    with line.here():
        check_l_max(*switches((order, *on)))
    return {"l_max": (order, *on)}


def _neuron(line, species):
    if len(line.values) == 2 and line.integer(1, 0, _MANY):
        raise line.error("networks with a second hidden layer cannot be trained, expected one number (or 0 as second)")
    return {"neuron": line.integer(0, 1, MAX_NEURONS[4])}


def _type_weight(line, species):
    if species is None:
        raise line.error("expected a line with type before this one")
    if len(line.values) != len(species):
        raise line.error(f"expected {_counted(len(species), 'number')}, one per species, got {len(line.values)}")
    weights = tuple(line.real(k, 0.0) for k in range(len(line.values)))
    if not any(weights):
        raise line.error("expected a number above 0 among them, got none")
    return {"type_weight": weights}


def _typewise_zbl(line, species):
    return {line.keyword: line.real(0, 0.5) if line.values else 0.7}


def _batch(line, species):
    full = len(line.values) == 2 and bool(line.integer(1, 0, 1))
    return {"batch": line.integer(0, 1, _MANY), "full_batch": full}


def _save_potential(line, species):
    return {line.keyword: (line.integer(0, 1, _MANY), line.integer(1, 0, 1), bool(line.integer(2, 0, 1)))}


def _fine_tune(line, species):
    descriptor = len(line.values) == 2 or bool(line.integer(2, 0, 1))
    return {"fine_tune": tuple(line.values[:2]), "fine_tune_descriptor": descriptor}


def _unsupported(what: str, *defaults: float) -> Callable:
    def refuse(line, species):
        for k, default in enumerate(defaults[: len(line.values)]):
            if line.real(k, -np.inf) != default:
                raise line.error(
                    f"{what}, expected {default:g} or no such line, got {_shown(line.values[k])}: not supported"
                )
        return {}

    return refuse


def _removed(line, species):
    raise line.error("not supported, as in GPUMD since version 4.7; give cutoff a pair of radii per species")


_LAMBDAS = ("lambda_1", "lambda_2", "lambda_e", "lambda_f", "lambda_v", "lambda_shear")

#: keyword -> (its values as shown in messages, None: checked by the function; the function)
_KEYWORDS: dict[str, tuple[str | None, Callable]] = {
    "type": (None, _type),
    "version": ("number", _one_integer(3, 4)),
    "model_type": ("number", _model_type),
    "prediction": ("0|1", _switch),
    "cutoff": (None, _cutoff),
    "n_max": ("radial angular", _pair_up_to(_MAX_N)),
    "basis_size": ("radial angular", _pair_up_to(MAX_BASIS)),
    "l_max": ("L " + " ".join(f"[{name}]" for name in MANY_BODY), _l_max),
    "neuron": ("number [0]", _neuron),
    **{name: ("weight", _one_real(0.0)) for name in _LAMBDAS},
    "force_delta": ("force", _one_real(0.0)),
    "type_weight": (None, _type_weight),
    "zbl": ("radius", _one_real(1.0, 4.0)),
    "use_typewise_cutoff_zbl": ("[factor]", _typewise_zbl),
    "batch": ("size [full]", _batch),
    "population": ("number", _one_integer(10, 200)),
    "generation": ("number", _one_integer(0, 10_000_000)),
    "output_interval": ("number", _one_integer(1, _MANY)),
    "save_potential": ("interval format restart", _save_potential),
    "initial_para": ("number", _one_real(0.1, 1.0)),
    "sigma0": ("number", _one_real(0.01, 0.1)),
    "fine_tune": ("nep.txt nep.restart [descriptor]", _fine_tune),
    "import_q_scaler": ("0|1", _switch),
    "atomic_v": ("0|1", _unsupported("tensors per atom", 0)),
    "charge_mode": ("mode [flip]", _unsupported("charges (qNEP)", 0, 0)),
    "lambda_q": ("weight", _unsupported("charges (qNEP)", 0.1)),
    "lambda_z": ("weight", _unsupported("charges (qNEP)", 0.5)),
    "vdw": ("0|1", _unsupported("dispersion", 0)),
    "charge_vdw": ("0|1", _unsupported("charges with dispersion", 0)),
    "output_descriptor": ("0|1|2", _unsupported("files of descriptors", 0)),
    "use_typewise_cutoff": (None, _removed),
}
_ALIASES = {"mode": "model_type"}


# ---- the whole file -----------------------------------------------------------------------------------------------


def _parse(text: str, name: str) -> tuple[NepInput, dict[str, _Line]]:
    """The settings and the lines they come from, by keyword."""
    fields: dict = {}
    lines: dict[str, _Line] = {}
    rows = re.split(r"\r\n|\n|\r", text)
    for number, row in enumerate(rows, start=1):
        tokens = row.split()
        comment = next((k for k, token in enumerate(tokens) if token.startswith("#")), None)
        tokens = tokens[:comment]
        if not tokens:
            continue
        keyword = _ALIASES.get(tokens[0], tokens[0])
        if keyword not in _KEYWORDS:
            valid = [name for name, (_, function) in _KEYWORDS.items() if function is not _removed]
            raise NepInError(name, number, f"unknown keyword {_shown(tokens[0])}; {closest(keyword[:40], valid)}")
        if keyword in lines:
            raise NepInError(
                name, number, f"{tokens[0]}: stands in line {lines[keyword].number} already, expected it once"
            )
        line = lines[keyword] = _Line(name, number, keyword, tokens[1:])
        form, function = _KEYWORDS[keyword]
        if form is not None:
            line.expect(form)
        fields |= function(line, fields.get("species"))
    if "species" not in fields:
        last = max((k for k, row in enumerate(rows, start=1) if row.strip()), default=1)
        raise NepInError(name, last, "expected a line with type, got the end of the file")
    settings = NepInput(**fields)
    _check_together(settings, lines)
    return settings, lines


def _check_together(settings: NepInput, lines: dict[str, _Line]) -> None:
    """Checks of several keywords; the line to blame is that of the later one."""
    if settings.use_typewise_cutoff_zbl is not None and settings.zbl is None:
        raise lines["use_typewise_cutoff_zbl"].error("expected a line with zbl too, got none")
    if settings.import_q_scaler and settings.fine_tune is not None:
        raise lines["import_q_scaler"].error("expected 0, as fine_tune takes the scaler from the model it starts from")
    if settings.zbl is not None:
        with lines["zbl"].here():
            check_species(settings.species, "ZBL")
    given = [lines[name] for name in ("n_max", "l_max") if name in lines]
    # the defaults together are within the limits
    if given:
        with max(given, key=lambda line: line.number).here():
            check_size(settings.n_max, *check_l_max(*switches(settings.l_max)))


def _read(path) -> str:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        line = data[:_MAX_BYTES].count(b"\n") + 1
        raise NepInError(path, line, f"expected a file of keywords, got more than {_MAX_BYTES} bytes")
    # comments may be in any language, and whatever else is not ASCII is refused where it stands
    return data.decode("utf-8-sig", errors="replace")


def _read_zbl_in(path, n_types: int) -> tuple[tuple[float, ...], ...]:
    """Ten numbers (r_in, r_out, a1 … a8) for each pair of types (0,0), (0,1), …, (1,1), …, separated by any blanks."""
    expected = 5 * n_types * (n_types + 1)
    numbers: list[float] = []
    starts: list[int] = []
    number = 1
    for number, row in enumerate(re.split(r"\r\n|\n|\r", _read(path).rstrip()), start=1):
        line = _Line(str(path), number, "zbl.in", row.split())
        starts += [number] * len(line.values)
        numbers += [line.real(k, -np.inf) for k in range(len(line.values))]
        if len(numbers) > expected:
            break
    if len(numbers) != expected:
        got = "more" if len(numbers) > expected else len(numbers)
        raise NepInError(path, number, f"expected {expected} numbers, 10 for each pair of species, got {got}")
    table = np.array(numbers).reshape(-1, 10)
    defect = flexible_defect(table)
    if defect is not None:
        raise NepInError(path, starts[10 * defect[0]], defect[1])
    return tuple(tuple(row) for row in table.tolist())
