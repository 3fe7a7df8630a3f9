"""The tiny models that every family is tested with: name → (model_type, settings of the config)."""

from cases import experts, gpt, hybrid, llama, postnorm

CASES = {**llama.CASES, **gpt.CASES, **postnorm.CASES, **experts.CASES, **hybrid.CASES}
