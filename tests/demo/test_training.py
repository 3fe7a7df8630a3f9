"""The plain loop does what it says, and perplexity is what the definition says."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deepen.demo.recipe import Budget
from deepen.demo.training import score, train
from deepen.methods.base import silent

BUDGET = Budget(steps=4, sequences=2, learning_rate=1e-2, warmup_steps=1, decay_steps=1)


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return LlamaForCausalLM(config)


def tokens(count: int) -> torch.Tensor:
    return torch.randint(40, (count, 12), generator=torch.Generator().manual_seed(0))


def test_the_rate_rises_stays_and_falls():
    budget = Budget(steps=10, sequences=1, learning_rate=1.0, warmup_steps=3, decay_steps=4)
    rates = [budget.rate(step) for step in range(10)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]


def test_perplexity_is_the_exponential_of_the_mean_loss(model: LlamaForCausalLM):
    held_out, size = tokens(20), torch.full((40,), 3)
    result = score(model, held_out, size, silent, "")
    with torch.no_grad():
        log_p = model(held_out[:, :-1]).logits.double().log_softmax(-1)
    naive = -log_p.gather(2, held_out[:, 1:, None]).mean().item()
    assert result.loss_nats_per_token == pytest.approx(naive, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(naive), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(naive / math.log(2) / 3, rel=1e-6)
    assert result.tokens == 20 * 11


def test_frozen_parameters_stay_and_the_others_move(model: LlamaForCausalLM):
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    result = train(model, tokens(8), BUDGET, silent, "")
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != name.startswith("model.layers.1.")
    assert result.steps == 4
    assert result.tokens == 8 * 12
    trained = sum(parameter.numel() for parameter in model.model.layers[1].parameters())
    assert result.trainable_parameters == trained


def test_a_frozen_parameter_that_changes_is_an_error(model: LlamaForCausalLM):
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)

    def meddle(stage: str, share: float) -> None:
        model.model.norm.weight.data.add_(1.0)

    with pytest.raises(RuntimeError, match=r"model\.norm\.weight is frozen"):
        train(model, tokens(8), BUDGET, meddle, "")
