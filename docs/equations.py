"""What the page of cells says of each cell beside its table: words, equations in TeX, other names.

sigma is the logistic function, a dot in a circle the product unit by unit, x the input, h the
state and output, c the cell state.
"""

from typing import NamedTuple


class About(NamedTuple):
    """What to say of a cell."""

    words: str
    tex: str
    names: dict[str, str] = {}  # noqa: RUF012  what other libraries call it
    notes: str = ""


H = "h_{t-1}"


def total(gate: str, *, x: bool = True, u: str = H, bias: str = "b") -> str:
    """W x + U h + b of a gate; ``bias="ih"`` for one of each product."""
    terms = [f"W_{gate} x_t"] if x else []
    if bias == "ih" and x:
        terms.append(f"b_{{i{gate}}}")
    if u:
        terms.append(f"U_{gate} {u}")
    if bias == "ih":
        terms.append(f"b_{{h{gate}}}")
    if bias == "b":
        terms.append(f"b_{gate}")
    return " + ".join(terms)


def lines(*equations: str) -> str:
    """Equations below each other."""
    return " \\\\\n".join(equations)


def gate(name: str, function: str = r"\sigma", **options: object) -> str:
    """A gate that is a function of its total."""
    return rf"{name}_t &= {function}({total(name, **options)})"  # type: ignore[arg-type]


MIX_Z = rf"h_t &= (1 - z_t) \odot n_t + z_t \odot {H}"  # z keeps
NEW_Z = rf"h_t &= (1 - z_t) \odot {H} + z_t \odot n_t"  # z updates
MIX_F = rf"h_t &= (1 - f_t) \odot {H} + f_t \odot n_t"
RESET = rf"(r_t \odot {H})"
FORGET = rf"(f_t \odot {H})"
CANDIDATE = gate("n", r"\tanh", u=RESET)
FORGETTING = gate("n", r"\tanh", u=FORGET)
OUT = r"h_t &= o_t \odot \tanh(c_t)"
G = r"g(a) = a + \tfrac{1}{2} \text{ where } a \ge 0, \text{ else } \sigma(a)"

