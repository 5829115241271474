"""The RGN: what it reads, its monotone map, its guidance, and the sentences and features that it learns from."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repgls_jax import losses, rates
from repgls_jax.data import cue_sentences, language, wording
from repgls_jax.evidence import rate_check, reliability
from repgls_jax.findings import CHEXPERT
from repgls_jax.models import rgn, tokens
from repgls_jax.phantom import phrases
from repgls_jax.reports import expressions as expressions_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.train import unseen


def reading(n: int = 2, c: int = 3, length: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, tokens.BUCKETS, (n, length, tokens.SUBWORDS)).astype(np.uint16)
    span = np.zeros((n, c, 2), np.int32)
    span[:, 0], span[:, 1] = (0, 8), (8, 14)  # the third finding is not mentioned
    zeros = np.zeros((n, c), np.int32)
    made = {"words": ids, "span": span, "state": zeros - 2}
    return made | dict.fromkeys(("mention", "side", "cue", "section"), zeros)


def test_rgn_reads_only_the_sentence_about_a_finding():
    # Without blocks over the words and with a neighbourhood of two, a word far outside the sentence cannot matter.
    net = rgn.build(3, depth=0, width=16, heads=2, dropout=0.0, monotone=False)
    batch = reading()
    params = jax.jit(net.init)(jax.random.key(0), batch)["params"]

    def rate(embedding):
        return net.apply({"params": params | {"words": {"embedding": embedding}}}, batch).rate[0, 0]

    grad = jax.jit(jax.grad(rate))(params["words"]["embedding"])
    used = set(np.nonzero(np.any(np.asarray(grad), axis=1))[0])
    inside, outside = set(batch["words"][0, :10].ravel()), set(batch["words"][0, 10:].ravel())
    assert used <= inside and used & inside and not used & (outside - inside)
    rates = jax.jit(net.apply)({"params": params}, batch).rate
    assert rates.shape == (2, 3) and np.all(np.abs(rates) < 1)


def test_rgn_withholds_evidence_in_training_only():
    net = rgn.build(3, width=16, heads=2, evidence=True, evidence_dropout=1.0, dropout=0.0, word_dropout=0.0)
    batch = reading()
    params = jax.jit(net.init)(jax.random.key(0), batch)["params"]
    told = batch | {"state": batch["state"] + 3}

    apply = jax.jit(net.apply, static_argnames="train")

    def certainty(b, train):
        return apply({"params": params}, b, train=train, rngs={"dropout": jax.random.key(1)}).p

    np.testing.assert_array_equal(certainty(batch, True), certainty(told, True))
    assert np.any(np.asarray(certainty(batch, False)) != np.asarray(certainty(told, False)))


def test_guidance_against_numpy():
    rng = np.random.default_rng(0)
    predicted, expert = rng.uniform(-1, 1, (2, 6, 3))
    weight = rng.integers(0, 2, (6, 3)).astype(float)
    got = rgn.guidance(jnp.float32(predicted), jnp.float32(expert), jnp.float32(weight), 0.1, 2.0, jnp.int32(2))
    error = np.abs(predicted - expert)
    huber = np.where(error < 0.1, error**2 / 0.2, error - 0.05)
    fit = (huber * weight).sum() / weight.sum()
    terms = []
    for i in range(6):
        j = (i - 2) % 6
        for k in range(3):
            if weight[i, k] and weight[j, k] and expert[i, k] > expert[j, k]:
                half = (expert[i, k] - expert[j, k]) / 2
                terms.append(max(0.0, half - (predicted[i, k] - predicted[j, k])))
    mean = {name: float(losses.masked_mean(term.values, term.mask)) for name, term in got.items()}
    assert mean == {"huber": pytest.approx(fit, rel=1e-5), "ordering": pytest.approx(np.mean(terms), rel=1e-5)}
    assert {name: term.weight for name, term in got.items()} == {"huber": 1.0, "ordering": 2.0}


def test_perfect_rates_cost_nothing():
    expert = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (6, 3)))
    got = rgn.guidance(expert, expert, jnp.ones((6, 3)), 0.1, 1.0, jnp.int32(1))
    assert all(float(losses.masked_sum(term.values, term.mask)[0]) == 0.0 for term in got.values())


def test_words_share_pieces_and_hold_no_text():
    a, b, other = (set(tokens.subwords(w)) for w in ("suspicion", "suspicious", "borderline"))
    assert len(a & b) >= 5 and len(a & other) <= 2
    assert all(0 < piece < tokens.BUCKETS for piece in a | b | other)
    assert tokens.words("No definite effusion.") == [("no", 0), ("definite", 3), ("effusion", 12), (".", 20)]
    assert len(tokens.subwords("pneumomediastinum")) == tokens.SUBWORDS


@given(
    hnp.arrays(np.float32, rgn.KNOTS - 1, elements=st.floats(-30, 30, width=32)),
    st.floats(-5, 5, width=32),
    hnp.arrays(np.float32, 50, elements=st.floats(0, 1, width=32)),
)
@settings(deadline=None, max_examples=50)
def test_the_map_never_rises_whatever_its_parameters(steps, top, q):
    got = rgn.expert_map(jnp.asarray(np.sort(q)), jnp.asarray(steps), jnp.float32(top))
    assert np.all(np.diff(got) <= 1e-6)


def test_the_map_starts_as_the_experts():
    q = np.linspace(0, 1, 201)
    got = rgn.expert_map(jnp.asarray(q), *map(jnp.asarray, rgn.expert_steps()))
    expected = np.where(q < 0.5, rates.R_MAX, rates.hedge_rate(q))
    np.testing.assert_allclose(got, expected, atol=0.03)  # tanh bends between the knots
    np.testing.assert_allclose(got[::10], expected[::10], atol=1e-5)


def test_a_surer_reading_on_the_same_side_has_no_larger_rate():
    net, batch = rgn.build(3, width=16, heads=2), reading(40)
    batch["side"] = np.random.default_rng(1).integers(0, 2, (40, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(0), batch)["params"]
    random = np.random.default_rng(2)
    params = jax.tree.map(lambda x: jnp.float32(random.normal(0, 1, x.shape)), shapes)
    got = jax.jit(net.apply)({"params": params}, batch)
    q = np.where(batch["side"] == 1, got.p, 1 - got.p).ravel()
    order = np.argsort(q)
    assert np.ptp(q) > 0.5 and np.all(np.diff(np.ravel(got.rate)[order]) <= 1e-5)


@pytest.mark.parametrize("english", [(), expressions_lib.load()], ids=["cues alone", "with expressions"])
def test_made_sentences_say_what_their_evidence_says(english):
    lexicon = lexicon_lib.load()
    reports, evidence = cue_sentences.make(lexicon, CHEXPERT, 60, 3, expressions=english)
    texts = {row["study_id"]: row["report"] for row in reports.to_pylist()}
    names = {k: v["names"] for k, v in lexicon_lib.vocabulary_texts().items()}
    expressed = {one.text: one.p for one in english}
    rows = evidence.to_pylist()
    assert np.mean([row["cue"] in expressed for row in rows]) > 0.3 or not english
    assert 0.05 < np.mean([row["cue"] == "" for row in rows]) < 0.3
    for row in rows:
        sentence = texts[row["study_id"]][row["start"] : row["end"]]
        assert sentence.endswith(".") and "." not in sentence[:-1]
        cue = row["cue"]
        meant = 1.0 if not cue else lexicon.cues[cue].p if cue in lexicon.cues else expressed[cue]
        assert row["p"] == pytest.approx(meant)
        if cue in expressed:
            before, after = cue.split(expressions_lib.SLOT)
            assert sentence.index(before.strip()) <= row["mention"] - row["start"]
            assert after in sentence[row["mention_end"] - row["start"] :]
        assert names[row["finding"]] and texts[row["study_id"]][row["mention"] : row["mention_end"]] in sentence
    assert cue_sentences.make(lexicon, CHEXPERT, 60, 3, expressions=english)[0].equals(reports)
    assert not cue_sentences.make(lexicon, CHEXPERT, 60, 4, expressions=english)[0].equals(reports)


def test_expressions_cover_every_certainty_and_are_held_out_by_content():
    known = expressions_lib.load()
    p = np.array([one.p for one in known])
    assert len(known) > 900 and min(np.histogram(p, 5, (0, 1))[0]) > 150
    forms = lexicon_lib.load().forms
    some = [
        expressions_lib.Expression(text, 0.5) for text in ("there is {x}, no doubt", "i doubt it is {x}", "it is {x}")
    ]
    kept = expressions_lib.without(some, [["no", "doubt"]], forms)
    assert [one.text for one in kept] == ["i doubt it is {x}", "it is {x}"]
    assert expressions_lib.without(some, [["a", "doubt"]], forms) == (some[2],)
    # A wording of empty words alone is held out as it stands.
    assert expressions_lib.content(["it", "is"], forms) == {"it", "is"}


@pytest.mark.parametrize(
    "row", ["no place,.5", "{x} or {x},.5", "maybe {x},1.5", "maybe {x},", "may {x},.5\nmay {x},.4"]
)
def test_expressions_that_cannot_be_used_are_named(tmp_path, row):
    path = tmp_path / "own.csv"
    path.write_text(f"expression,p\n{row}\n")
    with pytest.raises(ValueError, match=r"own.csv, line [23]: .* expected one"):
        expressions_lib.load(path)


def test_cues_of_a_fold_are_not_trained_on():
    lexicon = lexicon_lib.load()
    ids = [cue.id for cue in cue_sentences.cues(lexicon)]
    dealt = unseen.folds(ids, 5, 0)
    assert (
        sorted(cue for fold in dealt for cue in fold) == sorted(ids)
        and max(map(len, dealt)) - min(map(len, dealt)) <= 1
    )
    rest = set(ids) - set(dealt[0])
    told = set(cue_sentences.make(lexicon, CHEXPERT, 300, 0, rest)[1].column("cue").to_pylist())
    assert told <= rest | {""} and len(told) > 200
    _, evidence, found = unseen.rare_phrases(CHEXPERT)
    rare = {phrase.cue for phrase in phrases.HEDGES if not phrase.common}
    assert set(evidence.column("cue").to_pylist()) == rare and found <= set(lexicon.cues)
    assert any("likelihood" in cue or "conceivabl" in cue for cue in found)


def test_rank_correlation_has_an_interval():
    ours = np.arange(30.0)
    value, low, high = unseen.spearman(ours, ours + np.random.default_rng(0).normal(0, 8, 30), 200, 0)
    assert low < value < high <= 1
    assert unseen.spearman(ours, ours, 50, 0)[0] == 1.0
    assert np.isnan(unseen.spearman(ours[:2], ours[:2], 50, 0)[0])


def test_wordings_are_joined_and_padded():
    made = [cue_sentences.make(lexicon_lib.load(), CHEXPERT, n, n) for n in (4, 6)]
    ours, theirs = wording.read(*made[0], CHEXPERT, 160, 0.1), wording.read(*made[1], CHEXPERT, 64, 0.1)
    both = ours.joined(theirs)
    assert len(both.study_ids) == 10 and ours.arrays["words"].shape[1] % 16 == 0
    length = theirs.arrays["words"].shape[1]
    np.testing.assert_array_equal(both.arrays["words"][4:, :length], theirs.arrays["words"])
    assert not both.arrays["words"][4:, length:].any()
    np.testing.assert_array_equal(both.expert, np.concatenate([ours.expert, theirs.expert]))
    np.testing.assert_array_equal(ours.arrays["side"], ours.p >= 0.5)


def test_features_of_words_are_the_means_of_their_tokens():
    offsets = np.array([[0, 0], [0, 2], [2, 6], [6, 13], [0, 0]])  # special, "no", " def", "inite x", special
    hidden = np.arange(10.0).reshape(5, 2)
    got = language.words_of("no definite x", offsets, hidden)
    np.testing.assert_allclose(got, [hidden[1], (hidden[2] + hidden[3]) / 2, hidden[3]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with random weights, saved as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    (folder / "vocab.txt").write_text("\n".join([*pieces, *"abcdefghijklmnopqrstuvwxyz", ".", ",", "/"]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_features_of_a_language_model_reach_the_network(bert):
    made = cue_sentences.make(lexicon_lib.load(), CHEXPERT, 5, 0)
    encode, identity = language.load(bert, batch_size=2)
    table = language.compute(*made, encode, identity, 8, 0)
    assert len(identity) == 64 and language.dims_of(table) == 8 and table.num_rows == 15
    # The batch that a sentence was in does not matter, nor does the order of the reports.
    again = language.compute(made[0].take(pa.array([4, 3, 2, 1, 0])), made[1], language.load(bert, 64)[0], "", 8, 0)
    for (place, ours), (other, theirs) in zip(language.sentences(table), language.sentences(again), strict=True):
        assert place == other
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), atol=4e-3)
    read = wording.read(*made, CHEXPERT, 64, 0.1, features=table)
    real = read.arrays["words"].any(2)
    assert read.arrays["features"].shape == (*real.shape, 8) and read.arrays["features"].dtype == np.float16
    assert not read.arrays["features"][~real].any() and read.arrays["features"][real].any(-1).all()
    net = rgn.build(len(CHEXPERT), width=16, heads=2, features=8)
    params = jax.jit(net.init)(jax.random.key(0), read.arrays)["params"]
    blank = read.arrays | {"features": 0 * read.arrays["features"]}
    assert np.any(np.asarray(net.apply({"params": params}, read.arrays).p != net.apply({"params": params}, blank).p))
    with pytest.raises(ValueError, match=r"expected \d+ words; run data_prep/language_features.py again"):
        wording.read(*made, CHEXPERT, 64, 0.1, features=table.slice(1))


def test_a_folder_without_weights_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        language.load(tmp_path)


def test_rates_beside_codes_are_counted():
    rate = np.array([0.0, 0.01, -0.3, 0.3, 0.9, 0.95])
    agrees = np.array([True, True, False, True, False, True])
    rows = rate_check.by_confidence(rate, agrees)
    assert [(row["low"], row["n"], row["agree"]) for row in rows] == [(0.0, 2, 1.0), (0.2, 2, 0.5), (0.8, 2, 0.5)]
    assert rows[1]["confidence"] == pytest.approx(0.85)
    low, high = reliability.jeffreys(np.array(1), np.array(2))
    assert (rows[2]["from"], rows[2]["to"]) == (pytest.approx(low), pytest.approx(high))
    told = rate_check.described(["b", "a", "b"], np.array([0.2, 0.5, 0.4]))
    assert [(row["name"], row["n"]) for row in told] == [("b", 2), ("a", 1)]
    assert told[0]["mean"] == pytest.approx(0.3) and told[0]["quantiles"][2] == pytest.approx(0.3)
    drawn = rate_check.figure([("expert", rows), ("RGN", rows)])
    assert drawn.startswith("<svg") and drawn.count("<circle") == 6
