"""What a family's table says when its author says nothing."""

from deepen.base.anatomy import Family, Heads
from deepen.base.anatomy.family import whole_heads
from deepen.base.anatomy.parts import plain_heads, rope_heads

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def test_the_default_moves_nothing_inside_attention():
    silent = Family("mine", {})
    heads = silent.heads(CONFIG)
    assert heads == Heads(4, 2, 8, 8, rotary=8, normed=True, fixed=True, gated=True)
    assert Heads(4, 2, 8, 8) == Heads(4, 2, 8, 8, normed=True, fixed=True, gated=True)
    assert not silent.bilinear


def test_more_is_asked_for_by_name():
    free = Heads(4, 2, 8, 8, rotary=8, normed=False, fixed=False, gated=False)
    assert rope_heads(CONFIG) == free
    alone = plain_heads("num_attention_heads", "hidden_size")(CONFIG)
    assert alone == Heads(4, 4, 8, 8, normed=False, fixed=False, gated=False)


def test_configs_that_do_not_count_heads_have_none():
    assert whole_heads({}) is None
    assert whole_heads({"num_attention_heads": 4}) is None
