"""Training on several data sets from the config: what is masked, resuming, records, and entries that are wrong."""

import itertools
import json
import pathlib
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from repgls_jax import checks, mixture, phantom, policies, workflow
from repgls_jax.data import mix, pipeline, shards
from repgls_jax.evaluation import subjects
from repgls_jax.findings import CHEXPERT, NIH
from repgls_jax.losses import masked_mean
from repgls_jax.results import page
from repgls_jax.train import luvit, parts
from repgls_jax.train.journal import Journal

GET = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "luvit.py"))["get_config"]
SILENT = Journal(stream=None)
MASKED = [f for f in CHEXPERT.findings if f not in NIH.findings]


def config(also, arguments="policy=expert"):
    made = GET(f"size=test,{arguments}")
    made.data.options.count = 120
    made.data.also = also
    made.train.checkpoint_every = 4
    return made


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A user's folder: phantom films with a label column for each of three findings, and notes for half of them."""
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for i in range(40):
        study = phantom.generate(phantom.PhantomConfig(seed=9), i)
        Image.fromarray(study["image"]).save(folder / f"{i}.png")
        note = " ".join(study[f] for f in ("findings", "impression", "report")) if i % 2 else ""
        truth = dict(zip(CHEXPERT.findings, study["truth"].tolist(), strict=True))
        labels = {"Effusion": truth["Pleural Effusion"], "Edema": truth["Edema"], "Hernia": i % 3 == 0}
        row = {
            "image": f"{i}.png",
            "patient": str(i),
            "notes": note,
            "split": ("train", "train", "valid", "test")[i % 4],
        }
        rows.append(row | {name: int(value) for name, value in labels.items()})
    pa.csv.write_csv(pa.Table.from_pylist(rows), folder / "films.csv")
    return folder


def entry(films, notes="", **fields):
    options = {"source": str(films), "findings": "nih", "columns": {"report": notes}}
    return {"dataset": "table", "options": options, **fields}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(root, films):
    return workflow.run(config({"mine": entry(films, weight=2)}), root, SILENT)


def losses(folder):
    return [(e["step"], e["loss"]) for e in Journal(folder / "journal.jsonl", None).read("train")]


@pytest.mark.slow
def test_both_sets_are_trained_on_and_the_first_is_scored(done):
    assert list(done) == ["data", "evidence", "data:mine", "luvit", "evaluation"]
    images = done["data"].summary["train"] + done["data:mine"].summary["train"]
    assert done["luvit"].summary["train_images"] == images
    assert len(losses(done["luvit"].folder)) == done["luvit"].summary["steps"] == round(2 * images / 32)
    predicted = pq.read_table(done["evaluation"].folder / "predictions.parquet")
    assert predicted.num_rows == done["data"].summary["test"] * len(CHEXPERT)
    assert set(predicted.column("finding").to_pylist()) == set(CHEXPERT.findings)


def test_the_record_and_the_page_name_all_sets(done):
    record = json.loads((done["luvit"].folder / "run.json").read_text())
    told = [(one["name"], one["vocabulary"], one["weight"]) for one in record["training_sets"]]
    assert told == [("phantom", "chexpert", 1.0), ("mine", "nih", 2.0)]
    assert record["training_sets"][1]["stages"] == {"data": done["data:mine"].folder.name}
    page = (done["evaluation"].folder / "report.html").read_text()
    assert f"mine (table), vocabulary nih, {done['data:mine'].summary['train']} images, weight 2" in page


@pytest.fixture
def untrained(monkeypatch):
    """Runs that end where training would begin."""
    monkeypatch.setattr(luvit, "run", lambda *arguments: {})


def test_without_further_sets_the_inputs_are_those_of_a_run_that_knows_none(done, root, tmp_path, untrained):
    first = workflow.prepare(config({}), root, SILENT)
    assert first.data.reused and first.evidence.reused
    assert workflow.prepare_further(config({}), first, root, SILENT) == {}
    trained = workflow.train_luvit(config({}), first, tmp_path, SILENT)
    stored = json.loads((trained.folder / "stage.json").read_text())["inputs"]
    assert set(stored) == {"stage", "package", "data", "evidence", "seed", "model", "policy", "train"}
    record = json.loads((trained.folder / "run.json").read_text())
    assert "training_sets" not in record and trained.key != done["luvit"].key


