"""A GGUF file, llama.cpp's format, as an ordinary checkpoint that can be grown and trained.

transformers reads the file and undoes its quantisation; what it cannot know, or reads wrong, is put
right here. The weights are the quantised ones, not those that they were made from.
"""

import importlib.util
import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepen.base.folder import check_numbers
from deepen.common.errors import DeepenError
from deepen.common.folders import whole_folder
from deepen.common.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_INTERNAL = ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id")
_SPLITTING = "tokenizer.ggml.pre"


def import_gguf(
    file: str | Path,
    out: str | Path,
    *,
    beside: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a GGUF file's model as a Hugging Face checkpoint in bfloat16, with its tokenizer.

    Args:
        file: The GGUF file, of an architecture that transformers reads.
        out: Folder to write; it appears when it is whole.
        beside: Further files for that folder: a card, a licence.
        overwrite: Replace a checkpoint at ``out``.

    Returns:
        ``out``.

    Raises:
        DeepenError: The file cannot be read, or the package ``gguf`` is not there.
    """
    file, out = Path(file), Path(out)
    if not file.is_file():
        raise DeepenError(f"There is no file {str(file)!r}; check the path.")
    if importlib.util.find_spec("gguf") is None:
        raise DeepenError(
            "GGUF files are read with the package gguf, which is not installed; "
            "`pip install gguf`, and try again."
        )
    with whole_folder(out, overwrite=overwrite) as folder, quiet_transformers():
        module, tokenizer = _read(file)
        _save(module, folder)
        tokenizer.model_max_length = getattr(module.config, "max_position_embeddings", 2048)
        tokenizer.init_kwargs.pop("local_files_only", None)  # whether a hub was in reach just now
        tokenizer.save_pretrained(folder)
        for name, content in (beside or {}).items():
            (folder / name).write_bytes(content)
    return out


def _read(file: Path) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """Load model, in float32, and tokenizer."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = file.parent, file.name
    try:
        content = GGUFReader(file)
        _check_size(file, content)
        with redirect_stderr(io.StringIO()):  # a bar that no setting turns off
            both: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
        module, loaded = both
        _check_complete(module, loaded["missing_keys"], file)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    except DeepenError:
        raise
    except Exception as error:  # many types, for files that are damaged or of unknown models
        reason = " ".join(str(error).split())[:200]
        raise DeepenError(
            f"transformers cannot read {str(file)!r} ({reason}); give a whole GGUF file of an "
            f"architecture that it knows."
        ) from None
    rule = content.fields.get(_SPLITTING)
    if rule is not None and rule.contents() == "smollm":
        _split_digits(tokenizer)
    return module, tokenizer


def _check_size(file: Path, content: Any) -> None:  # noqa: ANN401 (a class of gguf)
    """Hold what the file says of the model's size to the tensors in it, before memory is taken.

    Raises:
        DeepenError: It tells of more.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    ).get_text_config()
    check_numbers(config.to_dict(), str(file))
    names = [str(tensor.name).split(".") for tensor in content.tensors]
    blocks = len({name[1] for name in names if name[0] == "blk"})
    if config.num_hidden_layers > blocks:
        raise _incomplete(file, f"tells of {config.num_hidden_layers:,} blocks, and has {blocks}")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = sum(parameter.numel() for parameter in empty.parameters())
    there = sum(int(tensor.n_elements) for tensor in content.tensors)
    if wanted > 2 * there:  # a head that is the embedding is stored once
        raise _incomplete(file, f"tells of {wanted:,} parameters, and has {there:,}")


def _check_complete(module: Any, missing: Iterable[str], file: Path) -> None:  # noqa: ANN401
    """Refuse a file that lacks tensors, which transformers fills with random numbers.

    Raises:
        DeepenError: One is missing, and is no other's by its name alone.
    """
    tied = module.get_output_embeddings() if module.config.tie_word_embeddings else None
    own = dict(module.named_parameters(remove_duplicate=False))
    lacking = sorted(
        name for name in missing if name in own and not (tied and own[name] is tied.weight)
    )
    if lacking:
        raise _incomplete(file, f"lacks tensor {lacking[0]}, one of {len(lacking)}")


def _incomplete(file: Path, what: str) -> DeepenError:
    """Make the error of a file that does not hold the model that it describes."""
    return DeepenError(f"{str(file)!r} {what}; give a whole GGUF file.")


def _split_digits(tokenizer: Any) -> None:  # noqa: ANN401 (a class of transformers)
    """Split at every digit first, which transformers leaves out: spaces before one stay together.

    Source: llama.cpp, ``LLAMA_VOCAB_PRE_TYPE_SMOLLM``.
    """
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split])


def _save(module: Any, folder: Path) -> None:  # noqa: ANN401
    """Save weights and config; transformers refuses to save what it read from GGUF as it stands."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = _clean(module.config)
    with init_empty_weights(include_buffers=False):
        plain: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=False
        )
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in module.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id")}
    plain.generation_config = GenerationConfig(**ids, pad_token_id=config.pad_token_id)
    plain.save_pretrained(folder)


def _clean(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Leave out what tells of the file alone, and give numbers the digits that they were given.

    The file stores numbers in float32: 1e-05 comes back as 9.999999747378752e-06.
    """
    fields = {key: value for key, value in config.to_dict().items() if key not in _INTERNAL}
    return type(config).from_dict(
        {key: _shortest(value) if type(value) is float else value for key, value in fields.items()}
    )


def _shortest(value: float) -> float:
    """Return the number of fewest digits that is the same in float32, if it is one of float32."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value
