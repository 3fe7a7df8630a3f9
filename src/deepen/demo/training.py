"""A plain training loop, and perplexity."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from deepen.demo.recipe import Budget
from deepen.methods.base import Progress
from deepen.records import Record, Step

_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1
_MAX_GRADIENT_NORM = 1.0
_SCORED_AT_ONCE = 16


class Training(Record):
    """What a training run did."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens seen."""
    trainable_parameters: int
    """Parameters that were trained."""
    last_loss_nats_per_token: float
    """Mean training loss of the last tenth of the steps."""
    wall_seconds: float
    """Time taken."""


class Score(Record):
    """How well a model predicts held-out text."""

    loss_nats_per_token: float
    """Mean loss."""
    perplexity: float
    """The exponential of the loss."""
    bits_per_byte: float
    """The same loss for each byte of text, which does not depend on the tokenizer."""
    tokens: int
    """Number of tokens predicted."""


def freeze(model: Any, step: Step) -> None:  # noqa: ANN401 (transformers' classes have no types)
    """Leave to train what a growth method's paper trains."""
    model.requires_grad_(step.trains == "everything")
    for index in step.new_blocks:
        model.model.layers[index].requires_grad_(True)


def train(
    model: Any,  # noqa: ANN401
    sequences: Tensor,
    budget: Budget,
    progress: Progress,
    stage: str,
) -> Training:
    """Train, in place, the parameters that require gradients.

    Args:
        model: A causal language model.
        sequences: Token ids ``[steps · sequences, tokens]``, in the order of training.
        budget: Steps and rates.
        progress: Called after every step.
        stage: What to call the training there.

    Raises:
        RuntimeError: A parameter that was frozen has changed.
    """
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = _optimizer(model, budget.embedding_factor)
    started, losses = time.perf_counter(), []
    model.train()
    for step, batch in enumerate(sequences.split(budget.sequences)):
        losses.append(_step(model, batch, optimizer, budget.rate(step)))
        progress(f"{stage}, loss {losses[-1]:.2f}", (step + 1) / budget.steps)
    seconds = time.perf_counter() - started
    model.eval()
    for name, before in frozen.items():
        if not torch.equal(before, model.get_parameter(name)):
            raise RuntimeError(f"{name} is frozen, but training has changed it")
    last = losses[-max(1, len(losses) // 10) :]
    return Training(
        steps=len(losses),
        tokens=sequences.numel(),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        last_loss_nats_per_token=sum(last) / len(last),
        wall_seconds=seconds,
    )


def _optimizer(model: Any, embedding_factor: float) -> torch.optim.AdamW:  # noqa: ANN401
    """Make AdamW over what requires gradients, with weight decay on the blocks' matrices only."""
    embedding = model.get_input_embeddings().weight
    trained = [p for p in model.parameters() if p.requires_grad and p is not embedding]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": _WEIGHT_DECAY, "factor": 1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "factor": 1},
    ]
    if embedding.requires_grad:
        groups.append({"params": [embedding], "weight_decay": 0.0, "factor": embedding_factor})
    return torch.optim.AdamW(groups, betas=_BETAS)


def _step(model: Any, batch: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> float:  # noqa: ANN401
    """Take one step and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    loss = _losses(model, batch).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _losses(model: Any, batch: Tensor) -> Tensor:  # noqa: ANN401
    """Return the loss of every token but the first of each sequence, ``[batch, tokens - 1]``."""
    logits, targets = model(input_ids=batch, use_cache=False).logits[:, :-1], batch[:, 1:]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


@torch.no_grad()
def score(
    model: Any,  # noqa: ANN401
    held_out: Tensor,
    token_bytes: Tensor,
    progress: Progress,
    stage: str,
) -> Score:
    """Measure perplexity.

    Args:
        model: A causal language model.
        held_out: Token ids ``[sequences, tokens]``; each sequence is predicted from its own start.
        token_bytes: Bytes of text that each token stands for, ``[vocabulary]``.
        progress: Called after every batch.
        stage: What to call the scoring there.
    """
    model.eval()
    total = 0.0
    for done, batch in enumerate(held_out.split(_SCORED_AT_ONCE), start=1):
        total += _losses(model, batch).double().sum().item()
        progress(stage, min(1.0, done * _SCORED_AT_ONCE / len(held_out)))
    predicted = held_out[:, 1:]
    loss = total / predicted.numel()
    return Score(
        loss_nats_per_token=loss,
        perplexity=math.exp(loss),
        bits_per_byte=total / math.log(2) / int(token_bytes[predicted].sum()),
        tokens=predicted.numel(),
    )
