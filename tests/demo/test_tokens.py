"""Nothing of a text is lost or counted twice on its way into sequences."""

from collections import Counter

import torch

from deepen.demo.tokens import Tokens, bytes_per_token, pack, train_tokenizer

TEXTS = [f"def f_{i}(x):\n    return 'café' * {i} + x\n" for i in range(50)]
TOKENIZER = train_tokenizer(TEXTS, 300)


def test_training_is_deterministic():
    again = train_tokenizer(TEXTS, 300)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_text_survives_a_round_trip():
    for text in [*TEXTS, "naïve \t Ω 🐍\r\n"]:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_tokens_stand_for_as_many_bytes_as_the_text_has():
    size = bytes_per_token(TOKENIZER)
    for text in TEXTS:
        assert int(size[torch.tensor(TOKENIZER.encode(text))].sum()) == len(text.encode())
    assert size[TOKENIZER.eos_token_id] == 0


def test_packing_keeps_every_token_but_the_remainder():
    sequences = pack(TEXTS, TOKENIZER, 16, torch.Generator().manual_seed(0))
    everything = Counter(token for text in TEXTS for token in TOKENIZER.encode(text))
    everything[TOKENIZER.eos_token_id] = len(TEXTS)
    packed = Counter(sequences.flatten().tolist())
    assert packed <= everything
    assert 0 <= everything.total() - packed.total() < 16


def test_packing_depends_on_the_seed_alone():
    first, same, other = (
        pack(TEXTS, TOKENIZER, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_training_starts_over_at_the_end_of_the_data():
    tokens = Tokens(training=torch.arange(10).view(5, 2), held_out=torch.empty(0, 2))
    assert tokens.batch_order(3, 4)[:, 0].tolist() == [6, 8, 0, 2]
