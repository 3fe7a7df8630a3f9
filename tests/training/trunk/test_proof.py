"""The proof sees what a loss does not show."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shrink
from cases import CASES
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model
from deepen.training.trunk.bypass import Bypass, NotKeptError
from deepen.training.trunk.proof import prove

BATCH = {"input_ids": torch.arange(6).view(2, 3)}


class Block(nn.Module):
    """A block that adds something to what it is given."""

    def __init__(self, silent: bool = False) -> None:
        """Make random weights, or zeros."""
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if silent:
            nn.init.zeros_(self.linear.weight), nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_states: Tensor, beside: Tensor | None = None) -> Tensor:
        """Add to a state."""
        return hidden_states + self.linear(hidden_states)


class Stack(nn.Module):
    """Four blocks, the upper two silent; what may go beside the state is the subclass's."""

    def __init__(self) -> None:
        """Make random weights."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(8, 4)
            self.blocks = nn.ModuleList([Block(), Block(), Block(silent=True), Block(silent=True)])

    def forward(self, input_ids: Tensor) -> Any:
        """Run all blocks; the loss is the mean of the last state."""
        state = self.embedding(input_ids)
        for place, block in enumerate(self.blocks):
            state = block(state, **self.beside(place, state))
        return SimpleNamespace(loss=state.mean())

    def beside(self, place: int, state: Tensor) -> dict[str, Tensor]:
        """Give a block nothing more."""
        return {}


class Remembers(Stack):
    """Blocks above also read what left the first block."""

    def beside(self, place: int, state: Tensor) -> dict[str, Tensor]:
        """Give the state after the first block to all above the second."""
        if place == 1:
            self.first = state
        return {"beside": self.first} if place > 1 else {}


class Asks(Stack):
    """The model asks a block for its weights."""

    def beside(self, place: int, state: Tensor) -> dict[str, Tensor]:
        """Look into a block."""
        return {"beside": self.blocks[0].linear.weight} if place == 3 else {}


def proven(module: nn.Module) -> Bypass:
    """Prove that a stack can start above its second block."""
    bypass = Bypass(module, module.blocks, 2)
    prove(bypass, BATCH, bypass.compute(BATCH))
    return bypass


def test_a_stack_is_the_same_above_its_trunk_once_its_blocks_are_gone() -> None:
    stack = Stack()
    nn.init.normal_(stack.blocks[3].linear.weight, generator=torch.Generator().manual_seed(1))
    expected, bypass = stack(**BATCH).loss, proven(stack)
    assert torch.equal(stack(**BATCH).loss, expected)  # not passed by yet
    state = bypass.compute(BATCH)
    bypass.switch_on()
    bypass.free()
    bypass.give(state)
    loss = stack(**BATCH).loss
    assert torch.equal(loss, expected)
    loss.backward()
    assert stack.blocks[3].linear.weight.grad is not None
    assert {name.split(".")[1] for name, _ in stack.blocks.named_parameters("blocks")} == {"2", "3"}
    with pytest.raises(RuntimeError, match="no state was given"):
        stack(**BATCH)


def test_a_look_past_the_trunk_is_seen_though_silent_blocks_hide_it() -> None:
    with pytest.raises(NotKeptError, match="blocks above it read more of it"):
        proven(Remembers())


def test_a_state_that_differs_is_seen() -> None:
    stack = Stack()
    stack.blocks[1].register_forward_hook(lambda block, given, out: out + torch.rand(1))
    with pytest.raises(NotKeptError, match="another one in every pass"):
        proven(stack)


def test_a_block_that_is_missed_is_seen_and_comes_back() -> None:
    stack = Asks()
    expected = stack(**BATCH).loss
    with pytest.raises(NotKeptError, match=r"does not run without those blocks \(AttributeError\)"):
        proven(stack)
    assert torch.equal(stack(**BATCH).loss, expected)


def of_family(name: str, **settings: Any) -> Bypass:
    """Prove that a tiny model of a family can start above its third block."""
    model_type, own = CASES[name]
    module = shrink.model(model_type, **own | settings).train()
    module.config.use_cache = False
    model = as_model(ModuleSource(module, module.config.to_dict()))
    ids = torch.randint(5, 100, (3, 16), generator=torch.Generator().manual_seed(0))
    bypass = Bypass(module, module.get_submodule(model.blocks_path), 3)
    batch = {"input_ids": ids, "labels": ids}
    prove(bypass, batch, bypass.compute(batch))
    return bypass


WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("gpt_neox", {}), ("gpt2", WITHOUT_DROPOUT), ("bloom", {}), ("jamba", {}), ("gemma2", {})],
)
def test_families_of_all_sorts_start_above_their_trunk(name: str, settings: dict[str, Any]) -> None:
    of_family(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("gpt2", {}, "it is another one in every pass, as with dropout"),
        ("mixtral", {"output_router_logits": True}, "the loss depends on more of it than its"),
        ("glm_moe_dsa", {}, "blocks above it read more of it than its output"),
    ],
)
def test_families_that_read_more_are_refused(name: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(NotKeptError, match=why):
        of_family(name, **settings)
