"""Fine-tuning examples on disk: tokenised once, mapped from then on."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, Tell, unheard
from deepen.training.data.cache import cached, key_of
from deepen.training.data.chat import IGNORED, Example, Reader
from deepen.training.data.files import Row
from deepen.training.data.rows import rows
from deepen.training.data.templates import marked_template
from deepen.training.recipe import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_ONCE = 1000


def load_examples(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    progress: Progress,
    tell: Tell = unheard,
) -> "Dataset":
    """Read and tokenise fine-tuning rows, or find those of an earlier run.

    Args:
        data: Which data; its seed is set.
        tokenizer: The model's.
        folder: Where the examples are kept.
        progress: Called as they are written.
        tell: Called with what was left out.

    Returns:
        A data set with the columns ``input_ids`` and ``labels``, and ``seq_lengths`` if packed.

    Raises:
        DeepenError: The data are missing or damaged, or there is nothing to learn from.
    """
    from datasets import Dataset

    def write(file: Path) -> Mapping[str, Any]:
        return _write(data, tokenizer, file, progress)

    templates = [tokenizer.chat_template, marked_template(tokenizer)]
    key = key_of(data, tokenizer, template=templates)
    file, facts = cached(folder, f"examples-{key}", ".arrow", write)
    if facts.get("nulls"):
        tell(f"Left out {facts['nulls']:,} rows of {data.path!r} with null in a column of theirs.")
    examples = Dataset.from_file(str(file))
    return _packed(examples, data.sequence_length) if data.packing else examples


def join_examples(loaded: Sequence["Dataset"]) -> "Dataset":
    """Put data sets one behind the other."""
    from datasets import concatenate_datasets

    return concatenate_datasets(list(loaded))


def _packed(examples: "Dataset", length: int) -> "Dataset":
    """Put short examples together, longest first, into sequences."""
    from datasets.utils.logging import disable_progress_bar
    from trl.data_utils import pack_dataset

    disable_progress_bar()
    # Kept in memory: `map` would write beside a file that other processes read.
    return pack_dataset(examples, length, "bfd", {"keep_in_memory": True})


def _write(
    data: DataConfig, tokenizer: "PreTrainedTokenizerBase", file: Path, progress: Progress
) -> Mapping[str, Any]:
    """Write all examples as an Arrow stream.

    Raises:
        DeepenError: No example is left.
    """
    import pyarrow

    assert data.seed is not None
    read = rows(data, data.seed)
    first = next(read, None)
    if first is None:
        raise DeepenError(f"The data set {data.path!r} (data) holds no rows.")
    reader = Reader(data, tokenizer, first)
    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema({"input_ids": tokens, "labels": tokens})
    kept, dropped, nulls = 0, 0, 0
    with file.open("wb") as sink, pyarrow.ipc.new_stream(sink, schema) as stream:
        for batch in _batches(itertools.chain([first], read)):
            read_rows = [example for row in batch if (example := reader.read(row)) is not None]
            cut = [_cut(example, data.sequence_length) for example in read_rows]
            good = [e for e in cut if any(label != IGNORED for label in e.labels[1:])]
            columns = [[e.ids for e in good], [e.labels for e in good]]
            arrays = [pyarrow.array(column, tokens) for column in columns]
            stream.write_batch(pyarrow.record_batch(arrays, schema=schema))
            kept, dropped = kept + len(good), dropped + len(cut) - len(good)
            nulls += len(batch) - len(cut)
            progress(f"data: {kept:,} rows", 0.0)
    if not kept:
        raise DeepenError(
            f"No row of {data.path!r} has an answer within data.sequence_length="
            f"{data.sequence_length} tokens; raise it."
        )
    progress(f"data: {kept:,} rows", 1.0)
    return {"rows": kept, "dropped": dropped, "nulls": nulls}


def _cut(example: Example, length: int) -> Example:
    """Cut an example to a length."""
    return Example(example.ids[:length], example.labels[:length])


def _batches(read: Iterable[Row]) -> Iterator[list[Row]]:
    """Collect rows."""
    iterator = iter(read)
    while batch := list(itertools.islice(iterator, _ROWS_AT_ONCE)):
        yield batch
