"""Report wording as hashed sub-words: tokens without a vocabulary.

A learned vocabulary would carry words of private reports into checkpoints; hashing does not, and a word never seen
in training still shares sub-words with those that were ("suspicion", "suspicious"). Each word becomes the hash of
itself and of its character 3- and 4-grams (Bojanowski et al., TACL 2017, arXiv 1607.04606).
"""

import functools
import re
import zlib

BUCKETS = 8192  # ids 1..BUCKETS-1; 0 is padding
SUBWORDS = 12  # ids kept of a word; longer words lose their last n-grams
_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")


def words(text: str) -> list[tuple[str, int]]:
    """The words of ``text``, lower-cased, each with its character offset."""
    return [(m.group(), m.start()) for m in _WORD.finditer(text.lower())]


@functools.lru_cache(maxsize=1 << 16)
def subwords(word: str) -> tuple[int, ...]:
    """Up to :data:`SUBWORDS` hash ids in [1, BUCKETS) of a word: itself first, then its 3- and 4-grams."""
    marked = f"<{word}>"
    grams = [marked] + [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)]
    kept = list(dict.fromkeys(grams))[:SUBWORDS]
    return tuple(zlib.crc32(g.encode()) % (BUCKETS - 1) + 1 for g in kept)