def test_weight_and_data_of_a_further_set_are_part_of_the_key(done, root, films, tmp_path, untrained):
    first = workflow.prepare(config({}), root, SILENT)
    keys = {done["luvit"].key}
    for changed in (entry(films, weight=3), entry(films), entry(films, "notes", weight=2)):
        settings = config({"mine": changed})
        further = workflow.prepare_further(settings, first, root, SILENT)
        assert (further["mine"].data.key == done["data:mine"].key) == (not changed["options"]["columns"]["report"])
        keys.add(workflow.train_luvit(settings, first, tmp_path, SILENT, further).key)
    assert len(keys) == 4


class Entries:
    """A model whose parameters are its outputs, so that gradients are those of every image and finding."""

    def apply(self, variables, images, train, rngs):
        return variables["params"]


@pytest.mark.parametrize("name", ["expert", "hard", "u_zeros", "lsr_ones", "constant", "permuted", "rgn"])
@pytest.mark.slow
def test_findings_that_the_second_set_lacks_have_no_gradient(root, films, name):
    settings = config({"mine": entry(films, "notes")}, f"policy={name}")
    settings.policy.warmup = settings.policy.ramp = 0.0
    settings.rgn.train.steps = 2
    first = workflow.prepare(settings, root, SILENT)
    further = workflow.prepare_further(settings, first, root, SILENT)
    assert (further["mine"].rgn is not None) == (name == "rgn")
    sets, policy = workflow._parts(first, further), policies.PolicyConfig.of(settings.policy)
    columns = parts.training(sets, policy, 0)
    images = mix.Joined([shards.Images(part.shards, "train") for part in sets])
    assert len(columns["state"]) == len(images)
    zeros = jnp.zeros((len(images), len(CHEXPERT)))
    loss = luvit.make_loss(Entries(), policy, 1, 0.1)
    batch = {"image": jnp.zeros((len(images), 1, 1, 1)), **{k: jnp.asarray(v) for k, v in columns.items()}}

    def total(params):
        terms = loss(params, batch, jax.random.key(0), jnp.asarray(1)).values()
        return sum(term.weight * masked_mean(term.values, term.mask) for term in terms)

    gradients = jax.grad(total)({"logits": zeros, "rate": zeros + 0.5})
    absent = [CHEXPERT.index(f) for f in MASKED]
    known = CHEXPERT.index("Edema")
    for gradient in gradients.values():
        of_first, of_second = np.split(np.asarray(gradient), [images.lengths[0]])
        assert np.isfinite(gradient).all()
        assert (of_second[:, absent] == 0).all()
        assert (of_second[:, known] != 0).any() and (of_first[:, absent] != 0).any()
    assert (np.asarray(gradients["logits"])[images.lengths[0] :, known] != 0).all()


def test_the_second_set_keeps_its_labels_and_has_rates_of_its_own(root, films):
    settings = config({"mine": entry(films, "notes")}, "policy=rgn")
    settings.rgn.train.steps = 2
    first = workflow.prepare(settings, root, SILENT)
    further = workflow.prepare_further(settings, first, root, SILENT)
    policy = policies.PolicyConfig.of(settings.policy)
    joined = parts.training(workflow._parts(first, further), policy, 0)
    own = parts.columns(further["mine"].part(), "train", policy, 0)
    n = first.data.summary["train"]
    for finding in set(CHEXPERT.findings) - set(MASKED):
        for column in ("state", "rate", "p", "observed"):
            np.testing.assert_array_equal(
                joined[column][n:, CHEXPERT.index(finding)], own[column][:, NIH.index(finding)]
            )
    told = pq.read_table(further["mine"].rgn.folder / "rates.parquet")
    assert told.num_rows and further["mine"].rgn.key != first.rgn.key


def test_a_further_set_without_reports_keeps_the_experts_rates_under_the_rgn(root, films):
    settings = config({"mine": entry(films)}, "policy=rgn")
    settings.rgn.train.steps = 2
    first = workflow.prepare(settings, root, SILENT)
    second = workflow._parts(first, workflow.prepare_further(settings, first, root, SILENT))[1]
    assert second.evidence is None
    under = [parts.columns(second, "train", policies.PolicyConfig(name=name), 0)["rate"] for name in ("rgn", "expert")]
    np.testing.assert_array_equal(*under)


