"""The bytes of stored tensors against safetensors' own reader."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.weights import raw


@pytest.fixture
def file(tmp_path):
    """Tensors of many sizes, one of them empty, the last one larger than what is mapped at once."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "é": torch.randn(3, 5, generator=generator).bfloat16(),
        "empty": torch.empty(0, 4),
        "one": torch.tensor([True]),
        "large": torch.randn(2**20 + 3, generator=generator),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_pieces_are_the_bytes_that_safetensors_reads(file):
    places, tensors = raw.places_in(file), load_file(file)
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected, pieces = as_bytes(tensor).numpy().tobytes(), list(places[name].pieces())
        assert b"".join(pieces) == expected
        assert places[name].nbytes == len(expected)
        for length in (1, 7, 65536):
            own = min(length, len(expected))
            assert places[name].ends(length) == (expected[:own], expected[len(expected) - own :])
    assert len(list(places["large"].pieces())) == 2


def test_a_checkpoint_says_where_its_tensors_lie(llama):
    source = FolderSource(llama)
    for name in source.infos:
        stored = source.stored(name)
        assert b"".join(stored.pieces()) == as_bytes(source.load(name)).numpy().tobytes()
        assert stored.nbytes == source.infos[name].nbytes
