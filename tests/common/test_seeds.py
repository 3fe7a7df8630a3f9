"""Random numbers that depend on nothing but what they are for."""

import torch

from deepen.common.seeds import generator_for


def test_equal_texts_give_equal_numbers_whatever_was_drawn_before():
    state = torch.get_rng_state()
    first = torch.randn(4, generator=generator_for("0 q_proj"))
    torch.randn(3, generator=generator_for("something else"))
    assert torch.equal(first, torch.randn(4, generator=generator_for("0 q_proj")))
    assert not torch.equal(first, torch.randn(4, generator=generator_for("1 q_proj")))
    assert torch.equal(state, torch.get_rng_state()), "the global state is left alone"


def test_the_numbers_stay_those_that_checkpoints_were_made_with():
    drawn = torch.randint(0, 1000, (3,), generator=generator_for("deepen"))
    assert drawn.tolist() == [344, 698, 460]
