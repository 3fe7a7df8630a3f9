"""States of frozen blocks at the bottom, kept from the scoring of one model for that of the next.

Arms of a study that leave the same blocks below as they are compute the same up to there. What
decides a state is in its file's name (``deepen.training.trunk.key``), batches are the same, and so
losses are those of the whole model to the last bit.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepen.base.checkpoint import FolderSource
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.common.files import whole
from deepen.evaluation.perplexity import Logits, Text, plain_logits
from deepen.training.trunk.bypass import Bypass, NotKeptError
from deepen.training.trunk.key import trunk_key
from deepen.training.trunk.proof import prove

_LEAST_SHARE_OF_BLOCKS = 0.25
_MOST_BYTES = 2**30  # of the states of one text, which are held in memory
_PROOF = 32  # tokens


@dataclass(frozen=True)
class TrunkStates:
    """Where states are kept, and how far up."""

    folder: Path
    """Folder of the files."""
    blocks: int
    """Number of blocks, from the bottom, that other models may have in common with this one."""


@dataclass(frozen=True)
class Trunk:
    """A model whose blocks at the bottom can be passed by."""

    bypass: Bypass
    """Those blocks."""
    key: str
    """Hash of all that decides what they compute."""
    token_bytes: int
    """Size of the state of one token."""
    folder: Path
    """Where states are kept."""

    @classmethod
    def of(cls, module: Any, source: FolderSource, where: TrunkStates, text: Text) -> Self | None:  # noqa: ANN401
        """Prove that states are enough; ``None`` where they are not, or save too little.

        Args:
            module: The model on its device.
            source: Its checkpoint.
            where: Where states are kept, and how far up.
            text: A text to prove it on.
        """
        try:
            model = open_model(source.folder)
        except DeepenError:  # a model that cannot be grown can be scored
            return None
        if not where.blocks >= max(1, _LEAST_SHARE_OF_BLOCKS * model.depth):
            return None
        bypass = Bypass(module, module.get_submodule(model.blocks_path), where.blocks)
        ids = torch.tensor([text.documents[0][:_PROOF]], device=module.device)
        batch = {"input_ids": ids, "labels": ids}
        try:
            state = bypass.compute(batch)
            prove(bypass, batch, state)
        except NotKeptError:
            return None
        key = trunk_key(model, where.blocks, state.dtype, module.device)
        return cls(bypass, key, state.shape[-1] * state.dtype.itemsize, where.folder)

    @contextmanager
    def passed_by(self, module: Any, text: Text, length: int, batch_size: int) -> Iterator[Logits]:  # noqa: ANN401
        """Give what computes logits of a text's batches, in order, above the states.

        Args:
            module: The model.
            text: The text.
            length: Tokens in a window.
            batch_size: Windows in a batch, at most.
        """
        if sum(map(len, text.documents)) * self.token_bytes > _MOST_BYTES:
            yield plain_logits(module)
            return
        file = self.folder / f"{self._name(text, length, batch_size)}.safetensors"
        known = load_file(file) if file.is_file() else {}
        states: dict[str, Tensor] = {}
        try:
            yield self._above(module, known, states)
        finally:
            self.bypass.switch_off()
        if not known:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(file) as beside:
                save_file(states, beside)

    def _above(
        self,
        module: Any,  # noqa: ANN401
        known: dict[str, Tensor],
        states: dict[str, Tensor],
    ) -> Logits:
        """Return what computes logits; states that are not known are computed and added."""

        def logits(inputs: Tensor) -> Tensor:
            batch: dict[str, Any] = {"input_ids": inputs.to(module.device), "use_cache": False}
            number = str(len(states))
            if number in known:
                states[number] = known[number]
            else:
                self.bypass.switch_off()
                states[number] = self.bypass.compute(batch).cpu().contiguous()
            self.bypass.switch_on()
            self.bypass.give(states[number].to(module.device))
            above: Tensor = module(**batch).logits
            return above

        return logits

    def _name(self, text: Text, length: int, batch_size: int) -> str:
        """Hash the trunk and the batches that it is run on."""
        parts = [self.key, [*map(list, text.documents)], text.opening, text.labels is None]
        parts += [length, batch_size]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
