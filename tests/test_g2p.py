"""The published weights of g2p-en, which spells English words in phonemes by two GRUs.

The package runs them by a loop in NumPy. Here that loop is written again, from its equations, and
fastgru has to give the same phonemes.
"""

import io as streams
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import published

import fastgru
from fastgru import io
from fastgru.io.read import read

CHECKPOINT = "g2p_en/checkpoint20.npz"
LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
BEGIN, END, LONGEST = 2, 3, 20  # of the phonemes of a word

Array = np.ndarray[Any, Any]


def words(count: int) -> list[str]:
    """Names and new words, of 1 to 17 letters, some with letters that the model does not know."""
    known = [
        *("activationist", "numba", "fastgru", "recurrent", "unit", "gated", "o'brien", "naïve"),
        *("zyzzyva", "a", "ng", "strengths", "phonology", "llanfair", "queueing", "rhythm"),
        *("tchaikovsky", "schwarzenegger", "wroclaw", "xylophone"),
    ]
    rng = np.random.default_rng(0)
    onsets, vowels, codas = (
        text.split(",")
        for text in ("b,br,ch,d,f,fl,g,h,j,k,kn,l,m,n,p,ph,qu,r,s,sch,st,str,t,th,v,w,wh,y,z,",
                     "a,ai,e,ea,ee,i,ie,o,oa,oo,ou,u,y", ",,,ck,d,ft,l,m,n,nd,ng,r,rt,s,ss,t,x")
    )  # fmt: skip
    made = dict.fromkeys(known)
    while len(made) < count:
        parts = rng.integers(1, 4)
        made["".join(str(rng.choice(p)) for _ in range(parts) for p in (onsets, vowels, codas))] = (
            None
        )
    return [*made]


def letters_of(word: str) -> list[int]:
    return [LETTERS.index(c) if c in LETTERS else 1 for c in [*word, "</s>"]]


@pytest.fixture(scope="module")
def model() -> dict[str, Array]:
    with np.load(streams.BytesIO(published("g2p-en", CHECKPOINT)), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def converted(model: dict[str, Array], part: str) -> fastgru.Params:
    """The GRU of the encoder or decoder: gates r, z, n, as PyTorch stacks them."""
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    arrays = {name: model[f"{part}_{theirs}"] for name, theirs in names.items()}
    return io.from_arrays(cell="gru", gate_order="rzn", **arrays)


# --- the package's loop, from its equations -------------------------------------------------------


def gru_step(model: dict[str, Array], part: str, x: Array, h: Array) -> Array:
    x_rz, x_n = np.split(model[f"{part}_w_ih"] @ x + model[f"{part}_b_ih"], [2 * len(h)])
    u_rz, u_n = np.split(model[f"{part}_w_hh"] @ h + model[f"{part}_b_hh"], [2 * len(h)])
    r, z = np.split(1 / (1 + np.exp(-(x_rz + u_rz))), 2)
    made: Array = (1 - z) * np.tanh(x_n + r * u_n) + z * h
    return made


def loop(model: dict[str, Array], word: str) -> tuple[list[int], float]:
    """Phonemes, and by how much the best score led at the closest choice."""
    h = np.zeros(256, np.float32)
    for letter in letters_of(word):
        h = gru_step(model, "enc", model["enc_emb"][letter], h)
    phonemes: list[int] = []
    last, lead = BEGIN, np.inf
    for _ in range(LONGEST):
        h = gru_step(model, "dec", model["dec_emb"][last], h)
        scores = model["fc_w"] @ h + model["fc_b"]
        second, best = np.partition(scores, -2)[-2:]
        lead = min(lead, float(best - second))
        last = int(scores.argmax())
        if last == END:
            break
        phonemes.append(last)
    return phonemes, lead


@pytest.fixture(scope="module")
def expected(model: dict[str, Array]) -> dict[str, list[int]]:
    """Phonemes of words, none of which rounding can decide."""
    found = {word: loop(model, word) for word in words(200)}
    # In float32 scores differ from those in float64 by up to 2e-5, of this loop and of fastgru.
    assert min(lead for _, lead in found.values()) > 1e-4
    return {word: phonemes for word, (phonemes, _) in found.items()}


# --- the same by fastgru --------------------------------------------------------------------------


def test_a_batch_of_words(model: dict[str, Array], expected: dict[str, list[int]]) -> None:
    """All words at once: the encoder reads them by their lengths, the decoder steps together."""
    letters = [letters_of(word) for word in expected]
    lengths = np.array([len(of) for of in letters])
    padded = np.zeros((len(letters), lengths.max()), int)
    for row, of in zip(padded, letters, strict=True):
        row[: len(of)] = of
    _, h_n = fastgru.forward(model["enc_emb"][padded], converted(model, "enc"), lengths=lengths)

    decoder = fastgru.pack(converted(model, "dec"))
    last, state = np.full(len(letters), BEGIN), h_n
    phonemes: list[list[int]] = [[] for _ in letters]
    running = np.full(len(letters), True)
    for _ in range(LONGEST):
        y, state = fastgru.step(model["dec_emb"][last], decoder, state)
        last = (y @ model["fc_w"].T + model["fc_b"]).argmax(axis=1)
        running &= last != END
        for row in np.flatnonzero(running):
            phonemes[row].append(int(last[row]))
    assert phonemes == [*expected.values()]


def test_word_by_word_in_streams(model: dict[str, Array], expected: dict[str, list[int]]) -> None:
    encoder, decoder = (fastgru.Stream(converted(model, part)) for part in ("enc", "dec"))
    for word, phonemes in expected.items():
        encoder.reset()
        encoder.push(model["enc_emb"][letters_of(word)])
        decoder.state = encoder.state
        made: list[int] = []
        last = BEGIN
        while len(made) < LONGEST:
            h = decoder.push(model["dec_emb"][last])
            last = int((model["fc_w"] @ h + model["fc_b"]).argmax())
            if last == END:
                break
            made.append(last)
        assert made == phonemes, word


def test_the_file_itself_is_refused_with_the_way(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint20.npz"
    path.write_bytes(published("g2p-en", CHECKPOINT))
    with pytest.raises(ValueError, match=r"checkpoint20\.npz: it holds NumPy .* from_arrays"):
        read(path)
