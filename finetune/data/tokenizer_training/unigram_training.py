"""Training of a unigram language model over pieces of words, the same to the last bit on every run.

The `tokenizers` library has a trainer for this too, but it adds rounded numbers in the order of a randomly seeded hash
table: no two runs give the same vocabulary file. This one is the same method (Kudo 2018, "Subword Regularization",
https://aclanthology.org/P18-1007, and the SentencePiece program of the same author) on arrays in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]
    Integers = NDArray[Any]

LONGEST_PIECE = 16  # characters
LONGEST_WORD = 128  # characters; what is longer is trained on in parts
SEEDS_FOR_EACH_PIECE = 20  # how many candidates there are at first for each piece that is wanted
MOST_SEEDS = 1_000_000
STEPS_BETWEEN_PRUNINGS = 2
KEPT_BY_PRUNING = 0.75
SPARE = 1.1  # pruning by loss stops at this many times the wanted size; the last ones go by probability
LEAST_EXPECTED = 0.5  # pieces that are expected less often than this are dropped


@dataclass
class Words:
    """Distinct words laid end to end, the longest first, and the pieces that start at each of their characters.

    `edges[k - 1, p]` is the number of the piece of `k` characters at place `p`, or -1: all characters are places from 0
    to N - 1. A word of n characters has n + 1 nodes between its characters; `nodes` is the number of its first.
    """

    starts: Integers  # of each word, its first place
    lengths: Integers  # of each word, in characters, falling
    counts: Floats  # how often each word is there
    edges: Integers

    def __post_init__(self) -> None:
        """Number the nodes: of each word, and of each place."""
        import numpy as np

        words = np.arange(len(self.starts), dtype=np.int32)
        self.nodes = self.starts + words
        self.word_at = np.repeat(words, self.lengths)  # of each place

    @property
    def node_count(self) -> int:
        """The number of nodes, with room behind them for pieces that would reach beyond the last word."""
        return int(self.lengths.sum()) + len(self.starts) + LONGEST_PIECE

    def as_long_as(self, length: int) -> int:
        """Return how many words have at least so many characters: these come first."""
        import numpy as np

        return int(np.searchsorted(-self.lengths, -length, side="right"))

    def renumber(self, kept: Integers, size: int) -> None:
        """Keep some of `size` pieces and give them the numbers from 0 on, in their order."""
        import numpy as np

        numbers = np.full(size + 1, -1, dtype=np.int32)  # the last stands for "no piece", as index -1
        numbers[kept] = np.arange(len(kept), dtype=np.int32)
        for edges in self.edges:
            edges[:] = numbers[edges]

    def parts_of(self, places: Integers, lengths: Integers) -> tuple[Words, Integers]:
        """Return stretches of these words as words of their own, each without the piece that is all of it.

        The second array says which of the stretches each word is.
        """
        import numpy as np

        order = np.argsort(-lengths, kind="stable")
        places, lengths = places[order], lengths[order]
        starts = np.cumsum(lengths) - lengths
        inside = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        source = np.repeat(places, lengths) + inside
        whole = np.repeat(lengths, lengths)
        edges = np.stack([
            np.where((inside + size <= whole) & (size < whole), column[source], -1)
            for size, column in enumerate(self.edges, start=1)
        ])  # fmt: skip
        return Words(starts, lengths, np.ones(len(order)), edges), order


def train_unigram(counts: Sequence[tuple[str, int]], size: int, min_frequency: int) -> list[tuple[str, float]]:
    """Return at most `size` pieces of words with their log probabilities, the most probable first.

    `counts` are distinct words, none empty, and how often each is there; their order decides ties. Every character that
    is there becomes a piece, so `size` must be at least their number; longer candidates are those seen `min_frequency`
    times. Memory: about 250 bytes for each character of the distinct words.
    """
    import numpy as np

    words, text = _lay_out(counts)
    places, lengths, frequencies = _seed(words, text, min_frequency, min(MOST_SEEDS, SEEDS_FOR_EACH_PIECE * size))
    characters = int((lengths == 1).sum())
    assert size >= characters
    scores = np.log(frequencies * lengths) - np.log((frequencies * lengths).sum())
    while True:
        for _ in range(STEPS_BETWEEN_PRUNINGS):
            expected = expect(words, scores)
            expected[:characters] = np.maximum(expected[:characters], LEAST_EXPECTED)
            kept = np.flatnonzero(expected >= LEAST_EXPECTED)
            words.renumber(kept, len(expected))
            places, lengths, expected = places[kept], lengths[kept], expected[kept]
            scores = _maximize(expected)
        if len(scores) <= max(SPARE * size, characters):
            break
        wanted = max(int(SPARE * size), int(KEPT_BY_PRUNING * len(scores)))
        kept = prune(words, scores, places, lengths, max(wanted, characters))
        words.renumber(kept, len(scores))
        places, lengths, scores = places[kept], lengths[kept], scores[kept]
    pieces = ["".join(map(chr, text[place : place + length])) for place, length in zip(places, lengths, strict=True)]
    rounded = [round(float(score), 6) for score in scores]  # processors differ in the last digits of a logarithm
    ranked = sorted(range(len(pieces)), key=lambda piece: (piece >= characters, -rounded[piece], pieces[piece]))[:size]
    return sorted(((pieces[piece], rounded[piece]) for piece in ranked), key=lambda pair: (-pair[1], pair[0]))


def _lay_out(counts: Sequence[tuple[str, int]]) -> tuple[Words, Integers]:
    """Return the words, as yet without pieces, and the code points of all their characters."""
    import numpy as np

    parts = [
        (word[start : start + LONGEST_WORD], count)
        for word, count in counts
        for start in range(0, len(word), LONGEST_WORD)
    ]
    parts.sort(key=lambda part: -len(part[0]))
    lengths = np.array([len(word) for word, _ in parts], dtype=np.int64)
    text = np.frombuffer("".join(word for word, _ in parts).encode("utf-32-le"), dtype=np.uint32)
    weights = np.array([count for _, count in parts], dtype=float)
    edges = np.full((LONGEST_PIECE, len(text)), -1, dtype=np.int32)
    return Words(np.cumsum(lengths) - lengths, lengths, weights, edges), text


def _seed(words: Words, text: Integers, min_frequency: int, most: int) -> tuple[Integers, Integers, Floats]:
    """Fill in the first pieces; return of each one place where it is, its length, and how often it is there.

    They are all characters and the frequent stretches of two or more; of these, if there are more than `most`, the ones
    that cover most characters. A stretch can be frequent only if it is so without its last character.
    """
    import numpy as np

    ends = (words.starts + words.lengths).astype(np.int32)[words.word_at]
    alphabet = np.unique(text)
    character = np.searchsorted(alphabet, text).astype(np.int32)
    at = np.arange(len(text))
    last: Integers = np.zeros(len(text), dtype=np.int64)  # of each place, the piece one character shorter
    found: list[tuple[Integers, Integers, Floats]] = []
    size = 0
    for length in range(1, LONGEST_PIECE + 1):
        at = at[at + length <= ends[at]]
        keys, first, numbers = np.unique(
            last[at] * len(alphabet) + character[at + length - 1], return_index=True, return_inverse=True
        )
        frequencies = np.bincount(numbers, weights=words.counts[words.word_at[at]], minlength=len(keys))
        often = (frequencies >= min_frequency) | (length == 1)
        renumbered = np.where(often, np.cumsum(often) - 1, -1)[numbers]
        words.edges[length - 1, at] = np.where(renumbered >= 0, renumbered + size, -1)
        found.append((at[first][often], np.full(int(often.sum()), length), frequencies[often]))
        size += int(often.sum())
        at = at[renumbered >= 0]
        last[at] = renumbered[renumbered >= 0]
    places, lengths, frequencies = (np.concatenate(column) for column in zip(*found, strict=True))
    covered = np.where(lengths == 1, np.inf, frequencies * lengths)
    kept = np.sort(np.argsort(-covered, kind="stable")[: max(most, len(alphabet))])
    words.renumber(kept, size)
    return places[kept], lengths[kept], frequencies[kept]


def _maximize(expected: Floats) -> Floats:
    """Return the pieces' log probabilities; the digamma function instead of the logarithm favours few pieces."""
    from scipy.special import digamma

    scores: Floats = digamma(expected) - digamma(expected.sum())
    return scores


