"""Frozen features of a language model for every word that the RGN reads, computed once and stored beside the evidence.

In: reports, their evidence, and a folder with a transformers model (Qwen3, a BERT) in safetensors. Out: a side-car
with one row a sentence. It holds no text, but features of words can give words away: treat the file as the reports.

torch and transformers come with the extra ``labels`` and are imported when a model is loaded.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax.models import tokens

SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),
        ("field", pa.string()),
        ("start", pa.int32()),  # the sentence, as character offsets into that field
        ("end", pa.int32()),
        ("words", pa.int32()),
        ("features", pa.binary()),  # [words, f] float16, little-endian, row after row
    ]
)
_META = b"repgls_language"
_IDENTITY = (".json", ".safetensors", ".txt")  # types of the files that make a model what it is
Encode = Callable[[list[str]], list[np.ndarray]]  # sentences -> features of their words, [words, d] float32


def load(folder: pathlib.Path, batch_size: int = 64) -> tuple[Encode, str]:
    """A frozen model: (its last hidden states, averaged over the tokens of each word; SHA-256 of its files).

    Raises:
      FileNotFoundError: the folder or its weights are missing.
      ValueError: the tokeniser cannot tell where its tokens stand in the text.
    """
    import torch
    import transformers

    files = sorted(f for f in folder.glob("*") if f.suffix in _IDENTITY)
    if not any(f.suffix == ".safetensors" for f in files):
        raise FileNotFoundError(f"{folder} holds no .safetensors file; expected a transformers model's folder")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    tokeniser = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokeniser.is_fast:
        raise ValueError(f"the tokeniser of {folder} gives no offsets; expected a fast one (tokenizer.json)")
    if tokeniser.pad_token is None:
        tokeniser.pad_token = tokeniser.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype
    )
    model = model.eval().to(device)

    @torch.inference_mode()
    def encode(texts: list[str]) -> list[np.ndarray]:
        made: list[np.ndarray] = [np.zeros(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # neighbours in length need little padding
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            asked = tokeniser(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            offsets = asked.pop("offset_mapping").numpy()
            hidden = model(**asked.to(device)).last_hidden_state.float().cpu().numpy()
            for row, i in enumerate(rows):
                made[i] = words_of(texts[i], offsets[row], hidden[row])
        return made

    return encode, digest.hexdigest()


def words_of(text: str, offsets: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Features of a text's words: the mean over the tokens that overlap each; 0 for a word that has none.

    Args:
      text: a sentence.
      offsets: [t, 2] integers, first character of each token and one past its last; equal for special tokens.
      hidden: [t, d] float32.

    Returns:
      [words, d] float32, words as :func:`repgls_jax.models.tokens.words` counts them.
    """
    found = tokens.words(text)
    first = np.array([at for _, at in found], np.int64).reshape(-1, 1)
    last = first + np.array([len(word) for word, _ in found], np.int64).reshape(-1, 1)
    shared = (offsets[:, 0] < last) & (offsets[:, 1] > first) & (offsets[:, 0] < offsets[:, 1])
    return (shared @ hidden / np.maximum(shared.sum(1, keepdims=True), 1)).astype(np.float32)


def compute(reports: pa.Table, evidence: pa.Table, encode: Encode, identity: str, dims: int, seed: int) -> pa.Table:
    """Features of every sentence that the evidence points to.

    A random projection (Gaussian, fixed by the seed) to ``dims`` numbers keeps distances between words and the file
    small; Johnson and Lindenstrauss, 1984.

    Args:
      reports: columns study_id and the fields that the evidence points into.
      evidence: columns study_id, field, start, end.
      encode: the model, see :func:`load`.
      identity: of the model.
      dims: f.
      seed: of the projection.
    """
    texts = {report["study_id"]: report for report in reports.to_pylist()}
    columns = ("study_id", "field", "start", "end")
    rows = zip(*(evidence.column(name).to_pylist() for name in columns), strict=True)
    places = sorted({row for row in rows if row[3] > row[2] and row[0] in texts})
    encoded = encode([texts[study][field][start:end] for study, field, start, end in places])
    width = encoded[0].shape[1] if encoded else dims
    project = np.random.default_rng(seed).normal(0, width**-0.5, (width, dims)).astype(np.float32)
    made = [
        dict(zip(columns, place, strict=True))
        | {"words": len(values), "features": (values @ project).astype("<f2").tobytes()}
        for place, values in zip(places, encoded, strict=True)
    ]
    meta = {"model": identity, "dims": dims, "seed": seed, "width": width}
    return pa.Table.from_pylist(made, schema=SCHEMA.with_metadata({_META: json.dumps(meta).encode()}))


def dims_of(table: pa.Table) -> int:
    """f of a table of features.

    Raises:
      ValueError: the table is not one of this project's features.
    """
    stored = (table.schema.metadata or {}).get(_META)
    if stored is None:
        raise ValueError("the table carries no description of features; data_prep/language_features.py writes them")
    return int(json.loads(stored)["dims"])


def read(path: pathlib.Path) -> pa.Table:
    """The side-car at ``path``.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one of features.
    """
    if not path.exists():
        raise FileNotFoundError(f"features {path} do not exist; data_prep/language_features.py writes them")
    table = pq.read_table(path)
    dims_of(table)
    return table.cast(SCHEMA.with_metadata(table.schema.metadata))


def sentences(table: pa.Table) -> Iterator[tuple[tuple[str, str, int, int], np.ndarray]]:
    """((study_id, field, start, end), [words, f] float16) of each row."""
    f = dims_of(table)
    for row in table.to_pylist():
        values = np.frombuffer(row["features"], "<f2").reshape(row["words"], f)
        yield (row["study_id"], row["field"], row["start"], row["end"]), values
