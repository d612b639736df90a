"""Explicit SIMD for Numba kernels: a number type ``Vec`` of ``LANES`` doubles.

A kernel written with ``Vec`` reads like scalar code: ``+ - * /``, comparison through :func:`where`, ``abs``,
``math.sqrt``, ``math.exp`` and ``math.tanh`` work lane by lane, and scalars mix in freely. The same formulas
(``basis.py``) therefore run on vectors here and on plain floats elsewhere (CUDA threads, tests). Compared with loops
left to the auto-vectoriser the code is vectorised for certain, needs no reassociation of sums (so results are
reproducible) and compiles several times faster.

==================  ================================================================================
name                meaning
==================  ================================================================================
``LANES``           doubles per vector: 8 where the CPU has AVX-512, else 4
``pointer(array)``  address of an array, indexed without checks; ``advance``, ``as_integers``
``lanes(a, i)``     view behind pointer ``a`` from element ``i`` on as vectors: ``v = lanes(a, 0)``;
                    ``v[t]`` is ``a[t*LANES:(t+1)*LANES]``, to read and to write
``load, store``     one vector at any element offset of a pointer
``splat(x)``        vector with all lanes equal to ``x``
``vsum(v)``         sum of the lanes (fixed tree order)
==================  ================================================================================

Sums of products: ``linear.py``; lists of neighbours: ``gather.py``. Pointers and views do not keep their array alive:
it must outlive them.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.core.typing.templates import signature as make_signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = [
    "LANES",
    "Vec",
    "advance",
    "aligned_empty",
    "as_integers",
    "fetch_add",
    "lanes",
    "load",
    "padded",
    "pointer",
    "splat",
    "store",
    "vsum",
    "where",
]


def _host_lanes() -> int:
    # the features Numba compiles for, which NUMBA_CPU_NAME may restrict
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return 8 if "+avx512f" in features else 4


LANES = _host_lanes()
# contract: a*b + c may become one fused operation; nothing else may be reordered, NaN stays NaN
_FLAGS = ("contract",)
_DOUBLE = ir.DoubleType()
_INT64 = ir.IntType(64)
_VEC = ir.VectorType(_DOUBLE, LANES)
_IVEC = ir.VectorType(_INT64, LANES)


def padded(n: int) -> int:
    """Smallest multiple of ``LANES`` that is at least ``n``."""
    return -(-n // LANES) * LANES


def aligned_empty(shape) -> np.ndarray:
    """Uninitialised float64 array whose data start on a 64-byte boundary, so that no vector straddles cache lines."""
    size = int(np.prod(shape))
    raw = np.empty(size + 8)
    offset = (-raw.ctypes.data % 64) // 8
    return raw[offset : offset + size].reshape(shape)


class VecType(types.Type):
    def __init__(self):
        super().__init__(name=f"Vec{LANES}")


class VecViewType(types.Type):
    def __init__(self):
        super().__init__(name=f"VecView{LANES}")


Vec = VecType()
VecView = VecViewType()


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VEC)


@register_model(VecViewType)
class _VecViewModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _DOUBLE.as_pointer())


# --- building blocks in LLVM IR ------------------------------------------------------------------------------------


def _splat(builder, x):
    first = builder.insert_element(ir.Constant(_VEC, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, ir.Constant(_VEC, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


def _as_vec(context, builder, value, ty):
    if isinstance(ty, VecType):
        return value
    return _splat(builder, context.cast(builder, value, ty, types.float64))


def _shuffle(builder, a, b, mask):
    n = len(mask)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), n), list(mask)))


def _load(builder, pointer):
    pointer = builder.bitcast(pointer, _VEC.as_pointer())
    return builder.load(pointer, align=8)


def _store(builder, value, pointer):
    pointer = builder.bitcast(pointer, _VEC.as_pointer())
    builder.store(value, pointer, align=8)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FLAGS), c, flags=_FLAGS)


def _sum_lanes(builder, v):
    width = LANES
    while width > 1:
        half = width // 2
        low = _shuffle(builder, v, v, range(half))
        high = _shuffle(builder, v, v, range(half, width))
        v = builder.fadd(low, high)
        width = half
    return builder.extract_element(v, ir.Constant(ir.IntType(32), 0))


# exp(f) for |f| <= ln(2)/2: Chebyshev interpolation of degree 11, error 3e-18; index = power of f
_EXP = (
    1.0,
    1.0,
    0.5000000000000019,
    0.1666666666666668,
    0.04166666666648795,
    0.008333333333319589,
    0.0013888888952352863,
    0.00019841269890076403,
    2.4801485441561313e-05,
    2.755724088722987e-06,
    2.763265472252779e-07,
    2.5110049204818658e-08,
)
_LOG2_E = 1.4426950408889634
# ln 2 = high + low; the high part has 32 bits, so that k * high is exact
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10


def _constant(x):
    return ir.Constant(_VEC, [x] * LANES)


def _call(builder, name, *args):
    # llvmlite has no short name for vector types, so the overload is spelled out
    fn = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VEC, [_VEC] * len(args)), f"llvm.{name}.v{LANES}f64"
    )
    return builder.call(fn, args)


def _emit_exp(builder, x):
    """exp(x), |x| < 700, to about 1e-16 relative: ``2^k exp(f)`` with ``x = k ln 2 + f``."""
    k = _call(builder, "rint", builder.fmul(x, _constant(_LOG2_E)))
    f = builder.fsub(x, builder.fmul(k, _constant(_LN2_HIGH)), flags=_FLAGS)
    f = builder.fsub(f, builder.fmul(k, _constant(_LN2_LOW)), flags=_FLAGS)
    p = _constant(_EXP[-1])
    for c in _EXP[-2::-1]:
        p = _multiply_add(builder, p, f, _constant(c))
    # 2^k: adding 1.5 * 2^52 leaves k in the low bits of the mantissa, from where it is shifted into the exponent
    bits = builder.bitcast(builder.fadd(k, _constant(1.5 * 2.0**52)), _IVEC)
    bits = builder.add(builder.shl(bits, ir.Constant(_IVEC, [52] * LANES)), ir.Constant(_IVEC, [1023 << 52] * LANES))
    return builder.fmul(p, builder.bitcast(bits, _VEC))


def _emit_tanh(builder, x):
    """tanh(x) to about 1e-16 absolute: ``(1 - e) / (1 + e)`` with ``e = exp(-2|x|)``; 1 beyond 20, NaN stays NaN."""
    size = _call(builder, "fabs", x)
    size = builder.select(builder.fcmp_ordered(">", size, _constant(20.0)), _constant(20.0), size)
    e = _emit_exp(builder, builder.fmul(size, _constant(-2.0)))
    one = _constant(1.0)
    return _call(builder, "copysign", builder.fdiv(builder.fsub(one, e), builder.fadd(one, e)), x)


# --- operators -----------------------------------------------------------------------------------------------------


# Numba tries templates of the most specific target first: without this every vector operation would be offered to all
# overloads of the operator (lists, strings, ...) before, which doubles the compile time
_FIRST = {"target": "cpu"}


def _is_number(ty):
    return isinstance(ty, VecType | types.Float | types.Integer)


def _binary(*ops, emit):
    for op in ops:

        class Template(AbstractTemplate):
            metadata = _FIRST

            def generic(self, args, kws):
                if len(args) == 2 and any(isinstance(a, VecType) for a in args) and all(map(_is_number, args)):
                    return make_signature(Vec, *(a if isinstance(a, VecType) else types.float64 for a in args))
                return None

        infer_global(op)(Template)

        def lower(context, builder, sig, args):
            a, b = (_as_vec(context, builder, v, t) for v, t in zip(args, sig.args, strict=True))
            return emit(builder, a, b)

        lower_builtin(op, VecType, VecType)(lower)
        lower_builtin(op, VecType, types.float64)(lower)
        lower_builtin(op, types.float64, VecType)(lower)


_binary(operator.add, operator.iadd, emit=lambda builder, a, b: builder.fadd(a, b, flags=_FLAGS))
_binary(operator.sub, operator.isub, emit=lambda builder, a, b: builder.fsub(a, b, flags=_FLAGS))
_binary(operator.mul, operator.imul, emit=lambda builder, a, b: builder.fmul(a, b, flags=_FLAGS))
_binary(operator.truediv, operator.itruediv, emit=lambda builder, a, b: builder.fdiv(a, b))


def _unary(op, emit):
    class Template(AbstractTemplate):
        metadata = _FIRST

        def generic(self, args, kws):
            if len(args) == 1 and isinstance(args[0], VecType):
                return make_signature(Vec, Vec)
            return None

    infer_global(op)(Template)

    @lower_builtin(op, VecType)
    def lower(context, builder, sig, args):
        return emit(builder, args[0])


_unary(operator.neg, lambda builder, v: builder.fneg(v))
_unary(abs, lambda builder, v: _call(builder, "fabs", v))
_unary(math.sqrt, lambda builder, v: _call(builder, "sqrt", v))
_unary(math.exp, _emit_exp)
_unary(math.tanh, _emit_tanh)


class _GetItem(AbstractTemplate):
    metadata = _FIRST

    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], VecViewType) and isinstance(args[1], types.Integer):
            return make_signature(Vec, VecView, types.intp)
        return None


class _SetItem(AbstractTemplate):
    metadata = _FIRST

    def generic(self, args, kws):
        if len(args) == 3 and isinstance(args[0], VecViewType) and isinstance(args[1], types.Integer):
            value = args[2] if isinstance(args[2], VecType) else types.float64
            return make_signature(types.none, VecView, types.intp, value)
        return None


infer_global(operator.getitem)(_GetItem)
infer_global(operator.setitem)(_SetItem)


def _element(builder, base, index):
    return builder.gep(base, [builder.mul(index, ir.Constant(_INT64, LANES))], source_etype=_DOUBLE)


@lower_builtin(operator.getitem, VecViewType, types.intp)
def _getitem(context, builder, sig, args):
    return _load(builder, _element(builder, args[0], args[1]))


@lower_builtin(operator.setitem, VecViewType, types.intp, VecType)
@lower_builtin(operator.setitem, VecViewType, types.intp, types.float64)
def _setitem(context, builder, sig, args):
    _store(builder, _as_vec(context, builder, args[2], sig.args[2]), _element(builder, args[0], args[1]))
    return context.get_dummy_value()


# --- functions -----------------------------------------------------------------------------------------------------


def _is_doubles(ty):
    return isinstance(ty, types.CPointer) and ty.dtype == types.float64


def _at(builder, pointer, index):
    return builder.gep(pointer, [index], source_etype=_DOUBLE)


@intrinsic
def pointer(typingctx, array):
    """Address of the first element of a contiguous array: indexing it costs no check for negative numbers.

    Like a view, it does not keep the array alive.
    """
    if not (isinstance(array, types.Array) and array.layout == "C"):
        return None

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, context.get_value_type(sig.return_type))

    # booleans are stored as bytes
    dtype = types.uint8 if array.dtype == types.boolean else array.dtype
    return types.CPointer(dtype)(array), codegen


@intrinsic
def advance(typingctx, numbers, n):
    """The pointer ``numbers`` (to float64 or int64) moved by n elements."""
    if not (_is_doubles(numbers) or (isinstance(numbers, types.CPointer) and numbers.dtype == types.int64)):
        return None
    return numbers(numbers, types.intp), lambda context, builder, sig, args: _at(builder, *args)


@intrinsic
def as_integers(typingctx, doubles):
    """The memory behind a pointer to float64, used for int64."""
    if not _is_doubles(doubles):
        return None
    target = types.CPointer(types.int64)
    return target(doubles), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(target))


@intrinsic
def lanes(typingctx, doubles, start):
    """View of float64 numbers behind a pointer, from element ``start`` on, as vectors."""
    if not _is_doubles(doubles):
        return None

    def codegen(context, builder, sig, args):
        return _at(builder, args[0], args[1])

    return VecView(doubles, types.intp), codegen


@intrinsic
def load(typingctx, doubles, start):
    """The vector ``doubles[start : start + LANES]``."""
    if not _is_doubles(doubles):
        return None

    def codegen(context, builder, sig, args):
        return _load(builder, _at(builder, args[0], args[1]))

    return Vec(doubles, types.intp), codegen


@intrinsic
def store(typingctx, doubles, start, value):
    """``doubles[start : start + LANES] = value``."""
    if not _is_doubles(doubles):
        return None

    def codegen(context, builder, sig, args):
        _store(builder, args[2], _at(builder, args[0], args[1]))
        return context.get_dummy_value()

    return types.none(doubles, types.intp, Vec), codegen


@intrinsic
def splat(typingctx, x):
    """Vector with all lanes equal to the number ``x``."""

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0])

    return Vec(types.float64), codegen


@intrinsic
def vsum(typingctx, v):
    """Sum of the lanes, as a binary tree (halves are added until one lane is left)."""

    def codegen(context, builder, sig, args):
        return _sum_lanes(builder, args[0])

    return types.float64(Vec), codegen


@intrinsic
def where(typingctx, a, b, if_less, otherwise):
    """Lane by lane ``if_less`` where ``a < b``, else ``otherwise`` (also where a or b is NaN)."""

    def codegen(context, builder, sig, args):
        a, b, x, y = (_as_vec(context, builder, v, t) for v, t in zip(args, sig.args, strict=True))
        return builder.select(builder.fcmp_ordered("<", a, b), x, y)

    return Vec(*(t if isinstance(t, VecType) else types.float64 for t in (a, b, if_less, otherwise))), codegen


@intrinsic
def fetch_add(typingctx, counters, index, value):
    """Atomically add ``value`` to ``counters[index]`` (int64) and return the old value: how threads share work."""
    if not (isinstance(counters, types.CPointer) and counters.dtype == types.int64):
        return None

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]], source_etype=_INT64), args[2], "monotonic")

    return types.int64(counters, types.intp, types.int64), codegen
