"""What a model writes."""

from pathlib import Path

import torch

from deepen.base.hub import open_checkpoint
from deepen.base.memory import load_pretrained
from deepen.base.text import tokenizer_of


def continuation(model: str | Path, prompt: str, tokens: int) -> str:
    """Continue a text greedily, in float32, so that equal models write equal texts.

    Args:
        model: A checkpoint folder, a hub id or ``registry:NAME``.
        prompt: How the text begins.
        tokens: How many tokens to write.

    Raises:
        DeepenError: The model or its tokenizer cannot be opened.
    """
    source = open_checkpoint(model)
    tokenizer = tokenizer_of(source)
    module = load_pretrained(source, torch.float32)
    given = tokenizer(prompt, return_tensors="pt")
    written = module.generate(
        **given, do_sample=False, max_new_tokens=tokens, pad_token_id=tokenizer.eos_token_id
    )
    text = tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(str(text).split())
