"""Proof, on the batch at hand, that a trunk's states are all that the blocks above it need.

With the states handed in, every block above the trunk must be given what the whole module gives
it, and the loss must be the same, to the last bit. A loss alone would not tell: new blocks whose
outputs are zero hide whatever is wrong with what they read.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from deepen.training.trunk.bypass import Bypass, NotKeptError


def prove(bypass: Bypass, batch: Mapping[str, Tensor], state: Tensor) -> None:
    """Run the whole module, and then what is left of it on the states.

    Args:
        bypass: The trunk, not passed by; it is not afterwards either.
        batch: What the module is called with.
        state: What the trunk computes of it, [sequences, tokens, hidden].

    Raises:
        NotKeptError: There is a difference.
    """
    again, loss, given = bypass.look(batch)
    if not torch.equal(again, state):
        raise NotKeptError("it is another one in every pass, as with dropout")
    bypass.switch_on()
    try:
        bypass.give(state)
        _, loss_above, given_above = bypass.look(batch)
    except Exception as error:  # whatever a family's own code does where a block is missing
        raise NotKeptError(
            f"the model does not run without those blocks ({type(error).__name__})"
        ) from error
    finally:
        bypass.switch_off()
    if len(given) != len(given_above) or not all(map(torch.equal, given, given_above)):
        raise NotKeptError("blocks above it read more of it than its output")
    if not torch.equal(loss, loss_above):
        raise NotKeptError("the loss depends on more of it than its output")