ABOUT: dict[str, About] = {
    "gru": About(
        "The GRU that most libraries have: the reset gate acts after the recurrent product.",
        lines(
            gate("r", bias="ih"),
            gate("z", bias="ih"),
            rf"n_t &= \tanh(W_n x_t + b_{{in}} + r_t \odot (U_n {H} + b_{{hn}}))",
            MIX_Z,
        ),
        {
            "PyTorch": "`nn.GRU`",
            "Keras": "`GRU(reset_after=True)`, the default",
            "ONNX": "`GRU`, `linear_before_reset=1`",
            "cuDNN": "`CUDNN_GRU`",
        },
    ),
    "gru_reset_before": About(
        "The GRU as first published: the reset gate acts before the recurrent product. "
        "A step takes two products, one after the other.",
        lines(
            gate("r", bias="ih"),
            gate("z", bias="ih"),
            gate("n", r"\tanh", u=RESET, bias="ih"),
            MIX_Z,
        ),
        {
            "Keras": "`GRU(reset_after=False)`, which has one bias: the other one is 0",
            "ONNX": "`GRU`, `linear_before_reset=0`, the default",
        },
    ),
    "lstm": About(
        "The LSTM with a forget gate and without peepholes.",
        lines(
            gate("i", bias="ih"),
            gate("f", bias="ih"),
            gate("g", r"\tanh", bias="ih"),
            gate("o", bias="ih"),
            r"c_t &= f_t \odot c_{t-1} + i_t \odot g_t",
            OUT,
        ),
        {
            "PyTorch": "`nn.LSTM`",
            "Keras": "`LSTM`",
            "ONNX": "`LSTM` without `P`",
            "cuDNN": "`CUDNN_LSTM`",
        },
    ),
    "gru1": About(
        "A GRU whose gates see the state and a bias, not the input.",
        lines(gate("r", x=False), gate("z", x=False), CANDIDATE, MIX_Z),
    ),
    "gru2": About(
        "A GRU whose gates see the state alone.",
        lines(gate("r", x=False, bias=""), gate("z", x=False, bias=""), CANDIDATE, MIX_Z),
    ),
    "gru3": About(
        "A GRU whose gates are learnt constants.",
        lines(gate("r", x=False, u=""), gate("z", x=False, u=""), CANDIDATE, MIX_Z),
        notes="It has no form without bias.",
    ),
    "mgu": About(
        "The minimal gated unit: one gate forgets and resets.",
        lines(gate("f"), FORGETTING, MIX_F),
    ),
    "mgu1": About(
        "A minimal gated unit whose gate sees the state and a bias.",
        lines(gate("f", x=False), FORGETTING, MIX_F),
    ),
    "mgu2": About(
        "A minimal gated unit whose gate sees the state alone.",
        lines(gate("f", x=False, bias=""), FORGETTING, MIX_F),
    ),
    "mgu3": About(
        "A minimal gated unit whose gate is a learnt constant.",
        lines(gate("f", x=False, u=""), FORGETTING, MIX_F),
        notes="It has no form without bias.",
    ),
    "ligru": About(
        "The light GRU, from speech recognition: no reset gate, ReLU, and batch norm of the "
        "input's part.",
        lines(
            rf"z_t &= \sigma(\mathrm{{BN}}(W_z x_t) + U_z {H})",
            rf"n_t &= \mathrm{{ReLU}}(\mathrm{{BN}}(W_n x_t) + U_n {H})",
            MIX_Z,
        ),
        notes="Its state can grow without bound; `forward` warns where it has, and `sligru` is "
        "the cell to take then.",
    ),
    "sligru": About(
        "The light GRU made stable: the recurrent part is normalised over a row, gates and units "
        "together.",
        lines(
            rf"(u_z, u_n) &= \mathrm{{LN}}(U_z {H}, U_n {H})",
            r"z_t &= \sigma(\mathrm{BN}(W_z x_t) + u_z)",
            r"n_t &= \mathrm{ReLU}(\mathrm{BN}(W_n x_t) + u_n)",
            MIX_Z,
        ),
    ),
    "libru": About(
        "The Bayesian light GRU: states are probabilities, and the product takes their logarithms.",
        lines(
            rf"z_t &= \sigma(\mathrm{{BN}}(W_z x_t) + U_z \log({H} + 10^{{-11}}))",
            rf"c_t &= \sigma(\mathrm{{BN}}(W_c x_t) + U_c \log({H} + 10^{{-11}}))",
            rf"h_t &= (1 - z_t) \odot c_t + z_t \odot {H}",
        ),
        notes="Here $c$ is a candidate, not a second state. An initial state must lie between 0 "
        "and 1.",
    ),
    "mingru": About(
        "Gates from the input alone: no recurrent product, so a step costs next to nothing.",
        lines(gate("z", u=""), gate("n", "g", u=""), NEW_Z, G),
    ),
    "minlstm": About(
        "Its counterpart with a forget and an input gate, normalised to a sum of 1.",
        lines(
            gate("f", u=""),
            gate("i", u=""),
            gate("n", "g", u=""),
            rf"h_t &= \frac{{f_t}}{{f_t + i_t}} \odot {H} + \frac{{i_t}}{{f_t + i_t}} \odot n_t",
            G,
        ),
        notes="There is no cell state beside $h$.",
    ),
    "augru": About(
        "A GRU, reset before the product, that takes a number $a_t$ for each sample and step, the "
        "argument `attention`: where it is 1, the candidate replaces the state.",
        lines(
            gate("r"),
            gate("z"),
            CANDIDATE,
            r"\tilde z_t &= (1 - a_t) \, z_t",
            rf"h_t &= (1 - \tilde z_t) \odot n_t + \tilde z_t \odot {H}",
        ),
        {"oneDNN": "`vanilla_augru`", "OpenVINO": "`AUGRUSequence`"},
    ),
    "paragru": About(
        "A GRU with one recurrent weight a unit and gate, in place of matrices.",
        lines(
            rf"r_t &= \sigma(W_r x_t + u_r \odot {H} + b_r)",
            rf"z_t &= \sigma(W_z x_t + u_z \odot {H} + b_z)",
            rf"n_t &= \tanh(W_n x_t + u_n \odot (r_t \odot {H}) + b_n)",
            NEW_Z,
        ),
    ),
    "indrnn": About(
        "A plain network whose units see their own state only.",
        lines(rf"n_t &= \mathrm{{ReLU}}(W_n x_t + u_n \odot {H} + b_n)", r"h_t &= n_t"),
    ),
    "rnn_tanh": About(
        "The plain recurrent network.",
        lines(gate("n", r"\tanh", bias="ih"), r"h_t &= n_t"),
        {
            "PyTorch": '`nn.RNN(nonlinearity="tanh")`',
            "Keras": "`SimpleRNN`, which has one bias: the other one is 0",
            "ONNX": "`RNN`, the default activation",
            "cuDNN": "`CUDNN_RNN_TANH`",
        },
    ),
    "rnn_relu": About(
        "The same with ReLU.",
        lines(gate("n", r"\mathrm{ReLU}", bias="ih"), r"h_t &= n_t"),
        {
            "PyTorch": '`nn.RNN(nonlinearity="relu")`',
            "Keras": '`SimpleRNN(activation="relu")`',
            "ONNX": '`RNN`, `activations=["Relu"]`',
            "cuDNN": "`CUDNN_RNN_RELU`",
        },
    ),
    "lstm_peephole": About(
        "An LSTM whose gates see the cell state: $i$ and $f$ the old one, $o$ the new one.",
        lines(
            rf"i_t &= \sigma({total('i', bias='ih')} + p_i \odot c_{{t-1}})",
            rf"f_t &= \sigma({total('f', bias='ih')} + p_f \odot c_{{t-1}})",
            gate("g", r"\tanh", bias="ih"),
            r"c_t &= f_t \odot c_{t-1} + i_t \odot g_t",
            rf"o_t &= \sigma({total('o', bias='ih')} + p_o \odot c_t)",
            OUT,
        ),
        {"ONNX": "`LSTM` with `P`, whose order is i, o, f"},
    ),
    "cifg": About(
        "An LSTM whose input gate is what the forget gate leaves.",
        lines(
            gate("f", bias="ih"),
            gate("g", r"\tanh", bias="ih"),
            gate("o", bias="ih"),
            r"c_t &= f_t \odot c_{t-1} + (1 - f_t) \odot g_t",
            OUT,
        ),
        {"ONNX": "`LSTM`, `input_forget=1`: there the input gate is learnt, so negate its weights"},
    ),
    "ugrnn": About(
        "The update gate network: a plain one with a gate that keeps the state.",
        lines(gate("z"), gate("n", r"\tanh"), MIX_Z),
    ),
}
