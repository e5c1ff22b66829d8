"""Matching of concepts and the balance among them."""

import math
import re
import time

import numpy as np
import pytest

import pipeline.select.concepts as concepts
from pipeline.select.concepts import balance, cap_for, concepts_from, expected_size, match_concepts, tokens_of
from pipeline.select.draws import keys_of


def matched(captions, entries):
    """For each pair the concepts it matches."""
    matches = match_concepts([[text] if isinstance(text, str) else text for text in captions], entries)
    parts = np.split(matches.concepts, matches.offsets[1:-1])
    return [{matches.entries[index] for index in part.tolist()} for part in parts]


def corpus(count, seed=0):
    """Pairs of one caption from a long-tailed vocabulary of 60 words."""
    generator = np.random.default_rng(seed)
    words = np.array([f"word{number}" for number in range(60)])
    share = 1 / np.arange(1, 61) ** 1.5
    return [[" ".join(generator.choice(words, generator.integers(1, 5), p=share / share.sum()))] for _ in range(count)]


def keys(count):
    return keys_of(str(number) for number in range(count))


def test_a_concept_is_found_between_word_boundaries_only():
    entries = ["cat", "dog", "hot dog", "new york", "t-shirt", "café"]
    captions = [
        "A cat.",
        "concatenate the catalogue",
        "a hot dog stand",
        "the weather is hot, dog sleeps",
        "NEW YORK",
        "new (york)",
        "(cat)/dog",
        "a red T-Shirt!",
        "a shirt",
        "cafe\u0301 au lait",
        "",
        "cat_dog 🐱cat",
    ]
    assert matched(captions, entries) == [
        {"cat"},
        set(),
        {"hot dog", "dog"},
        {"dog"},
        {"new york"},
        set(),
        {"cat", "dog"},
        {"t-shirt"},
        set(),
        {"café"},
        set(),
        {"cat", "dog"},
    ]


def test_scripts_without_spaces_match_inside_a_run():
    assert matched(["海滩上的一只狗", "赤い車が走る", "สุนัขบนชายหาด"], ["狗", "海滩", "車", "ชายหาด", "猫"]) == [
        {"海滩", "狗"},
        {"車"},
        {"ชายหาด"},
    ]


def test_agrees_with_a_search_for_each_concept():
    captions = corpus(300)
    entries = [f"word{number}" for number in range(60)] + [f"word0 word{number}" for number in range(20)]
    slow = [{entry for entry in entries if re.search(rf"\b{entry}\b", texts[0])} for texts in captions]
    assert matched(captions, entries) == slow
    assert sum(map(len, slow)) > 500


def test_captions_of_a_pair_count_once_and_entries_that_are_the_same_are_one():
    matches = match_concepts([["a dog", "the dog", "a cat"], ["dog"]], ["Dog", "dog", "cat", "...", ""])
    assert matches.entries == ("Dog", "cat")
    assert matches.counts.tolist() == [2, 1]


def test_a_list_without_words_is_refused():
    with pytest.raises(ValueError, match="holds no word"):
        match_concepts([["a dog"]], ["", "!?"])


def test_common_concepts_are_cut_to_the_cap_and_rare_ones_stay():
    captions = [["dog"]] * 9000 + [["axolotl"]] * 40 + [["dog axolotl"]] * 10 + [["blank"]] * 50
    matches = match_concepts(captions, ["dog", "axolotl", "unicorn"])
    kept, table = balance(matches, keys(len(captions)), 500, seed=0)
    assert table.column_names == ["concept", "count", "kept"]
    assert table["concept"].to_pylist() == ["dog", "axolotl", "unicorn"]
    assert table["count"].to_pylist() == [9010, 50, 0]
    assert kept[9000:9050].all()  # a rare concept keeps its pairs, whatever else they show
    assert not kept[9050:].any()
    assert kept[:9000].sum() == pytest.approx(500, abs=4 * math.sqrt(500))
    assert table["kept"].to_pylist() == [kept[:9000].sum() + 10, 50, 0]


def test_a_pair_stays_with_the_probability_of_the_paper():
    captions = [["a b"]] * 2000 + [["a"]] * 6000 + [["b"]] * 2000
    matches = match_concepts(captions, ["a", "b"])
    share = np.mean([balance(matches, keys(10_000), 1000, seed)[0][:2000].mean() for seed in range(10)])
    both = 1 - (1 - 1000 / 8000) * (1 - 1000 / 4000)
    assert share == pytest.approx(both, abs=4 * math.sqrt(both * (1 - both) / 20_000))


