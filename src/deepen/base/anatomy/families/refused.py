"""What cannot be grown right, with the reason: families, and reasons that several tables share."""

from deepen.base.anatomy.family import Refusal

POST_LN = (
    "its blocks norm the residual stream itself (post-LN), so that no added block can leave it "
    "as it is"
)
"""Why blocks with a norm behind every residual addition are refused."""
SHARED_CHOICE = (
    "some of its blocks attend to the keys that the indexer of a block below chose, and a new "
    "block could come in between"
)
"""Why blocks that use another block's indexer are refused."""
CROSS_ATTENTION = Refusal(
    lambda config: bool(config.get("add_cross_attention")),
    "its blocks attend to an encoder (add_cross_attention); deepen grows decoders alone",
)
"""Refuses decoders that attend to an encoder, too."""

_MORE_THAN_TEXT = "it reads more than text, and deepen grows decoders of text alone"
_GEMMA3N = (
    "its blocks mix four streams by AltUp and add to them what no weight can turn off, and its "
    "per-layer embeddings and shared keys and values are counted by block"
)
_ASSISTANT = "its blocks use the keys and values of another model, which it speeds up"
_SHARED_BLOCKS = "all of its attention blocks are one and the same, so that none can be added"
_MIXED_STREAMS = (
    "its blocks mix several residual streams by a matrix that is never the identity, so that no "
    "new block can leave them as they are"
)
_VISION = "it is a vision-language model; give deepen its text model as a checkpoint of its own"
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


def _with_images(text: str) -> str:
    """Say what to do with a model that holds a text model beside others."""
    return (
        f"it reads images too; save its text model as a checkpoint of its own, of family {text!r}, "
        f"as docs/architectures.md shows, and grow that"
    )


REFUSED: dict[str, str] = {
    **dict.fromkeys(("emu3", "fuyu", "mllama", "got_ocr2", "phi4_multimodal"), _MORE_THAN_TEXT),
    "diffllama": (
        "how much each block subtracts in its differential attention depends on the block's index, "
        "and no config field can keep that for blocks that move up"
    ),
    "beam": (
        "its blocks scale the stream, and what they add to it, by their index, and no config field "
        "can keep that for blocks that move up"
    ),
    "hrm_text": (
        "its two stacks run many times over for every token, and config.json counts the runs and "
        "not the blocks"
    ),
    "blt": (
        "it has an encoder of bytes, a decoder of bytes and a stack over patches, each with blocks "
        "of its own, and finds patches with a fourth model"
    ),
    "openai-gpt": POST_LN,
    "gpt_neox_japanese": (
        "only its last block has an attention bias (dense_bias), which transformers places by the "
        "block's index"
    ),
    "gemma4": _with_images("gemma4_text"),
    "gemma4_unified": _with_images("gemma4_unified_text"),
    "gemma3n": _GEMMA3N,
    "gemma3n_text": _GEMMA3N,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "minimax": (
        "its blocks add to their normed input instead of the residual stream, so that no new block "
        "can leave the stream as it is, and its linear attention decays by the block's index"
    ),
    "longcat_flash": (
        "its routers send tokens to experts that hand their input on, so that no new block can add "
        "nothing"
    ),
    "hy_v4": SHARED_CHOICE,
    "zamba": _SHARED_BLOCKS,
    "zamba2": _SHARED_BLOCKS,
    "qwen4_exp_text": (
        "its n-gram embeddings are hashed by how many blocks below have some, and a new block "
        "could change that"
    ),
    "deepseek_v4": _MIXED_STREAMS,
    "qwen3_5": _VISION,
    "qwen3_5_moe": _VISION,
    "qwen4_exp": _VISION,
    "dots3_note": _VISION,
    "inkling2_text": (
        "every n-th of its blocks by index starts a new sum of the blocks below, and a new block "
        "would move the starts"
    ),
    **dict.fromkeys(_ENCODERS.split(), _ENCODER),
    **dict.fromkeys(_HALVES.split(), _HALF),
    "xlm": POST_LN,
    "xlnet": POST_LN,
    "cpmant": (
        "its attention looks at later tokens too, so that learning to predict the next one means "
        "copying it"
    ),
    "reformer": (
        "its attention hashes at random, so that two runs differ and no identity can be shown"
    ),
    "git": _PART.format("images"),
    "moshi": _PART.format("speech"),
    "moss_transcribe_diarize": _PART.format("speech"),
}
"""Families that cannot be grown right: ``model_type`` → why, as the rest of a sentence."""
