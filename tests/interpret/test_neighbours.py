"""Neighbours of token vectors are exact, similarity is held against controls that say what they should."""

import numpy as np
import pytest
import torch

from picollm_core.config import SamplingConfig
from picollm_core.interpret.neighbours import (
    anisotropy,
    annotated_generation,
    nearest,
    pca_view,
    similarity_statistics,
    token_counts,
    token_id,
    token_vectors,
    written_tokens,
)
from picollm_core.interpret.word_lists import WORD_PAIRS
from picollm_core.loading import SHIPPED_DIR, load_model
from picollm_core.models import LanguageModel, build_model
from picollm_core.profiles import project_root
from picollm_core.sampling import generate
from picollm_core.storyworld import generate_stories
from picollm_core.tokenizers import load_tokenizer
from tests.conftest import TINY
from tests.word_tokens import words_tokenizer


def build(name: str = "transformer", **changes) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(TINY[name], **changes).eval()


def with_vectors(vectors: dict[str, list[float]], tokenizer) -> LanguageModel:
    """A model whose embedding holds these vectors, and for all other tokens one that is orthogonal to them."""
    model = build("lstm")
    with torch.no_grad():
        model.embedding.weight.zero_()[:, -1] = 1.0
        for word, vector in vectors.items():
            padded = torch.tensor([*vector, *[0.0] * (16 - len(vector))])
            model.embedding.weight[token_id(word, tokenizer)] = padded
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shipped(family: str):
    return load_model(project_root() / SHIPPED_DIR / family)


# neighbours


def test_neighbours_of_vectors_set_by_hand_are_exact_in_order_and_cosine():
    tokenizer = words_tokenizer()
    vectors = {"he": [1, 0, 0], "she": [9, 3, 0], "him": [1, 1, 0], "her": [-2, 0, 0], "cat": [0, 0, 1]}
    table = nearest(with_vectors(vectors, tokenizer), tokenizer, ["he", "cat"], count=2, candidates=range(42, 46))
    assert list(table["word"]) == [" he", " he", " cat", " cat"]
    assert list(table["neighbour"])[:2] == [" she", " him"]
    assert list(table["rank"]) == [1, 2, 1, 2]
    assert list(table["cosine"]) == pytest.approx([9 / 90**0.5, 0.5**0.5, 0, 0], abs=1e-6)
    assert tokenizer.decode([table["neighbour_id"][0]]) == " she"


def test_neighbours_can_be_chosen_among_tokens_that_are_frequent_enough():
    tokenizer = words_tokenizer()
    model = with_vectors({"dog": [1, 0], "cat": [9, 1], "red": [1, 1]}, tokenizer)
    counts = token_counts([" red dog red"], tokenizer)
    assert list(nearest(model, tokenizer, "dog", count=1, candidates=(counts >= 2).nonzero())["neighbour"]) == [" red"]


def test_other_spellings_of_a_word_can_be_passed_over():
    tokenizer = words_tokenizer()
    model = with_vectors({"dog": [1, 0], "cat": [9, 1], "Cat": [9, 2], "red": [1, 1]}, tokenizer)
    assert list(nearest(model, tokenizer, "dog", count=3)["neighbour"]) == [" cat", " Cat", " red"]
    assert list(nearest(model, tokenizer, "dog", count=2, distinct_words=True)["neighbour"]) == [" cat", " red"]
    assert " Cat" not in list(nearest(model, tokenizer, " cat", count=3, distinct_words=True)["neighbour"])


def test_a_token_without_direction_has_cosine_0_and_not_nan():
    tokenizer = words_tokenizer()
    table = nearest(with_vectors({"dog": [0, 0]}, tokenizer), tokenizer, "dog", count=4)
    assert list(table["cosine"]) == [0.0] * 4


def test_unembeddings_are_another_table_unless_the_head_is_tied():
    tokenizer = words_tokenizer()
    for tied in (True, False):
        tables = [nearest(build(tied=tied), tokenizer, "dog", which) for which in ("embedding", "unembedding")]
        assert tables[0].equals(tables[1]) == tied


def test_unusable_words_counts_and_tokenizers_are_refused():
    model, tokenizer = build(), words_tokenizer()
    with pytest.raises(ValueError, match="'hippopotamus' is not one token"):
        nearest(model, tokenizer, ["dog", "hippopotamus"])
    with pytest.raises(ValueError, match="there are 0 words"):
        nearest(model, tokenizer, [])
    with pytest.raises(ValueError, match="count is 0"):
        nearest(model, tokenizer, "dog", count=0)
    with pytest.raises(ValueError, match="count is 61, but there are 60 other tokens"):
        nearest(model, tokenizer, "dog", count=61)
    with pytest.raises(ValueError, match="count is 3, but there are 2 other"):
        nearest(model, tokenizer, "dog", count=3, candidates=[3, 4])
    with pytest.raises(ValueError, match="4096 tokens but the model has 61"):
        nearest(model, load_tokenizer("stories-4k"), "dog")


# annotated text