def expect(words: Words, scores: Floats) -> Floats:
    """Return how often each piece is expected in all words, over all their segmentations by probability."""
    import numpy as np

    padded = np.append(scores, -np.inf)  # index -1: no piece
    forward, backward = np.zeros(words.node_count), np.zeros(words.node_count)
    longest = int(words.lengths[0])
    for end in range(1, longest + 1):
        count = words.as_long_as(end)
        nodes, places = words.nodes[:count] + end, words.starts[:count] + end
        forward[nodes] = _log_sum([
            forward[nodes - size] + padded[words.edges[size - 1, places - size]]
            for size in range(1, min(end, LONGEST_PIECE) + 1)
        ])  # fmt: skip
    for start in range(longest - 1, -1, -1):
        count = words.as_long_as(start + 1)
        nodes, places = words.nodes[:count] + start, words.starts[:count] + start
        backward[nodes] = _log_sum([
            backward[nodes + size] + padded[words.edges[size - 1, places]]
            for size in range(1, min(longest - start, LONGEST_PIECE) + 1)
        ])  # fmt: skip
    expected = np.zeros(len(scores))
    totals = forward[words.nodes + words.lengths]
    for size, edges in enumerate(words.edges, start=1):
        places = np.flatnonzero(edges >= 0)
        word, piece = words.word_at[places], edges[places]
        log_share = forward[places + word] + scores[piece] + backward[places + word + size] - totals[word]
        expected += np.bincount(piece, weights=np.exp(log_share) * words.counts[word], minlength=len(scores))
    return expected


