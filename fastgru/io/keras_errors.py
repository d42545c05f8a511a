"""How files of Keras are refused."""

import contextlib
from collections.abc import Iterator

from ..safetensors import RefusedError

DAMAGED = "it is damaged, or no program of Keras wrote it: take an undamaged copy"


@contextlib.contextmanager
def refusals(origin: str) -> Iterator[None]:
    """What is wrong with a file's content as ValueError that names the file."""
    try:
        yield
    except RefusedError as refusal:
        raise ValueError(f"{origin}: {refusal}") from refusal.__cause__
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: {error}") from error
