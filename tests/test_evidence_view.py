"""Reports as they were read: every mark where the evidence is, nothing that steers a terminal or a browser."""

import html.parser
import itertools
import os
import pathlib
import pty
import re
import subprocess
import sys
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import studies, terminal, view, view_page
from repgls_jax.extraction import run as extract_lib
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports import resolve, scope

ROOT = pathlib.Path(__file__).parents[1]
ENGINE = engine_lib.Engine(findings_lib.UNION)
CANARY = "zebrafinch"
HOSTILE = (
    f"{CANARY} <script>alert(\"x\")</script> & 'quotes'. \x1b[31mNo effusion.\x07\x00 \x9b2J \u202eedema\u202c. "
    "\u200bPossible \u2066mass\u2069. \ud800 </span><img src=x onerror=alert(1)>\x85 No pneumothorax.\rLate\x7f"
)
REPORT = {
    "study_id": "s1",
    "findings": "There is a hazy opacity, which may represent atelectasis. No pleural effusion. Lungs are clear.",
    "impression": "HISTORY: Rule out pneumonia.\nIMPRESSION: Possible small left pleural effusion.",
}

PHRASES = ["No effusion.", "Possible edema.", "Lungs are clear.", "IMPRESSION:", "HISTORY: mass.\n\n", "Nodule.", "\n"]
PHRASES += ["Effusion or mass,", "likely pneumonia", "no large effusion", "\x1b[2J", "\u202e", "<b>", "\x00", "\t", "é"]
TEXTS = st.lists(st.sampled_from(PHRASES), max_size=12).map(" ".join)


def covered(pieces, kind, k):
    return "".join(piece.text for piece in pieces if k in getattr(piece, kind))


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_pieces_hold_the_whole_text_and_marks_cover_exactly_their_words(findings, impression):
    report = {"study_id": "s", "findings": findings, "impression": impression}
    study = view.live(report, ENGINE)
    for field in ("findings", "impression"):
        text = report[field]
        assert "".join(p.text for p in study.fields.get(field, [])) == (view.visible(text) if text.strip() else "")
        pieces = study.fields.get(field, [])
        marks = {k: r for k, r in enumerate(study.readings) if r.field == field and r.number}
        for k, reading in marks.items():
            assert covered(pieces, "mentions", k) == view.visible(text[slice(*reading.mention)])
            cue = text[slice(*reading.cue_span)] if reading.cue_span[0] >= 0 else ""
            assert covered(pieces, "cues", k) == view.visible(cue)
            if reading.decides:
                lit = "".join(p.text for p in pieces if p.deciding)
                assert view.visible(text[slice(*reading.sentence)]) in lit
        for groups in ("opens", "closes"):
            assert sorted(k for p in pieces for group in getattr(p, groups) for k in group) == sorted(marks)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_readings_are_the_decisions_and_all_other_candidates(findings, impression):
    report = {"study_id": "s", "findings": findings, "impression": impression}
    readings = view.live(report, ENGINE).readings
    decided = {(r.finding, r.state, r.p, r.cue, r.mention) for r in readings if r.decides}
    key = [(e.finding, e.state, e.p, e.cue, (e.mention_start, e.mention_end)) for e in ENGINE.read(report)]
    assert decided == set(key) and sum(r.decides for r in readings) == len(key)
    found = {(e.finding, e.field, e.mention_start, e.mention_end) for e in ENGINE.candidates(report)}
    assert {(r.finding, r.field, *r.mention) for r in readings if not r.derived} == found
    numbers = [r.number for r in readings if r.number]
    assert len(set(numbers)) == len(numbers)
    assert all(bool(r.why) != r.decides for r in readings)


def evidence(p, section, weak, finding="Edema"):
    return resolve.Evidence(finding, p, "", section, section, 0, 1, 0, 1, -1, -1, weak)


CLAIMS = {
    "the impression wins": lambda e, d: (e.section, d.section) == ("findings", "impression"),
    "sign or a qualified negation yields": lambda e, d: e.state == 0 != d.state and e.section == "impression",
    "yields to the finding's own name": lambda e, d: e.weak > d.weak,
    "a weaker word in the impression": lambda e, d: e.section == "impression" and e.p < d.p,
    "outweighs a negation": lambda e, d: e.state == 0 != d.state and e.section == d.section,
    "a hedged sign says nothing": lambda e, d: e.weak == scope.SIGN and e.p < 1 and d.weak < scope.SIGN,
    "the stronger claim wins": lambda e, d: d.p > e.p and e.section == d.section,
    "agrees": lambda e, d: e.state == d.state,
}