def _log_sum(terms: list[Floats]) -> Floats:
    """Return the logarithm of the sum of exponentials, element by element."""
    import numpy as np

    stacked = np.stack(terms)
    highest = stacked.max(axis=0)
    total: Floats = highest + np.log(np.exp(stacked - highest).sum(axis=0))
    return total


def segment(words: Words, scores: Floats) -> tuple[Integers, Integers]:
    """Return the pieces of every word's most probable segmentation: the number of the word, and that of the piece."""
    import numpy as np

    padded = np.append(scores, -np.inf)
    best = np.zeros(words.node_count)
    sizes = np.zeros(words.node_count, dtype=np.int64)  # of the piece that ends at each node
    for end in range(1, int(words.lengths.max(initial=0)) + 1):
        count = words.as_long_as(end)
        nodes, places = words.nodes[:count] + end, words.starts[:count] + end
        terms = np.stack([
            best[nodes - size] + padded[words.edges[size - 1, places - size]]
            for size in range(1, min(end, LONGEST_PIECE) + 1)
        ])  # fmt: skip
        sizes[nodes] = terms.argmax(axis=0) + 1
        best[nodes] = terms.max(axis=0)
    word, end_of = np.arange(len(words.lengths)), words.lengths
    found: list[tuple[Integers, Integers]] = []
    while len(word) or not found:
        size = sizes[words.nodes[word] + end_of]
        end_of = end_of - size
        found.append((word, words.edges[size - 1, words.starts[word] + end_of]))
        word, end_of = word[end_of > 0], end_of[end_of > 0]
    return np.concatenate([word for word, _ in found]), np.concatenate([piece for _, piece in found])


def prune(words: Words, scores: Floats, places: Integers, lengths: Integers, wanted: int) -> Integers:
    """Return the numbers of at most `wanted` pieces: all characters, and those that the likelihood needs most.

    The loss of a piece is what the log likelihood of the best segmentations falls by when all of its occurrences are
    written with the next best pieces. A piece that no best segmentation has is lost for nothing.
    """
    import numpy as np

    word, piece = segment(words, scores)
    used = np.bincount(piece, weights=words.counts[word], minlength=len(scores))
    longer = np.flatnonzero((lengths > 1) & (used > 0))
    parts, order = words.parts_of(places[longer], lengths[longer])
    part, instead = segment(parts, scores)
    replaced = longer[order[part]]  # the piece that each part of an alternative stands for
    pieces_instead = np.bincount(replaced, minlength=len(scores))
    log_total = np.log(used.sum() + used * (pieces_instead - 1))
    log_instead = np.log(used[instead] + used[replaced]) - log_total[replaced]
    with np.errstate(divide="ignore"):
        log_own = np.log(used) - np.log(used.sum())
    loss = np.full(len(scores), -np.inf)
    alternative = np.bincount(replaced, weights=log_instead, minlength=len(scores))
    loss[longer] = used[longer] * (log_own[longer] - alternative[longer])
    loss[lengths == 1] = np.inf
    ranked = np.argsort(-loss, kind="stable")[:wanted]
    kept: Integers = np.sort(ranked[loss[ranked] > -np.inf])
    return kept
