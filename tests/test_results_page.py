"""The page: well-formed, complete, self-contained, and without what it was not asked to show."""

import html.parser
import math
import re
from collections import Counter

import numpy as np
import pytest

from repgls_jax.findings import Vocabulary
from repgls_jax.results import (
    charts,
    compare,
    operating,
    page,
    page_gallery,
    score,
    selective,
    strata,
    table_points,
)
from repgls_jax.results import gallery as gallery_choice

VOCABULARY = Vocabulary("four", 1, ("Edema", "Fracture", "Lung <Lesion>", "Nodule"))
CANARY = "XYZZY canary sentence"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Outline(html.parser.HTMLParser):
    """Checks that every tag is closed in order, and keeps what the tests look at."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "svg":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> out of place at {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)


def outline(text):
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    assert not parsed.open
    return parsed


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 4)) < 0.4).astype(np.int8)
    p = (1 / (1 + np.exp(-rng.normal(size=(60, 4)) - labels))).astype(np.float32)
    labels[:, 1] = 0
    found = score.score(
        p, labels, np.ones((60, 4), bool), [f"p{i // 2}" for i in range(60)], VOCABULARY, replicates=100
    )
    return found | {"report": CANARY, "patient_ids": ["p0-identifier"]}  # what a careless caller might add


def run(results, name="a run", **changes):
    history = [{"step": s, "train/loss": 1 / (s + 1), "note": CANARY} for s in range(500)]
    history += [{"step": 100, "valid/loss": None, "valid/mean_auroc": 0.7}, {"step": 200, "valid/loss": 0.4}]
    info = {"seed": 3, "config": {"model": {"variant": "S/16"}, "long": "y" * 900}, "images": 123456}
    fields = {
        "history": history,
        "info": info,
        "rates": np.array([0.0, 0.5, -0.3]),
        "rate_finding": np.array([0, 0, 2]),
    }
    return page.Run(name, results, **(fields | changes))


def test_the_page_is_whole_and_holds_every_part(results, tmp_path):
    path = tmp_path / "report.html"
    page.write_page(path, "A <title>", [run(results)], "One sentence.")
    text = path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert len(text) < 200_000
    parsed = outline(text)
    said = " ".join(parsed.text)
    for expected in (
        "A <title>",
        "One sentence.",
        *VOCABULARY.findings,
        "model.variant",
        "S/16",
        "123,456",
        "mean auroc",
    ):
        assert expected in said, expected
    assert f"{results['mean']['auroc']['value']:.3f}" in said
    assert "Fracture: 0 positives among 60 labelled images" in said and "1 values not finite" in said
    assert text == page.render("A <title>", [run(results)], "One sentence."), (
        "the page is not a function of its arguments"
    )


def test_every_drawing_has_a_text_alternative_and_every_table_a_caption(results):
    parsed = outline(page.render("t", [run(results)]))
    assert len(parsed.images) >= 9
    for image in parsed.images:
        assert image.get("aria-hidden") == "true" or (image["role"] == "img" and len(image["aria-label"]) > 10)
    assert parsed.tags.count("table") == parsed.tags.count("caption")


def test_the_page_loads_nothing(results):
    text = page.render("t", [run(results)])
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<img|<iframe|\bsrc=|\bon\w+=", text)
    assert "default-src 'none'" in text


def test_report_text_and_identifiers_do_not_reach_the_page(results):
    text = page.render("t", [run(results)])
    assert CANARY not in text and "p0-identifier" not in text
    for info in ({"report": CANARY}, {"sample": {"Impression": [CANARY]}}, {"rows": {"a": {"text": CANARY}}}):
        with pytest.raises(ValueError, match="never shows report text") as refused:
            page.render("t", [run(results, info=info)])
        assert CANARY not in str(refused.value)
    assert "y" * page.LONGEST not in text


def test_runs_stand_side_by_side(results):
    text = page.render("t", [run(results, "first"), run(results, "second", history=(), info={}, rates=None)])
    outline(text)
    assert text.count('class="legend"') == 4 and "line s1" in text
    assert text.count("Fracture: 0 positives") == 1
    other = results | {"vocabulary": results["vocabulary"] | {"findings": ["Edema"]}}
    with pytest.raises(ValueError, match="run 'other' holds the findings"):
        page.render("t", [run(results), run(other, "other")])
    with pytest.raises(ValueError, match="no runs"):
        page.render("t", [])


def test_rates_need_their_findings(results):
    with pytest.raises(ValueError, match=r"rates have the shape \(3,\), rate_finding None"):
        page.render("t", [run(results, rate_finding=None)])


def test_few_positives_are_a_warning(results):
    row = results["findings"]["Edema"] | {"n": 50, "positives": 48}
    changed = results | {"findings": results["findings"] | {"Edema": row}}
    assert "Edema: only 2 negatives among 50 labelled images." in page.warnings(changed)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.92), (-3, 1999), (5, 5), (0, 0), (1e-9, 3e-9)])
def test_ticks_are_round_and_span_the_data(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_thinning_keeps_spikes_and_ends():
    y = np.zeros(10_000)
    y[4321], y[7777], y[50] = 9.0, -9.0, math.nan
    small = charts.thin(charts.Line(np.arange(10_000), y))
    assert len(small.x) <= 2 * charts.MOST_BUCKETS + 2
    assert {0, 4321, 7777, 9999} <= set(small.x)


def test_a_chart_without_a_finite_value_says_so():
    assert "no finite value" in charts.series([charts.Line([0, 1], [math.nan, math.inf])], "loss")


def thorough(results, labels, p, seed=0):
    """The results of an evaluation job: operating points, selective risk and strata beside the scores."""
    mask, patient, findings = np.ones(p.shape, bool), np.arange(60) // 2, VOCABULARY.findings
    chosen = operating.choose(p, labels, mask, findings)
    rules = {
        rule: operating.measure(p, labels, mask, patient, each, findings, patients=30, replicates=50)
        for rule, each in chosen.items()
    }
    rate = np.random.default_rng(seed).random(p.shape)
    levels = {"sex <b>": strata.by_name(["F", "M<i>", ""] * 20)}
    ids = [f"p{i}" for i in patient]
    return results | {
        "operating": {"thresholds": "chosen <here>", "rules": rules},
        "selective": selective.measure(p, rate, labels, mask, chosen["youden"], findings),
        "strata": strata.measure(p, labels, mask, ids, VOCABULARY, levels, chosen["youden"], replicates=50),
    }


def card(**changes):
    fields = {"png": "iVBORw0KGgo=", "finding": "Lung <Lesion>", "probability": 0.91, "rate": 0.2, "label": 0}
    return page_gallery.Card(**(fields | {"wording": "hedged", "certainty": 0.4} | changes))


def test_every_part_of_an_evaluation_is_shown_and_the_page_stays_whole(results):
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 4)) < 0.4).astype(np.int8)
    p = (1 / (1 + np.exp(-rng.normal(size=(60, 4)) - labels))).astype(np.float32)
    other = np.clip(p + 0.1 * rng.random(p.shape), 0, 1).astype(np.float32)
    labels[:, 1] = 0
    full = [thorough(results, labels, one) for one in (p, other)]
    ids, mask = [f"p{i // 2}" for i in range(60)], np.ones(p.shape, bool)
    found = compare.paired(p, other, labels, mask, ids, VOCABULARY, replicates=50)
    found |= {"first": "a <run>", "second": "another", "reference": "truth", "split": "test"}
    gallery = page_gallery.Gallery([card()], [card(label=1, certainty=None)], [card(label=None, wording="")])
    text = page.render("t", [run(full[0], "a <run>"), run(full[1], "another")], "", gallery, found)
    parsed = outline(text)
    for part in ("comparison", "points", "risk", "strata", "gallery"):
        assert f'id="{part}"' in text and f'href="#{part}"' in text
    assert parsed.tags.count("table") == parsed.tags.count("caption")
    for image in parsed.images:
        assert image.get("aria-hidden") == "true" or (image["role"] == "img" and len(image["aria-label"]) > 10)
    said = " ".join(parsed.text)
    for expected in ("chosen <here>", "M<i>", "By sex <b>", "labelled absent", "no report", "no label"):
        assert expected in said, expected
    assert "report: hedged (certainty 0.40)" in said and "identifiers of films only if they were asked for" in said
    shown = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,iVBORw0KGgo=">', text)
    assert len(shown) == 3 and text.count("<img") == 3 and "img-src data:" in text
    rest = re.sub(r"<img[^>]*>", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe|\bsrc=|\bon\w+=", rest)
    assert CANARY not in text and "p0-identifier" not in text
    markdown = table_points.format_markdown(full[0])
    assert "**f1**" in markdown and "none" in markdown and "nan" not in markdown
    assert table_points.format_comparison(found).count("\n") == 9
    assert any("youden" in line for line in table_points.brief(full[0]))


def test_a_gallery_shows_a_film_once_and_several_findings():
    rng = np.random.default_rng(2)
    p, labels = rng.random((50, 4)), (rng.random((50, 4)) < 0.5).astype(np.int8)
    p[:, 1] = np.where(labels[:, 1] == 1, 0.0, 1.0)  # the worst of all are of one finding
    mask = rng.random((50, 4)) < 0.9
    alarms, misses = gallery_choice.errors(p, labels, mask, 6)
    for pairs, label, order in ((alarms, 0, -1), (misses, 1, 1)):
        assert len(pairs) == 6 and all(mask[i, j] and labels[i, j] == label for i, j in pairs)
        values = [order * p[i, j] for i, j in pairs]
        assert values == sorted(values)
        assert max(Counter(j for _, j in pairs).values()) == 2
    images = [i for i, _ in alarms + misses]
    assert len(set(images)) == 12
    alone = gallery_choice.errors(p[:, [1]], labels[:, [1]], mask[:, [1]], 6)
    assert [len(pairs) for pairs in alone] == [6, 6]
    rate = rng.random((50, 4))
    first, *_ = hedged = gallery_choice.hedged(rate, 5)
    assert len(hedged) == 5 and rate[first] == rate.max()
    assert gallery_choice.errors(p[:3], labels[:3], mask[:3] & False, 6) == ([], [])
