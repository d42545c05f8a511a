"""Every number that depends on the machine: its unit, its meaning, and what was measured.

EPYC is a Zen 4 with 32 KiB of first-level and 1 MiB of second-level cache a core, Xeon an Ice Lake
with 48 KiB and 2 MiB; both have AVX-512, and were measured with two cores. No result depends on
these numbers but where one says so.
"""

import math

# --- caches ---------------------------------------------------------------------------------------

# Bytes of a cache line.
CACHE_LINE = 64
# Bytes that stay in a core's second-level cache: an EPYC's has as many, a Xeon's two times.
NEAR_CACHE = 1024 * 1024
# Bytes that stay in its first-level cache beside what a step computes: 3/4 of an EPYC's 32 KiB.
FIRST_CACHE = 24 * 1024
# Neighbouring rows of a batch lie far apart, where the hardware does not look ahead. Prefetching
# the row that comes so many rows later took 20 % off backward at (T, N, H) = (24, 1024, 64); in
# forward it cost 10 %, for x as for y.
ROWS_AHEAD = 8

# Rows that get a copy of one vector before they get the next one: more would leave the first-level
# cache in between, fewer spend the time on counting.
ROWS_OF_COPY = 8

# --- products -------------------------------------------------------------------------------------

# Products that one accumulator sums; then it is added to the sums in memory. Results depend on it.
# Long sums round less so, by a random walk's estimate 4 times for 10 000 inputs and 20 for a
# million (measured: 1 to 4, and 6 to 50). With 256, layers of 512 and 1024 units take 1 to 2 % more
# time than with 512. A power of two.
CHUNK = 512
# Tiles that prefetch their sums before they start: vectors of them, and rounds of the first chunk.
MANY_SUMS, LONG_BLOCK = 16, 64
# Sums that keep a core busy: a multiply-add takes four cycles, and two start in each.
ENOUGH_SUMS = 8
# The most rows of a tile.
TALLEST_TILE = 8
# Vectors of units whose weights a product reads before the next ones', and its logarithm: strips
# are found by shifts, as divisions took 2 % of a small step.
STRIP_BITS = 2
STRIP = 1 << STRIP_BITS
# Bytes of sums with which one vector keeps a core busy while weights come from the second-level
# cache: a multiply-add takes four cycles, in each of which 32 bytes come, on an EPYC.
ENOUGH_SUM_BYTES = 4 * 32

# --- time blocks ----------------------------------------------------------------------------------

# Bytes of inputs and pre-activations of a time block, which are written and read again.
TIME_BLOCK_BYTES = 256 * 1024
# Each time block reads all input weights. Where they are this many times as large, time blocks grow
# with them: with two threads, forward for 64 rows of 1024 units gains 4 % (LSTM) and 1 % (GRU).
INPUT_WEIGHTS_PER_BLOCK = 8
# Bytes of gradients of the pre-activations of a time block, which are read three times: they should
# come from the cache, but each time block reads and writes the sums of all weight gradients, which
# for large weights is a lot: so there is a least number of rows too. With two threads of an EPYC,
# 512 units take 2 to 5 % less time in backward with 1024 rows than with 512; with one, the same.
GRADIENT_BLOCK_BYTES = 2 * 1024 * 1024
GRADIENT_BLOCK_ROWS = 1024
# And, of many rows, a few steps: each time block loads and stores what backward knows of every row,
# and cannot prefetch the values of the step before its first one. Weight gradients depend on these
# numbers, as their sums begin anew in each time block.
GRADIENT_BLOCK_STEPS, LARGEST_GRADIENT_BLOCK_BYTES = 3, 4 * 1024 * 1024

# --- gradients of weights -------------------------------------------------------------------------

# The most vectors of units whose sums a weight-gradient tile holds.
MOST_GRADIENT_VECTORS = 4
# Packed rows whose products one accumulator sums: the gradients of a strip, 128 by 48 or 64 floats,
# are read for each tile from L1 or nearby. An input gradient takes as many at once. Results depend
# on it.
BLOCK_ROWS = 128
# Packed rows that are added to a strip's sums before the next strip's: the sums of all strips are
# too many for a cache. Four times BLOCK_ROWS instead of two make weight gradients of 512 units 3 %
# faster.
ROWS_AT_ONCE = 4 * BLOCK_ROWS
# Sums of more packed rows than this are added to totals, and begin at zero again, each time that so
# many have been added. In one sum, 70 million equal rows were off by 0.3 %. Results depend on it.
ROWS_OF_A_SUM = 128 * ROWS_AT_ONCE
# Most columns of x or of the operand that all strips take before the next columns: with these rows,
# 1 MB of float32, which each strip reads again. All 1024 at once took 15 % more time. They lie in
# panels of their own: as parts of rows of 1024 they took 6 % more.
COLUMNS_AT_ONCE = 512
# Columns from which on it pays to prefetch the rows of d that come next: backward takes 1 to 4 %
# less time for 512 and 1024 units, but took 1 to 2 % more for 64.
COLUMNS_WORTH_PREFETCHING = 128

# --- threads --------------------------------------------------------------------------------------

