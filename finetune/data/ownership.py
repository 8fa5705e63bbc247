"""Which token of which window decides a word, so that no word is decided twice and none that is seen is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetune.data.tokenization import WordWindow

NO_WORD = -1


def deciding_words(windows: Sequence[WordWindow], stride: int, *, every_token: bool) -> list[list[int]]:
    """Return, for each token of each window of a row, the word that its output decides, or -1.

    A word is decided by its first token, or by all of them with `every_token`. A token that several windows see (they
    share `stride` tokens) counts in the one in which it has most context: the most tokens to the nearer end of the
    window; of equals in the first.
    """
    places = list(_places(windows, stride))
    best: dict[int, tuple[int, int]] = {}  # for each token of the row its context, and the window where it has that
    for number, window in enumerate(places):
        for position, place in enumerate(window):
            context = min(position, len(window) - 1 - position)
            if place not in best or context > best[place][0]:
                best[place] = (context, number)
    return [
        [
            word if word != NO_WORD and (start or every_token) and best[place][1] == number else NO_WORD
            for word, start, place in zip(window.words, window.starts, places[number], strict=True)
        ]
        for number, window in enumerate(windows)
    ]


def _places(windows: Sequence[WordWindow], stride: int) -> Iterator[list[int]]:
    """Yield for each window the number of each of its tokens among those that the windows see; -1: a special token."""
    first = 0
    for window in windows:
        places, following = [], first
        for word in window.words:
            places.append(NO_WORD if word == NO_WORD else following)
            following += word != NO_WORD
        yield places
        first = following - stride