def test_reasons_are_true_of_every_pair_that_the_engine_can_decide():
    """All pairs of readings, decided by the engine's own rules; every reason occurs, and holds where it is given."""
    said = set()
    readings = [
        evidence(p, section, weak, finding)
        for p in (0.0, 0.05, 0.3, 0.5, 0.8, 1.0)
        for section in ("findings", "impression")
        for weak in (scope.PLAIN, scope.QUALIFIED, scope.SIGN)
        for finding in ("Edema", "Lung Opacity")
    ]
    for pair in itertools.permutations(readings, 2):
        if pair[0].finding == pair[1].finding:
            decision = resolve.resolve(pair)
            other = pair[0] if decision is pair[1] else pair[1]
            reason = view.why(other, decision)
            claim = next(name for name in CLAIMS if name in reason)
            assert CLAIMS[claim](other, decision), (other, decision, reason)
            said.add(claim)
    assert said == set(CLAIMS)


def test_sections_that_do_not_count_are_told_from_headings():
    text = "IMPRESSION: Mass.\nHISTORY: Fever, edema.\nFINDINGS: No effusion."
    pieces = view.live({"study_id": "s", "report": text}, ENGINE).fields["report"]
    kinds = {kind: [p.text for p in pieces if p.kind == kind] for kind in ("read", "heading", "ignored")}
    assert kinds["ignored"] == ["HISTORY: Fever, edema."]
    assert kinds["heading"] == ["IMPRESSION:", "FINDINGS:"]
    assert "Mass" in kinds["read"] and "effusion" in kinds["read"]


def test_plain_terminal_text_tells_everything_without_colour():
    shown = "\n".join(terminal.lines(view.live(REPORT, ENGINE), 200, colour=False))
    number = {r.finding: r.number for r in view.live(REPORT, ENGINE).readings if r.decides}
    effusion, atelectasis = number["Pleural Effusion"], number["Atelectasis"]
    assert f"_Possible_ small left [pleural effusion ?{effusion}]" in shown
    assert f"_No_ [pleural effusion -{effusion}a]" in shown
    assert f"_which may represent_ [atelectasis ?{atelectasis}]" in shown
    assert f"[Lungs are clear -{number['Lung Opacity']}a -{number['Consolidation']}]" in shown
    assert "{HISTORY: Rule out pneumonia.}" in shown
    assert "overruled: the impression wins over the findings" in shown
    assert "\x1b" not in shown


def printed(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(40, 120))
def test_lines_fit_the_width_and_styles_are_the_only_escapes(text, width):
    study = view.live({"study_id": "s\x1b", "report": text + HOSTILE + "x" * 150 + "漢字" * 40}, ENGINE)
    for colour in (True, False):
        for line in terminal.lines(study, width, colour):
            bare = printed(line) if colour else line
            assert not [c for c in bare if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
            assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in bare) <= width