def test_a_draw_does_not_depend_on_the_order_of_pairs_or_concepts():
    captions, entries = corpus(2000), [f"word{number}" for number in range(60)]
    kept, _ = balance(match_concepts(captions, entries), keys(2000), 30, seed=5)
    turned, _ = balance(match_concepts(captions[::-1], entries[::-1]), keys(2000)[::-1], 30, seed=5)
    np.testing.assert_array_equal(turned[::-1], kept)
    other, _ = balance(match_concepts(captions, entries), keys(2000), 30, seed=6)
    assert not np.array_equal(other, kept)


def test_the_expected_size_is_what_is_kept_on_average():
    matches = match_concepts(corpus(3000), [f"word{number}" for number in range(60)])
    for cap in (5, 50, 500):
        sizes = [balance(matches, keys(3000), cap, seed)[0].sum() for seed in range(8)]
        assert np.mean(sizes) == pytest.approx(expected_size(matches, cap), rel=0.05)


def test_the_cap_for_a_target_gives_the_target():
    matches = match_concepts(corpus(3000), [f"word{number}" for number in range(3, 60)])
    most = int((np.diff(matches.offsets) > 0).sum())
    assert most < 3000
    for target in (20, 300, most - 100):
        assert expected_size(matches, cap_for(matches, target)) == pytest.approx(target, abs=1)
    kept, _ = balance(matches, keys(3000), cap_for(matches, 5000), seed=0)
    assert kept.sum() == most
    with pytest.raises(ValueError, match="target is 0"):
        cap_for(matches, 0)
    with pytest.raises(ValueError, match="cap of pairs a concept is 0"):
        balance(matches, keys(3000), 0, seed=0)


def test_no_match_at_all_is_no_error():
    matches = match_concepts([["one"], [], ["two"]], ["three"])
    assert matched(["one", [], "two"], ["three"]) == [set()] * 3
    assert expected_size(matches, 5) == 0
    assert not balance(matches, keys(3), cap_for(matches, 5), 0)[0].any()


def test_concepts_come_from_the_captions_themselves():
    captions = (
        [["a red car"]] * 30
        + [["a fire truck, red"]] * 20
        + [["a house by the sea"]] * 30
        + [["a fire in the house"]] * 10
        + [["something else"]] * 2
    )
    assert concepts_from(captions, min_count=15, max_share=0.7) == [
        "red", "house", "the", "by", "by the", "car", "fire", "house by", "red car", "sea", "the sea", "fire truck",
        "truck",
    ]  # fmt: skip  # not "a red": "a" is a stop word; not "truck red": a comma lies between; not "in": too rare
    with pytest.raises(ValueError, match="min_count is 0"):
        concepts_from(captions, min_count=0)


def test_concepts_are_those_of_a_plain_count():
    captions = corpus(800)
    found = concepts_from(captions, min_count=20, max_words=3, max_share=1.0)
    counted = {}
    for texts in captions:
        words = tokens_of(texts[0])
        for phrase in {" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}:
            counted[phrase] = counted.get(phrase, 0) + 1
    often = {phrase: count for phrase, count in counted.items() if count >= 20}
    assert found == sorted(often, key=lambda phrase: (-often[phrase], phrase))
    assert any(" " in phrase for phrase in found)


def test_the_number_of_concepts_hardly_matters_for_the_time():
    captions = corpus(4000)
    match_concepts(captions, ["word1"])

    def seconds(entries):
        concepts._lookup.cache_clear()
        concepts._match(captions[:1], "\n".join(entries))  # builds the look-up
        start = time.perf_counter()
        concepts._match(captions, "\n".join(entries))
        return time.perf_counter() - start

    few = min(seconds(["word1"] + [f"x{number}" for number in range(10)]) for _ in range(3))
    many = min(seconds(["word1"] + [f"x{number}" for number in range(100_000)]) for _ in range(3))
    assert many < 20 * few + 0.2  # 10,000 times the concepts


@pytest.mark.cluster
def test_tasks_match_the_same_as_one_process(ray_local, monkeypatch):
    captions, entries = corpus(1000), [f"word{number}" for number in range(60)]
    alone = match_concepts(captions, entries)
    words = concepts_from(captions, min_count=10)
    monkeypatch.setattr(concepts, "_SAMPLES", 130)
    spread = match_concepts(captions, entries)
    np.testing.assert_array_equal(spread.offsets, alone.offsets)
    np.testing.assert_array_equal(spread.concepts, alone.concepts)
    assert concepts_from(captions, min_count=10) == words
