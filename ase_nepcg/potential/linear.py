"""Small dense linear algebra on vectors, with all accumulators in registers.

==================  ================================================================================
``dot, total``      scalar product and sum over many vectors
``row_dots``        LANES dot products at once, see its docstring
``row_sums``        the sums over lanes of LANES vectors as one vector
``matvec``          matrix times vector of scalars
``pair_product``    matrix of scalars times two columns of vectors
``columns_product``  ``out[r] += sum_k x[k, r] m[k]``, scalars x, vectors m and out
``rows_product``    ``out[k] += sum_r x[k, r] m[r]``
==================  ================================================================================
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .simd import (
    _DOUBLE,
    _INT64,
    _VEC,
    LANES,
    Vec,
    VecView,
    VecViewType,
    _at,
    _constant,
    _element,
    _load,
    _multiply_add,
    _shuffle,
    _splat,
    _store,
    _sum_lanes,
)

__all__ = ["columns_product", "dot", "matvec", "pair_product", "row_dots", "row_sums", "rows_product", "total"]

# vectors that fit into registers beside the operands: 32 registers with AVX-512, else 16
_REGISTERS = 24 if LANES == 8 else 12


def _sum_rows(builder, rows):
    """Vector whose lane w is the sum of the lanes of ``rows[w]``: a transposition that adds as it goes."""
    rows = list(rows)
    width = 1
    while len(rows) > 1:
        merged = []
        for a, b in zip(rows[::2], rows[1::2], strict=True):
            even = [i for i in range(2 * LANES) if (i % LANES) // width % 2 == 0]
            odd = [i for i in range(2 * LANES) if (i % LANES) // width % 2 == 1]
            # keep groups interleaved: group g of a next to group g of b
            order_even, order_odd = _interleave(even, width), _interleave(odd, width)
            merged.append(builder.fadd(_shuffle(builder, a, b, order_even), _shuffle(builder, a, b, order_odd)))
        rows = merged
        width *= 2
    return rows[0]


def _interleave(lanes_of_both, width):
    half = len(lanes_of_both) // 2
    a, b = lanes_of_both[:half], lanes_of_both[half:]
    order = []
    for start in range(0, half, width):
        order += a[start : start + width] + b[start : start + width]
    return order


@intrinsic
def row_dots(typingctx, a, a_first, a_step, b, b_first, b_step, b_row, n):
    """LANES dot products that share one factor.

    Lane w of the result is ``sum over t < n and all lanes of a[a_first + t a_step] * b[b_first + t b_step + w b_row]``
    with ``a`` and ``b`` views and all indices counted in vectors. All accumulators stay in registers; the final sums
    over lanes are one transposition.
    """
    if not (isinstance(a, VecViewType) and isinstance(b, VecViewType)):
        return None

    def codegen(context, builder, sig, args):
        a, a_first, a_step, b, b_first, b_step, b_row, n = args
        zero = ir.Constant(_VEC, [0.0] * LANES)
        entry = builder.block
        loop = builder.append_basic_block("row_dots.loop")
        done = builder.append_basic_block("row_dots.done")
        a0 = _element(builder, a, a_first)
        b0 = _element(builder, b, b_first)
        builder.cbranch(builder.icmp_signed(">", n, ir.Constant(_INT64, 0)), loop, done)
        builder.position_at_end(loop)
        t = builder.phi(_INT64)
        sums = [builder.phi(_VEC) for _ in range(LANES)]
        t.add_incoming(ir.Constant(_INT64, 0), entry)
        factor = _load(builder, _element(builder, a0, builder.mul(t, a_step)))
        row = _element(builder, b0, builder.mul(t, b_step))
        new = []
        for w in range(LANES):
            value = _load(builder, _element(builder, row, builder.mul(b_row, ir.Constant(_INT64, w))))
            new.append(_multiply_add(builder, factor, value, sums[w]))
        t_next = builder.add(t, ir.Constant(_INT64, 1))
        t.add_incoming(t_next, loop)
        for w in range(LANES):
            sums[w].add_incoming(zero, entry)
            sums[w].add_incoming(new[w], loop)
        builder.cbranch(builder.icmp_signed("<", t_next, n), loop, done)
        builder.position_at_end(done)
        final = []
        for w in range(LANES):
            phi = builder.phi(_VEC)
            phi.add_incoming(zero, entry)
            phi.add_incoming(new[w], loop)
            final.append(phi)
        return _sum_rows(builder, final)

    index = types.intp
    return Vec(VecView, index, index, VecView, index, index, index, index), codegen


@intrinsic
def row_sums(typingctx, view, first):
    """Vector whose lane w is the sum of the lanes of ``view[first + w]``."""

    def codegen(context, builder, sig, args):
        base = _element(builder, args[0], args[1])
        return _sum_rows(
            builder, [_load(builder, _element(builder, base, ir.Constant(_INT64, w))) for w in range(LANES)]
        )

    return Vec(VecView, types.intp), codegen


def _sum_loop(builder, n, term):
    """Sum of the lanes of ``term(t)`` over t < n; two accumulators, as one addition waits for the one before."""
    zero, one = ir.Constant(_INT64, 0), ir.Constant(_INT64, 1)
    entry = builder.block
    loop, done = builder.append_basic_block("sum.loop"), builder.append_basic_block("sum.done")
    builder.cbranch(builder.icmp_signed(">", n, zero), loop, done)
    builder.position_at_end(loop)
    t, even, odd = builder.phi(_INT64), builder.phi(_VEC), builder.phi(_VEC)
    new = term(even, t)
    t_next = builder.add(t, one)
    t.add_incoming(zero, entry)
    t.add_incoming(t_next, loop)
    # the accumulators change places in each turn
    even.add_incoming(_constant(0.0), entry)
    even.add_incoming(odd, loop)
    odd.add_incoming(_constant(0.0), entry)
    odd.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", t_next, n), loop, done)
    builder.position_at_end(done)
    sums = []
    for value in (odd, new):
        phi = builder.phi(_VEC)
        phi.add_incoming(_constant(0.0), entry)
        phi.add_incoming(value, loop)
        sums.append(phi)
    return _sum_lanes(builder, builder.fadd(*sums))


@intrinsic
def dot(typingctx, a, a_first, b, b_first, n):
    """Scalar product of n vectors of view ``a`` from ``a_first`` on with n of ``b`` from ``b_first`` on."""

    def codegen(context, builder, sig, args):
        a0, b0 = _element(builder, args[0], args[1]), _element(builder, args[2], args[3])

        def term(accumulator, t):
            return _multiply_add(
                builder, _load(builder, _element(builder, a0, t)), _load(builder, _element(builder, b0, t)), accumulator
            )

        return _sum_loop(builder, args[4], term)

    return types.float64(VecView, types.intp, VecView, types.intp, types.intp), codegen


@intrinsic
def total(typingctx, a, first, n):
    """Sum of all lanes of n vectors of view ``a`` from ``first`` on."""

    def codegen(context, builder, sig, args):
        a0 = _element(builder, args[0], args[1])
        return _sum_loop(builder, args[2], lambda s, t: builder.fadd(s, _load(builder, _element(builder, a0, t))))

    return types.float64(VecView, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def matvec(typingctx, matrix, first, x, x_first, n, out, columns):
    """``out[c] += sum over d < n of x[x_first + d] * matrix[first + d columns + c]`` for all vectors
    ``c < columns``; n >= 1.

    ``matrix`` and ``out`` are views (indices in vectors), ``x`` a pointer to scalars, ``columns`` a compile-time
    constant. As many accumulators as there are registers are kept at a time.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    n_columns = columns.literal_value
    n_groups = -(-n_columns // _REGISTERS)
    group = -(-n_columns // n_groups)

    def codegen(context, builder, sig, args):
        matrix, first, x, x_first, n, out, _ = args
        x0 = _at(builder, x, x_first)
        matrix0 = _element(builder, matrix, first)
        stride = ir.Constant(_INT64, n_columns * LANES)
        for start in range(0, n_columns, group):
            width = min(group, n_columns - start)
            targets = [_element(builder, out, ir.Constant(_INT64, start + c)) for c in range(width)]
            initial = [_load(builder, p) for p in targets]
            entry = builder.block
            loop = builder.append_basic_block("matvec.loop")
            done = builder.append_basic_block("matvec.done")
            builder.branch(loop)
            builder.position_at_end(loop)
            d = builder.phi(_INT64)
            sums = [builder.phi(_VEC) for _ in range(width)]
            d.add_incoming(ir.Constant(_INT64, 0), entry)
            factor = _splat(builder, builder.load(builder.gep(x0, [d], source_etype=_DOUBLE)))
            row = builder.gep(matrix0, [builder.mul(d, stride)], source_etype=_DOUBLE)
            new = []
            for c in range(width):
                value = _load(builder, _element(builder, row, ir.Constant(_INT64, start + c)))
                new.append(_multiply_add(builder, factor, value, sums[c]))
            d_next = builder.add(d, ir.Constant(_INT64, 1))
            d.add_incoming(d_next, loop)
            for c in range(width):
                sums[c].add_incoming(initial[c], entry)
                sums[c].add_incoming(new[c], loop)
            builder.cbranch(builder.icmp_signed("<", d_next, n), loop, done)
            builder.position_at_end(done)
            for c in range(width):
                _store(builder, new[c], targets[c])
        return context.get_dummy_value()

    index = types.intp
    return types.none(VecView, index, x, index, index, VecView, columns), codegen


@intrinsic(prefer_literal=True)
def pair_product(typingctx, matrix, first, row_step, rows, x, x_first, y, y_first, columns, out):
    """``out[2r] = sum_c M[r, c] x[c]`` and ``out[2r + 1] = sum_c M[r, c] y[c]``, c < columns, r < rows.

    ``M[r, c] = matrix[first + r row_step + c]`` are scalars behind a pointer, ``x``, ``y`` and ``out`` views;
    ``columns`` is a compile-time constant. ``x`` and ``y`` are read once and stay in registers as far as these reach.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    n_columns = columns.literal_value

    def codegen(context, builder, sig, args):
        matrix, first, row_step, rows, x, x_first, y, y_first, _, out = args
        zero, one = ir.Constant(_INT64, 0), ir.Constant(_INT64, 1)
        matrix0 = _at(builder, matrix, first)
        x0, y0 = _element(builder, x, x_first), _element(builder, y, y_first)
        xs = [_load(builder, _element(builder, x0, ir.Constant(_INT64, c))) for c in range(n_columns)]
        ys = [_load(builder, _element(builder, y0, ir.Constant(_INT64, c))) for c in range(n_columns)]
        entry = builder.block
        loop, done = builder.append_basic_block("pair.loop"), builder.append_basic_block("pair.done")
        builder.cbranch(builder.icmp_signed(">", rows, zero), loop, done)
        builder.position_at_end(loop)
        r = builder.phi(_INT64)
        row = _at(builder, matrix0, builder.mul(r, row_step))
        # two partial sums each: one chain of additions would wait for itself
        sums = [[_constant(0.0)] * 2, [_constant(0.0)] * 2]
        for c in range(n_columns):
            factor = _splat(builder, builder.load(_at(builder, row, ir.Constant(_INT64, c))))
            for partial, column in zip(sums, (xs[c], ys[c]), strict=True):
                partial[c % 2] = _multiply_add(builder, factor, column, partial[c % 2])
        r2 = builder.add(r, r)
        _store(builder, builder.fadd(*sums[0]), _element(builder, out, r2))
        _store(builder, builder.fadd(*sums[1]), _element(builder, out, builder.add(r2, one)))
        r_next = builder.add(r, one)
        r.add_incoming(zero, entry)
        r.add_incoming(r_next, loop)
        builder.cbranch(builder.icmp_signed("<", r_next, rows), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    i = types.intp
    return types.none(matrix, i, i, i, VecView, i, VecView, i, columns, VecView), codegen


@intrinsic(prefer_literal=True)
def columns_product(typingctx, x, x_first, x_step, columns, m, m_first, m_step, rows, out, out_first, out_step):
    """``out[out_first + r out_step] += sum_k x[x_first + k x_step + r] m[m_first + k m_step]``, k < columns, r < rows.

    ``x`` points to scalars, ``m`` and ``out`` are views; ``columns`` is a compile-time constant, and ``m`` stays in
    registers as far as these reach.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    n_columns = columns.literal_value

    def codegen(context, builder, sig, args):
        x, x_first, x_step, _, m, m_first, m_step, rows, out, out_first, out_step = args
        zero, one = ir.Constant(_INT64, 0), ir.Constant(_INT64, 1)
        x0, m0, out0 = _at(builder, x, x_first), _element(builder, m, m_first), _element(builder, out, out_first)
        steps = [ir.Constant(_INT64, k) for k in range(n_columns)]
        ms = [_load(builder, _element(builder, m0, builder.mul(m_step, k))) for k in steps]
        xs = [_at(builder, x0, builder.mul(x_step, k)) for k in steps]
        entry = builder.block
        loop, done = builder.append_basic_block("columns.loop"), builder.append_basic_block("columns.done")
        builder.cbranch(builder.icmp_signed(">", rows, zero), loop, done)
        builder.position_at_end(loop)
        r = builder.phi(_INT64)
        target = _element(builder, out0, builder.mul(r, out_step))
        # two partial sums: one chain of additions would wait for itself
        sums = [_load(builder, target), None]
        for k in range(n_columns):
            factor = _splat(builder, builder.load(_at(builder, xs[k], r)))
            if sums[k % 2] is None:
                sums[k % 2] = builder.fmul(factor, ms[k], flags=("contract",))
            else:
                sums[k % 2] = _multiply_add(builder, factor, ms[k], sums[k % 2])
        _store(builder, sums[0] if sums[1] is None else builder.fadd(*sums), target)
        r_next = builder.add(r, one)
        r.add_incoming(zero, entry)
        r.add_incoming(r_next, loop)
        builder.cbranch(builder.icmp_signed("<", r_next, rows), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    i = types.intp
    return types.none(x, i, i, columns, VecView, i, i, i, VecView, i, i), codegen


@intrinsic(prefer_literal=True)
def rows_product(typingctx, x, x_first, x_step, columns, m, m_first, m_step, rows, out, out_first, out_step):
    """``out[out_first + k out_step] += sum_r x[x_first + k x_step + r] m[m_first + r m_step]``, k < columns, r < rows.

    As :func:`columns_product`, summed over the other index: the sums stay in registers. rows >= 1.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    n_columns = columns.literal_value

    def codegen(context, builder, sig, args):
        x, x_first, x_step, _, m, m_first, m_step, rows, out, out_first, out_step = args
        zero, one = ir.Constant(_INT64, 0), ir.Constant(_INT64, 1)
        m0, out0 = _element(builder, m, m_first), _element(builder, out, out_first)
        for start in range(0, n_columns, _REGISTERS):
            steps = [ir.Constant(_INT64, k) for k in range(start, min(start + _REGISTERS, n_columns))]
            x0 = _at(builder, x, x_first)
            xs = [_at(builder, x0, builder.mul(x_step, k)) for k in steps]
            targets = [_element(builder, out0, builder.mul(out_step, k)) for k in steps]
            initial = [_load(builder, target) for target in targets]
            entry = builder.block
            loop, done = builder.append_basic_block("rows.loop"), builder.append_basic_block("rows.done")
            builder.branch(loop)
            builder.position_at_end(loop)
            r = builder.phi(_INT64)
            sums = [builder.phi(_VEC) for _ in steps]
            r.add_incoming(zero, entry)
            row = _load(builder, _element(builder, m0, builder.mul(r, m_step)))
            new = [
                _multiply_add(builder, _splat(builder, builder.load(_at(builder, x_k, r))), row, total)
                for x_k, total in zip(xs, sums, strict=True)
            ]
            r_next = builder.add(r, one)
            r.add_incoming(r_next, loop)
            for phi, begin, value in zip(sums, initial, new, strict=True):
                phi.add_incoming(begin, entry)
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", r_next, rows), loop, done)
            builder.position_at_end(done)
            for value, target in zip(new, targets, strict=True):
                _store(builder, value, target)
        return context.get_dummy_value()

    i = types.intp
    return types.none(x, i, i, columns, VecView, i, i, i, VecView, i, i), codegen