def test_an_interrupted_run_goes_on_with_the_same_losses(done, root, films, tmp_path, monkeypatch):
    settings = config({"mine": entry(films, weight=2)})
    first = workflow.prepare(settings, root, SILENT)
    further = workflow.prepare_further(settings, first, root, SILENT)
    batches = pipeline.train_batches

    def interrupted(*arguments, **options):
        yield from itertools.islice(batches(*arguments, **options), 6)
        raise KeyboardInterrupt

    def train():
        return workflow.train_luvit(settings, first, tmp_path, SILENT, further)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    starts = []
    monkeypatch.setattr(pipeline, "train_batches", lambda *a, **o: starts.append(o["start_step"]) or batches(*a, **o))
    trained = train()
    assert starts == [4] and trained.key == done["luvit"].key
    assert losses(trained.folder) == losses(done["luvit"].folder)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"wieght": 1}, "", r"'mine' has the unknown fields wieght; expected \{dataset, options, weight, evidence\}"),
        ({"dataset": "tabel"}, "", "'mine': data set 'tabel' is unknown; expected one of phantom, table"),
        ({"options": {"source": "x", "colums": {}}}, "", "'mine': got an unexpected keyword argument 'colums'"),
        ({"options": {}}, "", "'mine': missing a required (keyword-only )?argument: 'source'"),
        ({"options": "source=x"}, "", "options being names with values"),
        ({"options": {"source": "x", "image_size": 80}}, "", "'mine' has image_size 80, the run 64; leave it out"),
        ({"options": {"source": 5}}, "", "'mine': an option is of the wrong type"),
        ({"dataset": "repgls_jax.none:Source"}, "", "'mine': No module named 'repgls_jax.none'"),
        ({"dataset": "repgls_jax.data:none"}, "", "'mine': .* has no attribute 'none'"),
        ({"dataset": "phantom", "options": {"count": 200}}, "", "'mine' simulates the run's own patients"),
        ({"weight": 0}, "", "'mine' is 0; expected a positive number"),
        ({"weight": float("nan")}, "", "'mine' is nan; expected a positive number"),
        ({"weight": 5e-324}, "", "'mine' is 5e-324; expected a positive number, 1e-06 to 1e"),
        ({"weight": 10**400}, "", "'mine' is 10{39}; expected a positive number"),
        ({"weight": "2"}, "", "'mine' is '2'; expected a positive number"),
        ({}, "policy=oracle", "'oracle' reads belief of every finding and masks none"),
    ],
)
def test_wrong_entries_are_told_before_work_is_done(films, tmp_path, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        workflow.run(config({"mine": entry(films) | change}, arguments), tmp_path, SILENT)
    assert not list(tmp_path.iterdir())


def test_sets_that_cannot_be_together_are_refused_before_work_is_done(films, tmp_path):
    one, other = entry(films, weight=1), entry(films)
    with pytest.raises(ValueError, match="sets b have no weight but a do; give all or none"):
        workflow.run(config({"a": one, "b": other}), tmp_path, SILENT)
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        workflow.run(config({"a": entry("/nowhere/at/all")}), tmp_path, SILENT)
    with pytest.raises(ValueError, match=r"'a' reads .*: it could train on patients of the test split"):
        workflow.run(config({"a": other}, f"data=table,source={films}/../{films.name}"), tmp_path, SILENT)
    settings = config({"a": other})
    settings.task = "rgn"
    with pytest.raises(ValueError, match=r"data\.also names a, but task rgn reads one data set"):
        workflow.run(settings, tmp_path, SILENT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"columns": 5}, {"columns": "x"}, {"findings": []}, {"max_megapixels": "64"}])
def test_options_of_the_wrong_type_are_told_with_the_set(films, tmp_path, option):
    wrong = {"dataset": "table", "options": {"source": str(films), **option}}
    with pytest.raises(ValueError, match="'mine': an option is of the wrong type"):
        workflow.run(config({"mine": wrong}), tmp_path, SILENT)
    assert not list(tmp_path.iterdir())


