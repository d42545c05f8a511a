"""Numbers that depend on the GPU: limits of the hardware, and what is tuned.

Nothing here has been measured on a GPU. Limits are those that NVIDIA documents. Tuned numbers are
estimates, or follow from registers and spills in the machine code, which is looked at without a
GPU: each says which. They are read as attributes of this module, when kernels are made or a loop is
chosen.
"""

# --- limits of the hardware -----------------------------------------------------------------------

# Blocks of a grid along y. Along x there may be 2^31 - 1.
MOST_BLOCKS_ALONG_Y = 65_535
# Threads of a block.
MOST_THREADS = 1024
# Registers of 32 bits: of a thread, and of a multiprocessor.
MOST_REGISTERS_OF_THREAD = 255
REGISTERS_OF_MULTIPROCESSOR = 65_536
# Bytes of shared memory of a block: by default, and at most (sm_90).
STATIC_SHARED_BYTES = 48 * 1024
MOST_SHARED_BYTES = 227 * 1024
# Blocks of a cluster: on any GPU that has clusters, and on some (sm_90).
PORTABLE_CLUSTER_BLOCKS = 8
MOST_CLUSTER_BLOCKS = 16

# --- the default loop, `loops.steps`, and what surrounds every loop -------------------------------

# Threads of a block of the kernels of equations, over units and over rows. Estimated: a warp's
# threads have neighbouring units.
UNIT_THREADS = (32, 4)
# Threads of a block of the kernels that copy rows, over features. Estimated.
ROW_THREADS = (64, 1)
# Threads of a block that sums over the units of a row: a power of two. Estimated.
SUM_THREADS = 128
# Bytes of workspace for a time block. Estimated: larger ones should make no product faster.
WORKSPACE_BYTES = 256 * 2**20
# Streams whose copies of the ragged order, or ones, are kept. Estimated.
MOST_STREAMS = 16
# Elements of the vector of ones that a thread keeps for a stream. Estimated.
MOST_ONES = 2**14

# --- `loops.register_product`: weights in registers -----------------------------------------------

# Elements of a thread's part of a vector. From the machine code: loops over a thread's weights are
# unrolled up to somewhere above, and where they are not, weights are not in registers.
LONGEST_PART = 32
# Registers of a thread for addresses, strides and values. From the machine code: with 80, the LSTM
# spills at H = 80 on sm_80.
OTHER_REGISTERS = 96

# --- `loops.exchange` -----------------------------------------------------------------------------

# Threads of a block. So many, of MOST_REGISTERS_OF_THREAD each, fit a multiprocessor, and so does
# the shared memory of a block: as many blocks as there are multiprocessors can run together.
EXCHANGE_THREADS = 256
# Tagged words that a thread starts to load before it waits for one. Estimated.
EXCHANGE_PREFETCH = 4
# Compute capability, times ten, from which on threads of a warp may wait for each other.
EXCHANGE_CAPABILITY = 70

# --- `loops.cluster` ------------------------------------------------------------------------------

# Units of a block: its threads, eight a unit, may then have MOST_REGISTERS_OF_THREAD each.
CLUSTER_UNITS = 32
# Words of weights in a thread's registers. From the machine code: with 128, the LSTM spills at
# H = 512.
CLUSTER_WEIGHT_REGISTERS = 104
# Compute capability, times ten, from which on there are clusters.
CLUSTER_CAPABILITY = 90

# --- `loops.graph`: all estimated -----------------------------------------------------------------

# Time steps of a pass. Fewer are launched in less time than copying takes; for more, a graph's
# memory and the time to capture it are no longer small.
GRAPH_FEWEST_STEPS, GRAPH_MOST_STEPS = 8, 2048
# Bytes of the arrays of one graph, and of all graphs of a thread.
GRAPH_BYTES, GRAPH_BYTES_OF_THREAD = 2**26, 2**28
# Kinds of passes, of the latest ones, that count as recent.
GRAPH_RECENT = 16
# Streams for which a thread keeps a cuBLAS handle and its workspace.
GRAPH_STREAMS = 8
# Bytes of cuBLAS's workspace: what its documentation recommends for sm_90.
CUBLAS_WORKSPACE_BYTES = 2**25
