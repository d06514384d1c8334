from __future__ import annotations

from app.data.naming import tables


def test_words_are_lower_case_and_no_word_means_two_things():
    groups = [
        tables.CONTRAST_WORDS,
        tables.NATIVE_WORDS,
        tables.STRIPPED_WORDS,
        tables.VERSION_WORDS,
        tables.OTHER_WORDS,
    ]
    for words in groups:
        assert all(w == w.lower() for w in words)
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            assert not first & second


def test_no_sequence_is_an_other_image():
    assert not tables.FLAIR_WORDS & tables.OTHER_WORDS
