"""Weights in the order in which the tile reads them; pads are 0."""


def pack_panels(
    weight,  # (gates * H, K), any strides
    gate_rows,  # (blocks,) which gate each block belongs to
    H,
    lanes,
    start,
    packed_out,  # flat; (panels, K, blocks, lanes) is written from `start`
):
    """For products that sum over the columns of a weight: a panel is a vector of units."""
    K, blocks = weight.shape[1], len(gate_rows)
    at = start
    for unit in range(0, H, lanes):
        for k in range(K):
            for block in range(blocks):
                row = gate_rows[block] * H + unit
                filled = min(lanes, H - unit)
                for lane in range(filled):
                    packed_out[at + lane] = weight[row + lane, k]
                for lane in range(filled, lanes):
                    packed_out[at + lane] = 0
                at += lanes


def pack_transposed(
    weight,  # (gates * H, K), any strides
    gate_rows,  # (blocks,) which gate each block belongs to
    H,
    lanes,
    start,
    packed_out,  # flat; (panels, blocks, H, lanes) is written from `start`
):
    """For products that sum over the rows of a weight: a panel is a vector of columns."""
    K, blocks = weight.shape[1], len(gate_rows)
    at = start
    for column in range(0, K, lanes):
        filled = min(lanes, K - column)
        for block in range(blocks):
            for k in range(H):
                row = gate_rows[block] * H + k
                for lane in range(filled):
                    packed_out[at + lane] = weight[row, column + lane]
                for lane in range(filled, lanes):
                    packed_out[at + lane] = 0
                at += lanes


def pack_bias(
    bias,  # (gates * H,), any strides, or empty
    gate_rows,  # (pre-activations,) which gate each adds, -1 for none
    H,
    unit,  # H in whole vectors
    packed_out,  # flat; (pre-activations, unit) is added to from index 0
):
    """Add a bias to each pre-activation that it belongs to."""
    if len(bias) == 0:
        return
    for block in range(len(gate_rows)):
        if gate_rows[block] >= 0:
            for j in range(H):
                packed_out[block * unit + j] += bias[gate_rows[block] * H + j]