class Page(html.parser.HTMLParser):
    """Tags, ids, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.names, self.text = set(), [], [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def test_a_hostile_report_stays_text_in_the_page():
    reports = [{"study_id": f'<i>{i}\x1b"', "report": HOSTILE} for i in range(3)]
    text = view_page.render([view.live(report, ENGINE) for report in reports])
    text.encode("utf-8")  # no lone surrogate is left
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "object", "link"}
    assert not [name for name in page.names if name.startswith("on")]
    assert '<script>alert("x")</script>' in page.text and "<img src=x onerror=alert(1)>" in page.text
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert "default-src 'none'" in text and not re.search(r"https?:|url\(|@import", text)
    assert len(page.ids) == len(set(page.ids)) and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "\u27e8U+202E\u27e9" in page.text and "\u241b" in page.text


def test_the_page_is_the_owners_alone_even_where_a_public_file_was(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    path.chmod(0o644)
    view_page.write(path, [view.live(REPORT, ENGINE)])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_mark_tells_finding_p_and_cue():
    text = view_page.render([view.live(REPORT, ENGINE)])
    assert re.search(r"pleural effusion<span class=\"tip\".*?Pleural Effusion</b> uncertain, p 0.50, possible:", text)


def write_reports(path, reports):
    names = ("study_id", "findings", "impression")
    lines = [",".join(names)]
    lines += [",".join('"' + report[name].replace('"', '""') + '"' for name in names) for report in reports]
    path.write_bytes("\n".join(lines).encode())
    return path


@pytest.fixture
def files(tmp_path):
    """Reports, and their evidence."""
    other = {"study_id": "s2", "findings": f"{CANARY}. Emphysema is likely.", "impression": ""}
    empty = {"study_id": "s3", "findings": "", "impression": ""}
    reports = write_reports(tmp_path / "r.csv", [REPORT, other, empty])
    extract_lib.extract(reports, tmp_path / "e.parquet", findings_lib.UNION)
    return reports, tmp_path / "e.parquet"


def test_stored_evidence_marks_what_the_engine_decided(files):
    reports = studies.choose(files[0], None, 20)
    assert [r["study_id"] for r in reports] == ["s1", "s2", "s3"]
    for live, stored in zip(studies.live(reports, findings_lib.UNION), studies.stored(reports, files[1]), strict=True):
        for one, two in zip([r for r in live.readings if r.decides], stored.readings, strict=True):
            assert one.p == pytest.approx(two.p)
            for name in ("finding", "state", "cue", "section", "field", "sentence", "mention", "cue_span", "words"):
                assert getattr(one, name) == getattr(two, name)


def test_a_study_that_the_file_lacks_is_not_called_silent(files):
    other = {"study_id": "s9", "findings": "Possible edema.", "impression": ""}
    said = "the evidence file has no row of this study"
    for shown, there in ((studies.stored([other], files[1]), True), (studies.live([other], findings_lib.NIH), False)):
        assert (said in "\n".join(terminal.lines(shown[0], 80, False))) is there
        assert (said in view_page.render(shown).lower()) is there


def test_changed_reports_and_damaged_rows_are_refused_without_their_text(files, tmp_path):
    reports = studies.choose(files[0], "s2", 20)
    changed = [{**reports[0], "findings": reports[0]["findings"] + " Mass."}]
    with pytest.raises(ValueError, match="the reports changed") as error:
        studies.stored(changed, files[1])
    assert "s2" in str(error.value) and CANARY not in str(error.value)
    table = pq.read_table(files[1])
    damage = {"mention_end": 10_000, "cue_start": -5, "start": -1, "p": 7.0, "state": 4, "field": "x", "cue": None}
    for column, value in damage.items():
        field = table.schema.field(column)
        values = pa.array([value] * table.num_rows, field.type)
        wrong = table.set_column(table.schema.get_field_index(column), field, values)
        pq.write_table(wrong, tmp_path / "wrong.parquet")
        with pytest.raises(ValueError, match="s2") as error:
            studies.stored(reports, tmp_path / "wrong.parquet")
        assert CANARY not in str(error.value)


def test_an_evidence_file_of_another_version_or_none_is_refused(files, tmp_path):
    reports = studies.choose(files[0], "s2", 20)
    table = pq.read_table(files[1])
    pq.write_table(table.drop_columns(["cue_end"]), tmp_path / "old.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "bare.parquet")
    (tmp_path / "text.parquet").write_text(CANARY)
    for name, said in {"old": "cue_end", "bare": "vocabulary", "text": "not a Parquet"}.items():
        with pytest.raises(ValueError, match=said) as error:
            studies.stored(reports, tmp_path / f"{name}.parquet")
        assert CANARY not in str(error.value)
    with pytest.raises(FileNotFoundError, match="extract_uncertainty"):
        studies.stored(reports, tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no readable report of the study 'nobody'"):
        studies.choose(files[0], "nobody", 20)


def command(*options):
    return [sys.executable, str(ROOT / "data_prep" / "show_report.py"), *options]


def in_terminal(arguments, **environment):
    """What a command writes to a terminal."""
    outer, inner = pty.openpty()
    with subprocess.Popen(arguments, stdout=inner, env={**os.environ, "TERM": "xterm", **environment}) as process:
        os.close(inner)
        said = b""
        while True:
            try:
                said += (chunk := os.read(outer, 65536))
            except OSError:  # how Linux says that the other end is closed
                break
            if not chunk:
                break
    os.close(outer)
    assert process.returncode == 0
    return said.decode()


@pytest.mark.slow
def test_the_command_colours_terminals_only_and_writes_pages(files, tmp_path):
    options = ["--text=No effusion. Possible \x1b[2Jedema.", "--findings=chexpert"]
    coloured = in_terminal(command(*options))
    assert "\x1b[38;5;" in coloured and "\x1b[2J" not in coloured and "\u241b[2J" in coloured
    assert "\x1b" not in in_terminal(command(*options), NO_COLOR="1")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    piped = subprocess.run(command(*options), capture_output=True, text=True, check=True, env=environment)
    assert "\x1b" not in piped.stdout and "[effusion -" in piped.stdout and "\\u241b" in piped.stdout
    page = tmp_path / "page.html"
    names = [f"--reports={files[0]}", f"--evidence={files[1]}", f"--html={page}"]
    wrote = subprocess.run(command(*names), capture_output=True, text=True, check=True)
    assert "holds report text" in wrote.stdout and CANARY not in wrote.stdout + wrote.stderr
    assert CANARY in page.read_text()
    named = subprocess.run(command(*names[:2], f"--html={files[0]}"), capture_output=True, text=True, check=False)
    assert named.returncode == 1 and "must end in .html" in named.stderr and CANARY in files[0].read_text()
    with subprocess.Popen(command(names[0]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as "| true" does
        assert (process.wait(60), process.stderr.read()) == (0, "")
    wrong = subprocess.run(command("--reports=none.csv"), capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and wrong.stderr.startswith("show_report: reports file none.csv does not exist")