# A parallel region costs 1 to 3 µs on a warm pool; work of fewer multiply-adds than this (15 to 25
# µs) is left to the calling thread.
SMALLEST_PARALLEL_WORK = 1_000_000
# Laying out an element of the weights takes as long as so many multiply-adds.
WORK_PER_PACKED_ELEMENT = 8
# Reading the weights of a step takes as long as multiplying them with so many rows. Each thread's
# share stays in its own cache: a step of an LSTM of 256 units, 2 MB, takes 25 to 40 µs with two
# threads and 57 to 75 with one.
ROWS_WORTH_READING = 3
# A pool that has gone to sleep costs far more: on a Xeon with two cores 100 µs or, once in ten
# times, a time slice of 7 ms. A call that would take less than `SHORT_CALL` on one thread, and does
# not come within `SOON_AFTER` after another one, is made on one: that of a stream, say. In seconds.
SHORT_CALL, SOON_AFTER = 2e-3, 1e-3
# Sharing the units of a step costs a wait for the others and their lines of h, 0.1 to 0.3 µs for
# each product. It pays where each thread's part of a step is as much work as one row with so many
# bytes of weights, counting those that use h or all: with two threads, where the weights that use h
# just leave the first-level cache of one core, or those of x take long to read.
SMALLEST_SHARE_OF_RECURRENT, SMALLEST_SHARE = 25e3, 100e3
# Rows of its own that each thread must have, by the most bytes of weights that use h; with fewer,
# the threads share units instead. One or two rows take about as long as three, bound by reading the
# weights, and the longer a step is, the less the waiting matters: hence the first three lines.
# Weights beyond a second-level cache would be read by each thread for its own rows: the last two.
# Measured with two threads of a Xeon, GRU and LSTM, 2 to 32 rows of 16 to 1024 units: near a limit
# the two schedules differ by up to 5 %, far from one by up to 60 %. On an EPYC, three rows would do
# whatever the size, which gains 3 to 6 % there.
OWN_ROWS = ((100e3, 1), (250e3, 2), (1.2e6, 3), (3e6, 8), (math.inf, 16))
# Not more than this many where there are several row blocks, one after another, which would
# read the weights as often as threads of their own do, or where threads' shares, which are whole
# vectors of units, would be fewer vectors than this.
MOST_OWN_ROWS, FEWEST_SHARED_VECTORS = 8, 4
# Rows come by length, longest first. Where they are not about equal, which so many running rows of
# all tell, each thread's share of them is cut in two, one half of longer and one of shorter rows,
# if about so many are in each.
ABOUT_EQUAL, FEWEST_ROWS_OF_HALF_A_SHARE = 0.9, 4
# Most rows that run through a sequence together: few enough that what a step makes of them stays
# in L1. With 64 rows, 64 or 128 units take 5 to 12 % more time on a Xeon; with 24, 64 units take 2
# to 6 % more on an EPYC.
RUN_TOGETHER = 16
# Where a step has more bytes of weights than a near cache, more rows share each reading of them;
# likewise where each thread makes only some of a step's units.
MORE_RUN_TOGETHER = 64
# Where other threads keep the cores busy (another program, or a pool that spins while it has
# nothing to do, as OpenBLAS's does for 20 to 120 ms after each product), the threads of a region
# wait for their share of a core, 4 to 8 ms, and one thread would have been done long before. After
# two slow parallel calls in a row, calls use one thread for so many times the duration of the
# second: few at first, as a system may need some calls to give a woken thread a core of its own,
# twice as many after each further slow call, and half as many after one that was not. With at most
# 32 instead of 8, calls that take turns with products take 5 to 8 % less time in the mean.
SHORTEST_PAUSE, LONGEST_PAUSE = 2, 32
# But for at most so many seconds, or `SHORTEST_PAUSE` calls if that is longer, for all kinds of
# calls pause together.
LONGEST_PAUSE_TIME = 1.0
# Which of the calls of one kind is made on one thread, to know how long that takes.
TRIAL_CALL = 2
# How much slower than one thread makes a call of several a slow one.
SLOW = 1.1
# How often the first thread of a team looks for the others: 50 to 200 µs, in which a sleeping
# thread wakes.
PATIENCE = 5000
# How often a waiting thread looks before it lets another thread have its core.
YIELD_AFTER = 2000

# --- memory ---------------------------------------------------------------------------------------

# Elements below which finding the next cache line takes longer than not starting on one.
SMALL_BUFFER = 4096
# Scratch memory is kept for the next call: new memory comes in pages that the system clears one by
# one, which takes longer than many a kernel. Buffers have 2^bits elements.
SMALLEST_KEPT_BITS, LARGEST_KEPT_BITS = 14, 24
KEPT_OF_EACH = 3
# Of sizes above 2^21 elements two are kept: what backward needs at once of large weights. New ones
# took a tenth of training at (25, 64, 1024, 1024) with an LSTM, whose 33 MB no heap keeps either.
# All that can be kept are 70 million elements, 285 MB of float32, after calls that needed as many.
MANY_KEPT_BITS, KEPT_OF_LARGE = 21, 2
