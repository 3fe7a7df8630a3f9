"""What transformers can load as causal language models, and what is no decoder of its own."""

from deepen.base.anatomy.families.gpt import POST_LN
from deepen.base.anatomy.family import Family

_ENCODER = "it is a bidirectional encoder; deepen grows decoders, which predict the next token"
_HALF = "it is the decoder half of an encoder-decoder model; deepen grows decoders that stand alone"
_PART = "its text decoder is one part of several, beside others for {}; deepen grows decoders alone"
_ENCODERS = """
    bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert
    roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod
"""
_HALVES = """
    bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp
    pegasus plbart prophetnet trocr whisper
"""

FAMILIES: tuple[Family, ...] = ()

REFUSED: dict[str, str] = {
    **dict.fromkeys(_ENCODERS.split(), _ENCODER),
    **dict.fromkeys(_HALVES.split(), _HALF),
    "xlm": POST_LN,
    "xlnet": POST_LN,
    "cpmant": "its attention looks at later tokens too, so that learning to predict the next one "
    "means copying it",
    "reformer": "its attention hashes at random, so that two runs differ and no identity can be "
    "shown",
    "git": _PART.format("images"),
    "moshi": _PART.format("speech"),
    "moss_transcribe_diarize": _PART.format("speech"),
}
