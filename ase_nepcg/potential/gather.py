"""Vectors of integers and masks, for packing lists of neighbours without branches.

==========================  ========================================================================
``neighbor_vectors``        vectors to LANES neighbours at scattered places
``load_integers``           LANES int64 numbers; ``count_up(i)``: i, i + 1, ...
``below(v, limit, n)``      mask of the lanes below a limit among the first n; ``without(mask, lane)``
``count(mask)``             number of lanes set
``store_kept``              the lanes set in a mask, without gaps; ``store_kept_integers``
==========================  ========================================================================
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from .simd import _DOUBLE, _INT64, _IVEC, _VEC, LANES, Vec, VecType, _as_vec, _at, _is_doubles, _shuffle, _store

__all__ = [
    "below",
    "count",
    "count_up",
    "load_integers",
    "neighbor_vectors",
    "store_kept",
    "store_kept_integers",
    "without",
]

_MASK = ir.VectorType(ir.IntType(1), LANES)


class _IntVecType(types.Type):
    def __init__(self):
        super().__init__(name=f"IntVec{LANES}")


class _MaskType(types.Type):
    def __init__(self):
        super().__init__(name=f"Mask{LANES}")


IntVec = _IntVecType()
Mask = _MaskType()


@register_model(_IntVecType)
class _IntVecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _IVEC)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _MASK)


def _is_integers(ty):
    return isinstance(ty, types.CPointer) and ty.dtype == types.int64


def _int_splat(builder, x):
    first = builder.insert_element(ir.Constant(_IVEC, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, first, first, [0] * LANES)


def _all_lanes(x):
    return ir.Constant(_IVEC, [x] * LANES)


def _lane_numbers():
    return ir.Constant(_IVEC, list(range(LANES)))


@intrinsic
def neighbor_vectors(typingctx, positions, site, shifts, neighbors, first):
    """Vectors to LANES neighbours: components x, y, z (Vec) and the indices (IntVec).

    ``neighbors[first + w] = s 2^32 + j`` (int64) means the vector ``(positions[j] - positions[site]) + shifts[s]``;
    rows of ``positions`` and ``shifts`` are four doubles, the last one unused. Rows are loaded whole and transposed:
    gather instructions are slow on many processors.
    """
    if not (_is_doubles(positions) and _is_doubles(shifts) and _is_integers(neighbors)):
        return None
    row_type = ir.VectorType(_DOUBLE, 4)

    def codegen(context, builder, sig, args):
        positions, site, shifts, neighbors, first = args

        def row(base, number):
            at = builder.gep(base, [builder.shl(number, ir.Constant(_INT64, 2))], source_etype=_DOUBLE)
            return builder.load(builder.bitcast(at, row_type.as_pointer()), align=8)

        centre = row(positions, site)
        at = builder.gep(neighbors, [first], source_etype=_INT64)
        rows = []
        for w in range(LANES):
            packed = builder.load(builder.gep(at, [ir.Constant(_INT64, w)], source_etype=_INT64))
            j = builder.and_(packed, ir.Constant(_INT64, 0xFFFFFFFF))
            shift = builder.lshr(packed, ir.Constant(_INT64, 32))
            rows.append(builder.fadd(builder.fsub(row(positions, j), centre), row(shifts, shift)))
        # rows w and w + 4 side by side, so that the rest works within halves of a vector
        half = LANES // 4
        wide = (
            [rows[w] for w in range(4)]
            if half == 1
            else [_shuffle(builder, rows[w], rows[w + 4], range(8)) for w in range(4)]
        )
        even = [4 * h + k for h in range(half) for k in (0, LANES, 2, LANES + 2)]
        odd = [4 * h + k + 1 for h in range(half) for k in (0, LANES, 2, LANES + 2)]
        low = [4 * h + k for h in range(half) for k in (0, 1, LANES, LANES + 1)]
        high = [4 * h + k + 2 for h in range(half) for k in (0, 1, LANES, LANES + 1)]
        xz01, xz23 = (_shuffle(builder, a, b, even) for a, b in (wide[:2], wide[2:]))
        y01, y23 = (_shuffle(builder, a, b, odd) for a, b in (wide[:2], wide[2:]))
        indices = builder.and_(builder.load(builder.bitcast(at, _IVEC.as_pointer()), align=8), _all_lanes(0xFFFFFFFF))
        parts = (
            _shuffle(builder, xz01, xz23, low),
            _shuffle(builder, y01, y23, low),
            _shuffle(builder, xz01, xz23, high),
            indices,
        )
        return context.make_tuple(builder, sig.return_type, parts)

    result = types.Tuple((Vec, Vec, Vec, IntVec))
    return result(positions, types.intp, shifts, neighbors, types.intp), codegen


@intrinsic
def count_up(typingctx, start):
    """The integers start, start + 1, ..."""

    def codegen(context, builder, sig, args):
        return builder.add(_int_splat(builder, args[0]), _lane_numbers())

    return IntVec(types.intp), codegen


@intrinsic
def load_integers(typingctx, integers, start, value):
    """``integers[start : start + LANES] + value`` (int64)."""
    if not _is_integers(integers):
        return None

    def codegen(context, builder, sig, args):
        at = builder.gep(args[0], [args[1]], source_etype=_INT64)
        v = builder.load(builder.bitcast(at, _IVEC.as_pointer()), align=8)
        return builder.add(v, _int_splat(builder, args[2]))

    return IntVec(integers, types.intp, types.int64), codegen


@intrinsic
def below(typingctx, v, limit, n):
    """Mask of the lanes with ``v < limit`` (a number or a Vec) among the first ``n``."""

    def codegen(context, builder, sig, args):
        less = builder.fcmp_ordered("<", args[0], _as_vec(context, builder, args[1], sig.args[1]))
        return builder.and_(less, builder.icmp_signed("<", _lane_numbers(), _int_splat(builder, args[2])))

    return Mask(Vec, Vec if isinstance(limit, VecType) else types.float64, types.intp), codegen


@intrinsic
def without(typingctx, mask, lane):
    """``mask`` with one lane cleared; nothing happens if there is no such lane."""

    def codegen(context, builder, sig, args):
        return builder.and_(args[0], builder.icmp_signed("!=", _lane_numbers(), _int_splat(builder, args[1])))

    return Mask(Mask, types.intp), codegen


@intrinsic
def count(typingctx, mask):
    """How many lanes are set."""

    def codegen(context, builder, sig, args):
        return builder.zext(builder.ctpop(builder.bitcast(args[0], ir.IntType(LANES))), _INT64)

    return types.intp(Mask), codegen


def _compress(builder, value, mask, vector, suffix):
    fn = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector, _MASK, vector]),
        f"llvm.experimental.vector.compress.v{LANES}{suffix}",
    )
    return builder.call(fn, [value, mask, ir.Constant(vector, ir.Undefined)])


@intrinsic
def store_kept(typingctx, doubles, start, value, mask):
    """Store the lanes of ``value`` set in ``mask`` without gaps from ``start`` on; LANES entries are overwritten."""
    if not _is_doubles(doubles):
        return None

    def codegen(context, builder, sig, args):
        _store(builder, _compress(builder, args[2], args[3], _VEC, "f64"), _at(builder, args[0], args[1]))
        return context.get_dummy_value()

    return types.none(doubles, types.intp, Vec, Mask), codegen


@intrinsic
def store_kept_integers(typingctx, integers, start, value, mask):
    """As :func:`store_kept`, for int64."""
    if not _is_integers(integers):
        return None

    def codegen(context, builder, sig, args):
        at = builder.gep(args[0], [args[1]], source_etype=_INT64)
        kept = _compress(builder, args[2], args[3], _IVEC, "i64")
        builder.store(kept, builder.bitcast(at, _IVEC.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(integers, types.intp, IntVec, Mask), codegen