def test_annotated_text_is_the_generated_one_with_each_tokens_neighbours_behind_it():
    model, tokenizer = shipped("transformer")
    greedy = SamplingConfig(temperature=0.0)
    text = annotated_generation(model, tokenizer, "Tom saw a", greedy, length=6, count=2)
    plain = generate(model, tokenizer, "Tom saw a", sampling=greedy, max_new_tokens=6)
    wanted, among = "Tom saw a", written_tokens(tokenizer)
    for token in tokenizer.encode_ordinary(plain.removeprefix("Tom saw a")):
        near = nearest(model, tokenizer, [token], count=2, candidates=among, distinct_words=True)["neighbour"]
        wanted += f"{tokenizer.decode([token])}[{near[0].strip()}, {near[1].strip()}]"
    assert text == wanted
    assert text.count("[") == 6


def test_annotated_text_depends_on_the_seed_alone_and_refuses_what_generation_refuses():
    model, tokenizer = build("lstm"), words_tokenizer()
    one, same, other = (annotated_generation(model, tokenizer, " he", length=9, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    with pytest.raises(ValueError, match="count is 0"):
        annotated_generation(model, tokenizer, " he", count=0)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        annotated_generation(model, tokenizer, " he", length=0)
    with pytest.raises(ValueError, match="prompt is empty"):
        annotated_generation(model, tokenizer, "")


# the map


def test_the_map_lies_along_the_largest_variance_with_signs_that_do_not_depend_on_the_axes():
    flat = torch.tensor([[4.0, 0], [-2, 1], [-2, -1.0]])
    turn = torch.linalg.qr(torch.randn(5, 5, generator=seeded(), dtype=torch.float64)).Q
    for vectors in (flat, torch.nn.functional.pad(flat, (0, 3)).double() @ turn + 7):
        points, shares = pca_view(vectors, ["a", "b", "c"], ["g", "g", "h"])
        assert list(points["x"]) == pytest.approx([4, -2, -2])
        assert sorted(points["y"]) == pytest.approx([-1, 0, 1], abs=1e-9)
        assert shares == pytest.approx((24 / 26, 2 / 26))
        assert list(points["label"]) == ["a", "b", "c"]
        assert list(points["group"]) == ["g", "g", "h"]
    for unusable, labels in ((flat[:2], "ab"), (flat, "ab"), (torch.ones(3, 2), "abc"), (flat[:, :1], "abc")):
        with pytest.raises(ValueError, match=r"at least 3|give one each|all the same"):
            pca_view(unusable, list(labels))


def test_a_shared_direction_is_seen_and_goes_with_the_mean():
    model = build()
    assert abs(anisotropy(model)["mean_cosine"]) < 0.05
    with torch.no_grad():
        model.embedding.weight += 0.05
    found = anisotropy(model)
    assert found["mean_cosine"] > 0.7
    assert abs(found["centred"]) < 0.05
    three = token_vectors(model)[[3, 8, 20]]
    by_hand = torch.nn.functional.cosine_similarity(three, three.roll(1, 0)).mean()
    assert anisotropy(model, candidates=[3, 8, 20])["mean_cosine"] == pytest.approx(float(by_hand), abs=1e-6)
    with pytest.raises(ValueError, match="1 tokens"):
        anisotropy(model, candidates=[4])


# similarity


def story_model(seed: int = 0) -> LanguageModel:
    """An untrained model with the shipped vocabulary: its vectors have no structure."""
    torch.manual_seed(seed)
    return build_model(TINY["lstm"], vocab_size=4096).eval()


def story_counts() -> torch.Tensor:
    return token_counts(generate_stories(150), load_tokenizer("stories-4k"))


KINDS = {kind: WORD_PAIRS[kind] for kind in ("he / she", "day / days")}


def statistics(model, pairs=KINDS, seed=0, n_shuffles=200, **options):
    tokenizer = load_tokenizer("stories-4k")
    return similarity_statistics(model, pairs, tokenizer, generator=seeded(seed), n_shuffles=n_shuffles, **options)


def test_without_structure_p_values_are_spread_evenly():
    counts = story_counts()
    one_kind = {"say / said": WORD_PAIRS["say / said"]}
    tables = [statistics(story_model(seed), one_kind, seed, 60, counts=counts).iloc[0] for seed in range(50)]
    for control in ("p_shuffled", "p_matched"):
        p = np.array([table[control] for table in tables])
        assert 0.38 < p.mean() < 0.62, control
        assert (p <= 0.1).mean() < 0.25, control
        assert p.min() < 0.2 < 0.8 < p.max(), control


def test_planted_pairs_are_found_by_both_controls_and_by_rank():
    model, tokenizer = story_model(), load_tokenizer("stories-4k")
    with torch.no_grad():
        for left, right in KINDS["he / she"]:
            near = model.embedding.weight[token_id(left, tokenizer)] + 0.2 * torch.randn(16, generator=seeded())
            model.embedding.weight[token_id(right, tokenizer)] = near
    table = statistics(model, counts=story_counts()).set_index("kind")
    planted, other = table.loc["he / she"], table.loc["day / days"]
    assert planted["p_shuffled"] == planted["p_matched"] == pytest.approx(1 / 201)
    assert planted["cosine"] > 0.9 > 0.4 > planted["shuffled_high"]
    assert planted["low"] > planted["matched_high"]
    assert (planted["rank"], planted["top_10"]) == (1, 1)
    assert min(other["p_shuffled"], other["p_matched"]) > 0.05
    assert other["rank"] > 100


def test_the_numbers_are_those_of_the_pairs_and_the_last_row_pools_the_kinds():
    model, tokenizer = story_model(), load_tokenizer("stories-4k")
    pairs = {"two": (("he", "she"), ("boy", "girl")), "others": (("day", "days"), ("big", "xylophone"), ("up", "down"))}
    table = statistics(model, pairs)
    vectors = token_vectors(model)
    used = [("he", "she"), ("boy", "girl"), ("day", "days"), ("up", "down")]
    ids = torch.tensor([[token_id(word, tokenizer) for word in pair] for pair in used])
    cosines = torch.nn.functional.cosine_similarity(vectors[ids[:, 0]], vectors[ids[:, 1]])
    assert list(table["kind"]) == ["two", "others", "all"]
    assert list(table["pairs"]) == [2, 2, 4]
    assert list(table["left_out"]) == [0, 1, 1]
    wanted = [cosines[:2].mean(), cosines[2:].mean(), cosines.mean()]
    assert list(table["cosine"]) == pytest.approx([float(value) for value in wanted], abs=1e-6)
    assert table["matched"].isna().all()
    assert table["p_matched"].isna().all()
    assert table["p_shuffled"].between(0.15, 1).all()  # of two pairs there are only two orders
    assert statistics(model, pairs).equals(table)
    assert not statistics(model, pairs, seed=1).equals(table)


def test_what_frequency_alone_explains_is_no_evidence_against_equally_frequent_words():
    model, counts = story_model(), torch.arange(4096).flip(0)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[:2048, 0] = 1.0  # the frequent half
        model.embedding.weight[2048:, 1] = 1.0
    frequent = statistics(model, {"x": (("he", "she"), ("was", "were"), ("up", "down"))}, counts=counts).iloc[0]
    assert frequent["cosine"] == frequent["matched"] == frequent["p_matched"] == 1.0


def test_a_shared_direction_raises_every_cosine_and_taking_the_mean_off_undoes_it():
    model = story_model()
    before, centred = statistics(model), statistics(model, centred=True)
    with torch.no_grad():
        model.embedding.weight += 3.0
    assert (statistics(model)["cosine"] > before["cosine"] + 0.5).all()
    assert list(statistics(model, centred=True)["cosine"]) == pytest.approx(list(centred["cosine"]), abs=1e-5)


@pytest.mark.parametrize("family", ["lstm", "transformer"])
def test_the_shipped_models_have_words_that_grammar_links_close_together(family):
    model, tokenizer = shipped(family)
    counts = story_counts()
    table = similarity_statistics(model, WORD_PAIRS, tokenizer, generator=seeded(), counts=counts).set_index("kind")
    assert (table["left_out"] == 0).all()
    assert (table["p_matched"] < 0.01).all()
    assert (table["p_shuffled"] < 0.05).all()
    assert (table.loc["all", ["p_shuffled", "p_matched"]] < 0.002).all()
    vectors = token_vectors(model)
    for pair, kind in ((("he", "she"), "he / she"), (("was", "were"), "was / were"), (("boy", "girl"), "he / she")):
        a, b = (vectors[token_id(word, tokenizer)] for word in pair)
        cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        assert cosine > max(table.loc[kind, "shuffled_high"], table.loc[kind, "matched_high"]), pair
    torch.manual_seed(0)
    untrained = similarity_statistics(build_model(model.config), WORD_PAIRS, tokenizer, generator=seeded())
    assert untrained["p_shuffled"].iloc[-1] > 0.05


def test_unusable_pairs_counts_and_shuffles_are_refused():
    model = story_model()
    for pairs, message in (
        ({}, "there are 0 kinds"),
        ({"x": ()}, "0 of the 0 pairs of kind 'x'"),
        ({"x": (("he", "she"), ("xylophone", "up"))}, "1 of the 2 pairs of kind 'x' are single tokens of 'stories-4k'"),
        ({"x": (("he", "she"), ("up", "up"))}, "pairs 'up' with itself"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics(model, pairs)
    with pytest.raises(ValueError, match="n_shuffles is 0"):
        statistics(model, n_shuffles=0)
    with pytest.raises(ValueError, match=r"counts are \(61,\), not \(4096,\)"):
        statistics(model, counts=torch.ones(61, dtype=torch.long))
    with pytest.raises(ValueError, match="the counts hold 0 words; over 50 are needed"):
        statistics(model, counts=torch.zeros(4096, dtype=torch.long))
    with pytest.raises(ValueError, match="tokens but the model has 61"):
        statistics(build())