def test_bits_are_those_of_the_run_for_all_sets(films, tmp_path):
    deep = GET(f"size=test,policy=hard,data=table,source={films},findings=nih")
    deep.data.options.bits, deep.data.options.columns.report = 16, ""
    other = tmp_path / "other"
    shutil.copytree(films, other)
    deep.data.also = {"mine": entry(other)}
    checks.check(deep)
    (own,) = mixture.configs(deep).values()
    assert own.data.options.bits == 16
    deep.data.also = {"mine": {"dataset": "phantom", "options": {"count": 60}}}
    with pytest.raises(ValueError, match=r"'mine' \(phantom\) has images of 8 bits, the run \(table\) of 16"):
        workflow.run(deep, tmp_path / "runs", SILENT)
    deep.data.also = {"mine": {"dataset": "table", "options": entry(other)["options"] | {"bits": 8}}}
    with pytest.raises(ValueError, match="'mine' has bits 8, the run 16; leave it out"):
        workflow.run(deep, tmp_path / "runs", SILENT)
    shallow = config({"mine": {"dataset": "table", "options": entry(other)["options"] | {"bits": 16}}})
    with pytest.raises(ValueError, match=r"'mine' \(table\) has images of 16 bits, the run \(phantom\) of 8"):
        workflow.run(shallow, tmp_path / "runs", SILENT)
    assert not (tmp_path / "runs").exists()


def test_a_further_set_needs_images_to_train_on_alone(films, tmp_path):
    table = pa.csv.read_csv(films / "films.csv")
    train = table.filter(pa.compute.not_equal(table["split"], "test"))
    pa.csv.write_csv(train, tmp_path / "no_test.csv")
    pa.csv.write_csv(table.filter(pa.compute.equal(table["split"], "test")), tmp_path / "no_train.csv")
    made = entry(films)
    made["options"]["table"] = str(tmp_path / "no_test.csv")
    settings = config({"mine": made})
    checks.check(settings)
    first = workflow.Prepared(None, None, None, CHEXPERT)
    further = workflow.prepare_further(settings, first, tmp_path / "runs", SILENT)
    assert further["mine"].data.summary["train"] == 20
    made["options"]["table"] = str(tmp_path / "no_train.csv")
    with pytest.raises(ValueError, match="'mine': the data has no images for train"):
        checks.check(config({"mine": made}))


def test_the_page_names_every_set_however_many_there_are():
    one = {"dataset": "mimic_cxr", "vocabulary": "chexpert", "images": 368_960, "weight": 0.5, "stages": {}}
    sets = [one | {"name": f"a-set-with-a-long-name-{k}"} for k in range(8)]
    said = dict(page._settings(subjects._trained_on({"training_sets": sets})["trained on"]))
    assert len(said) == 8
    for k, text in enumerate(said.values()):
        assert text.startswith(f"a-set-with-a-long-name-{k} (mimic_cxr)") and text.endswith("weight 0.5")


def test_the_file_of_further_sets(films, tmp_path):
    file = tmp_path / "sets.json"
    file.write_text(json.dumps({"b": entry(films, weight=2), "a": entry(films, weight=0.5)}))
    settings = GET(f"size=test,also={file}")
    assert list(mixture.configs(settings)) == ["a", "b"] and mixture.weights(settings) == [1.0, 0.5, 2.0]
    assert settings.data.also.b.options.source == str(films)
    settings.lock()
    settings.data.also.b.weight = 0.25  # as --config.data.also.b.weight=0.25 would
    assert mixture.weights(settings) == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a list; expected an object"),
        ("{", "sets.json: Expecting property name"),
        ('{"a": {}, "a": {}}', "a stands twice"),
        ('{"a": {"dataset": "table", "dataset": "nih"}}', "dataset stands twice"),
        ("[" * 100_000, "nested too deeply"),
        (" " * 2**20 + "{}", "more than 1048576 bytes"),
        ('{"a.b": {}}', "names a set 'a.b'; expected 1 to 40 letters, digits"),
        ('{"": {}}', "names a set ''"),
        (None, "sets.json: No such file or directory"),
    ],
)
def test_a_file_that_is_no_description_is_refused(text, message, tmp_path):
    file = tmp_path / "sets.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        GET(f"also={file}")
