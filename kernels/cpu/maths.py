"""exp, log, sigmoid and tanh on SIMD vectors, and what takes no more than a comparison.

One algorithm for both precisions, from fused multiply-adds: with n = rint(x log2 e), the rest
r = x - n ln 2 lies in ±0.347, where the Taylor polynomial of expm1 is short, and 2^n is made from
its bits. (For sigmoid with AVX-512, n is in sixteenths or eighths; see `_Maths.factors`.) The forms
of sigmoid and tanh never cancel: the obvious 1 / (1 + exp(-x)) and 1 - 2 / (exp(2x) + 1) lose every
digit below -88 and near 0. Equations are fast if few instructions, and a short chain of them, come
before the division: it limits what a core has in flight.

log splits off the exponent and takes the rest from the series of atanh.

NaN passes through. No table but one that a register holds, no branch, no call.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from .. import primitives
from .simd import Vec, constant, constants, has_avx512, lower_on_vec, multiply_add


class _Format(NamedTuple):
    """What depends on the precision."""

    mantissa_bits: int
    exponent_bias: int
    ln2: tuple[float, float]  # ln 2 in two parts; x minus n times the first is exact
    degree: int  # of expm1's polynomial: the first omitted term is below eps / 12
    smallest: float  # exp rounds to 0 at and below it
    largest: float  # exp is infinite at it
    sigmoid_limit: float  # sigmoid rounds to 1 at and above it
    tanh_limit: float  # tanh likewise
    short: tuple[float, ...]  # coefficients from r^2 on where a table has made r short
    log_terms: int  # of atanh's series: the first omitted one is below eps / 8
    tiny: float  # the smallest normal number


_LN2_32 = 0.693145751953125, 1.4286068203094173e-06
_LN2_64 = 0.6931471803691238, 1.9082149292705877e-10
# Taylor's, the first of float32 moved to make up for the fourth power, which is left out.
_SHORT_32 = 0.500012, 1 / 6
_SHORT_64 = tuple(1 / math.factorial(power) for power in range(2, 9))
_FORMATS = {
    32: _Format(23, 127, _LN2_32, 7, -104.0, 89.0, 20.0, 10.0, _SHORT_32, 5, 2.0**-126),
    64: _Format(52, 1023, _LN2_64, 13, -746.0, 710.0, 40.0, 20.0, _SHORT_64, 10, 2.0**-1022),
}


class _Maths:
    """Emits vector arithmetic for one vector type."""

    def __init__(self, builder: Any, vec: Vec) -> None:
        self.builder = builder
        self.vec = vec
        self.format = _FORMATS[vec.dtype.bitwidth]
        # Adding 1.5 * 2^mantissa_bits rounds to an integer and leaves it in the low bits.
        self.rounder = constant(vec, 1.5 * 2.0**self.format.mantissa_bits)
        self.integers = ir.VectorType(ir.IntType(vec.dtype.bitwidth), vec.lanes)

    def const(self, value: float) -> Any:
        return constant(self.vec, value)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return multiply_add(self.builder, self.vec, a, b, c)

    def select(self, comparison: str, a: Any, b: Any, then: Any, other: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(comparison, a, b), then, other)

    def at_least(self, x: Any, bound: float) -> Any:
        """The larger of both; NaN where x is NaN."""
        return self.select("<", x, self.const(bound), self.const(bound), x)

    def at_most(self, x: Any, bound: float) -> Any:
        """The smaller of both; NaN where x is NaN."""
        return self.select(">", x, self.const(bound), self.const(bound), x)

    def polynomial(self, r: Any, coefficients: Sequence[float]) -> Any:
        """Value of a polynomial, lowest power first.

        By Estrin's scheme: neighbours first, then pairs of them, so that few operations wait for
        each other.
        """
        terms = [self.const(c) for c in coefficients]
        power = r
        while len(terms) > 1:
            pairs = [self.fma(b, power, a) for a, b in zip(terms[::2], terms[1::2])]
            terms = pairs + terms[2 * len(pairs) :]
            if len(terms) > 1:
                power = self.builder.fmul(power, power)
        return terms[0]

    def power_of_two(self, n: Any) -> Any:
        """2^n for whole n in the range of normal numbers."""
        builder = self.builder

        def splat(value: int) -> Any:
            return ir.Constant(self.integers, [value] * self.vec.lanes)

        bits = builder.bitcast(builder.fadd(n, self.rounder), self.integers)
        shift = splat(self.format.mantissa_bits)
        bias = splat(self.format.exponent_bias << self.format.mantissa_bits)
        return builder.bitcast(builder.add(builder.shl(bits, shift), bias), self.vec.ir)

    def call_avx512(self, name: str, *args: Any) -> Any:
        """Call one of LLVM's functions for instructions of AVX-512."""
        builder, vec = self.builder, self.vec
        kind = ir.FunctionType(vec.ir, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.avx512.{name}")
        return builder.call(function, args)

    def scale(self, value: Any, n: Any) -> Any:
        """value * 2^n for whole n, rounded once, also where that overflows or is subnormal.

        With AVX-512 n need not be whole, and is rounded down.
        """
        builder, vec = self.builder, self.vec
        if has_avx512():
            kind = "ps" if vec.dtype.bitwidth == 32 else "pd"
            mask, rounding = ir.IntType(vec.lanes)(-1), ir.IntType(32)(4)
            return self.call_avx512(f"mask.scalef.{kind}.512", value, n, value, mask, rounding)
        # Two factors, each a normal number.
        half = builder.fsub(self.fma(n, self.const(0.5), self.rounder), self.rounder)
        value = builder.fmul(value, self.power_of_two(half))
        return builder.fmul(value, self.power_of_two(builder.fsub(n, half)))

    def rest(self, n: Any, x: Any, ln2: tuple[float, ...]) -> Any:
        """r with x = n ln 2 + r; ln 2 in parts."""
        for part in ln2:
            x = self.fma(n, self.const(-part), x)
        return x

    def split(self, x: Any, ln2: tuple[float, ...]) -> tuple[Any, Any]:
        """n and expm1(r) with x = n ln 2 + r, for x where neither overflows; ln 2 in parts."""
        builder = self.builder
        n = self.fma(x, self.const(1 / math.log(2)), self.rounder)
        n = builder.fsub(n, self.rounder)
        r = self.rest(n, x, ln2)
        powers = range(2, self.format.degree + 1)
        coefficients = [1 / math.factorial(power) for power in powers]
        square = builder.fmul(r, r)
        low, high = self.polynomial(r, coefficients[:2]), self.polynomial(r, coefficients[2:])
        # r is added last: tanh doubles an error of this sum, and has no other to spare.
        return n, self.fma(square, self.fma(square, high, low), r)

    def factors(self, x: Any) -> tuple[Any, Any]:
        """s and m with exp(x) = s (1 + m), for x where neither overflows; not for exp(x) - 1.

        With AVX-512 the roots of 2 that a vector holds are looked up in one instruction, by the
        last bits of x log2 e rounded to as many steps. What is left of x is so short that half the
        polynomial does: sigmoid takes 3.2 ns a vector instead of 4.1, on an EPYC (Zen 4). The
        roots' own rounding is why this does not do for small differences to 1.
        """
        builder, vec = self.builder, self.vec
        if not has_avx512():
            n, m = self.split(x, self.format.ln2)
            return self.scale(self.const(1.0), n), m
        steps = vec.lanes
        roots = constants(vec, [2.0 ** (i / steps) for i in range(steps)])
        rounder = self.const(1.5 * 2.0**self.format.mantissa_bits / steps)
        rounded = self.fma(x, self.const(1 / math.log(2)), rounder)
        n = builder.fsub(rounded, rounder)
        r = self.rest(n, x, self.format.ln2)
        kind = "sf" if vec.dtype.bitwidth == 32 else "df"
        which = builder.bitcast(rounded, self.integers)
        root = self.call_avx512(f"permvar.{kind}.512", roots, which)
        high = self.polynomial(r, self.format.short)
        return self.scale(root, n), self.fma(builder.fmul(r, r), high, r)

    def log(self, x: Any) -> Any:
        """log, of any number.

        With x = 2^n m, m between the roots of 1/2 and 2, f = m - 1 and s = f / (2 + f):
        log m = 2 atanh s = f - (f²/2 - s (f²/2 + R)), where R is what atanh's series has beyond its
        first term: small numbers are added to large ones last.
        """
        builder, form = self.builder, self.format
        # Subnormal numbers are multiplied first.
        bits = form.mantissa_bits + 2
        is_small = builder.fcmp_ordered("<", x, self.const(form.tiny))
        scaled = builder.select(is_small, builder.fmul(x, self.const(2.0**bits)), x)
        extra = builder.select(is_small, self.const(-float(bits)), self.const(0.0))

        def splat(value: int) -> Any:
            return ir.Constant(self.integers, [value] * self.vec.lanes)

        # Adding what is left of 1 above the root of 1/2 makes the exponent count from that root.
        root = int(np.array(0.5**0.5, self.vec.dtype.name).view(f"i{self.vec.dtype.bitwidth // 8}"))
        one = form.exponent_bias << form.mantissa_bits
        word = builder.add(builder.bitcast(scaled, self.integers), splat(one - root))
        exponent = builder.sub(
            builder.lshr(word, splat(form.mantissa_bits)), splat(form.exponent_bias)
        )
        mantissa = builder.and_(word, splat((1 << form.mantissa_bits) - 1))
        m = builder.bitcast(builder.add(mantissa, splat(root)), self.vec.ir)
        n = builder.fadd(builder.sitofp(exponent, self.vec.ir), extra)
        f = builder.fsub(m, self.const(1.0))
        s = builder.fdiv(f, builder.fadd(f, self.const(2.0)))
        z = builder.fmul(s, s)
        series = [2.0 / (2 * power + 1) for power in range(1, form.log_terms)]
        rest = builder.fmul(z, self.polynomial(z, series))
        half = builder.fmul(builder.fmul(f, f), self.const(0.5))
        high, low = form.ln2
        correction = self.fma(s, builder.fadd(half, rest), builder.fmul(n, self.const(low)))
        inner = builder.fsub(builder.fsub(half, correction), f)
        value = builder.fsub(builder.fmul(n, self.const(high)), inner)
        # Infinity and NaN stay, 0 becomes -infinity, negative numbers NaN.
        is_number = builder.fcmp_ordered("<", x, self.const(math.inf))
        value = builder.select(is_number, value, x)
        value = self.select("==", x, self.const(0.0), self.const(-math.inf), value)
        return self.select("<", x, self.const(0.0), self.const(math.nan), value)

    def exp(self, x: Any) -> Any:
        """exp for x up to `largest`."""
        n, m = self.split(self.at_least(x, self.format.smallest), self.format.ln2)
        return self.scale(self.builder.fadd(m, self.const(1.0)), n)


@lower_on_vec(primitives.exp, 1)
def _exp(builder: Any, vec: Vec, x: Any) -> Any:
    maths = _Maths(builder, vec)
    return maths.exp(maths.at_most(x, maths.format.largest))


@lower_on_vec(primitives.sigmoid, 1)
def _sigmoid(builder: Any, vec: Vec, x: Any) -> Any:
    """e / (1 + e) with e = exp(x), which does not overflow: x is bounded where that is 1."""
    maths = _Maths(builder, vec)
    form, one = maths.format, maths.const(1.0)
    x = maths.at_least(maths.at_most(x, form.sigmoid_limit), form.smallest)
    scale, m = maths.factors(x)
    denominator = maths.fma(scale, m, builder.fadd(scale, one))
    return builder.fdiv(maths.fma(scale, m, scale), denominator)


@lower_on_vec(primitives.tanh, 1)
def _tanh(builder: Any, vec: Vec, x: Any) -> Any:
    """m / (m + 2) with m = expm1(2x), and x bounded where that is -1 or 1.

    ln 2 in one part is enough: n is 0 near 0, and where n is large r hardly matters. Of -0 it is 0.
    """
    maths = _Maths(builder, vec)
    limit, one = maths.format.tanh_limit, maths.const(1.0)
    x = maths.at_least(maths.at_most(x, limit), -limit)
    n, m = maths.split(builder.fadd(x, x), (math.log(2),))
    scale = maths.scale(one, n)
    numerator = maths.fma(scale, m, builder.fsub(scale, one))
    return builder.fdiv(numerator, builder.fadd(numerator, maths.const(2.0)))


@lower_on_vec(primitives.log, 1)
def _log(builder: Any, vec: Vec, x: Any) -> Any:
    return _Maths(builder, vec).log(x)


@lower_on_vec(primitives.relu, 1)
def _relu(builder: Any, vec: Vec, x: Any) -> Any:
    maths = _Maths(builder, vec)
    zero = maths.const(0.0)
    return maths.select("<=", x, zero, zero, x)


@lower_on_vec(primitives.is_positive, 1)
def _is_positive(builder: Any, vec: Vec, x: Any) -> Any:
    maths = _Maths(builder, vec)
    zero = maths.const(0.0)
    return maths.select(">", x, zero, maths.const(1.0), zero)
