"""The benchmark's runs and grid, on a hospital of next to nothing, without the other hospital's networks."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow.parquet as pq
import pytest

from repgls_jax.benchmark import conditions, grid, hospital, planning, prepare, report, runs
from repgls_jax.models import luvit, vit
from repgls_jax.policies import PolicyConfig
from repgls_jax.results import metrics
from repgls_jax.train import luvit as luvit_train
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.state import create
from repgls_jax.train.step import make_train_step

WIDTH = vit.Architecture(8, 1, 2, 8)
SCHEDULE = runs.Schedule(epochs=2, batch=16)


@pytest.mark.slow
def test_the_read_out_of_tokens_is_the_network_without_its_encoder():
    model = luvit.build("tiny/16", 5)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1)).astype(np.uint8)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    encode = jax.jit(vit.VisionTransformer(model.architecture).apply)
    tokens = encode({"params": params["encoder"]}, luvit.normalize(images))
    rest = {name: value for name, value in params.items() if name != "encoder"}
    apply = jax.jit(model.apply)
    ours = apply({"params": rest}, tokens)
    theirs = apply({"params": params}, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    narrow = luvit.LUViT(5, WIDTH)
    made = jax.eval_shape(narrow.init, jax.random.key(0), tokens)["params"]
    assert "encoder" not in made and made["queries"].shape == (1, 5, 8)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n, v, t, c = 40, 16, 12, 14
    state = rng.integers(-2, 2, (n, c)).astype(np.int8)
    p = np.where(state == -2, np.nan, np.where(state == -1, 0.6, state)).astype(np.float32)
    labels = {"state": state, "p": p, "observed": np.ones((n, c), bool)}
    tokens = [jnp.asarray(rng.normal(size=(k, 4, 6)), jnp.float32) for k in (n, v, t)]
    valid = {name: values[:v] for name, values in labels.items()}
    return runs.Data(tokens[0], labels, tokens[1], valid, rng.integers(0, 2, (v, c)), np.ones((v, c), bool), tokens[2])


@pytest.mark.slow
def test_a_run_is_the_projects_own_step_under_its_own_schedule(data):
    config, seed, rate = PolicyConfig(name="constant", constant=0.1), 3, 3e-3
    trainer = runs.Trainer(WIDTH, 14, config, SCHEDULE, 40)
    outcome = trainer(data, {"learning_rate": rate, "constant": 0.3}, seed)
    # The same by hand, with the setting and the learning rate where the project's own configs have them.
    steps = SCHEDULE.steps(40)
    settings = {"learning_rate": rate, "weight_decay": 0.05, "warmup": 0.1, "clip": 1.0, "layer_decay": 1.0}
    tx = optimizer(ml_collections.ConfigDict(settings | {"freeze": ()}), steps)
    model = luvit.LUViT(14, WIDTH)
    loss = luvit_train.make_loss(model, PolicyConfig(name="constant", constant=0.3), steps, 0.1)
    step = jax.jit(make_train_step(loss, tx))
    root, apply = jax.random.key(seed), jax.jit(model.apply)
    state = create(jax.jit(model.init)(root, data.tokens[:1])["params"], tx, seed)
    score, best, curve = -1.0, None, []
    for epoch in range(SCHEDULE.epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(root, epoch + 1), 40))[:32].reshape(2, 16)
        for rows in order:
            batch = {name: jnp.asarray(values[rows]) for name, values in data.labels.items()}
            state, _ = step(state, {**batch, "image": data.tokens[rows], "index": rows})
        logits = apply({"params": state.params}, data.valid_tokens)["logits"]
        area = metrics.measure(logits, data.valid_labels, data.valid_mask, names=("auroc",))["auroc"]
        curve.append(float(np.average(area, weights=data.valid_labels.sum(0))))
        if curve[-1] > score:
            score, best = curve[-1], state.params
    np.testing.assert_allclose(outcome.curve, curve, rtol=1e-5)
    expected = apply({"params": best}, data.test_tokens)
    np.testing.assert_allclose(outcome.logits, expected["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outcome.rate, expected["rate"], rtol=1e-4, atol=1e-5)


def test_too_few_studies_for_a_batch():
    with pytest.raises(ValueError, match="15 training studies do not fill a batch of 16"):
        SCHEDULE.steps(15)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan whose encoder averages patches and whose RGN reads nothing."""

    def encode(films: np.ndarray) -> np.ndarray:
        squares = films.reshape(len(films), 4, 16, 4, 16).astype(np.float32) / 255
        return np.stack([squares.mean((2, 4)), squares.std((2, 4))], -1).reshape(len(films), 16, 2).astype(np.float16)

    monkeypatch.setattr(prepare, "_encoder", lambda folder: encode)
    monkeypatch.setattr(prepare, "_rgn", lambda folder: lambda reports, _: np.full((len(reports), 14), np.nan))
    return grid.Plan(
        root=tmp_path,
        counts=hospital.Counts(32, 24, 32),
        schedule=SCHEDULE,
        read_out=WIDTH,
        tuning=1000,
        seeds=(1, 2),
        main=conditions.MAIN,
        replicates=50,
        other=prepare.Elsewhere(pathlib.Path(), pathlib.Path(), ("encoder", "rgn")),
    )


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was_stopped_and_reports(plan, tmp_path, monkeypatch):
    todo = grid.units(("main", "lexicon_up"), ("hard", "expert", "permuted"), plan.seeds, 1, ("image",))
    assert [(u.condition, u.arm, len(u.seeds)) for u in todo][2:4] == [
        ("main", "permuted", 2),
        ("lexicon_up", "hard", 1),
    ]
    assert grid.finished(plan, todo) == []
    first = [row for unit in todo for row in grid.run_unit(plan, unit)]
    trials = [row for row in first if row["role"] == "trial"]
    assert len(trials) == 9 and sum(row["chosen"] for row in trials) == 3
    assert all(row["seed"] == plan.tuning for row in trials)
    assert len(first) == 9 + 6 + 3 and len({row["cell"] for row in first}) == len(first)

    lost = first[4]["cell"]  # as if stopped between the two files of a cell
    (tmp_path / "cells" / f"{lost}.json").unlink()
    trained, train = [], grid._train
    monkeypatch.setattr(grid, "_train", lambda *a: trained.append(a) or train(*a))
    again = [row for unit in todo for row in grid.run_unit(plan, unit)]
    assert len(trained) == 1
    timed = ("seconds", "cpu_seconds")
    assert [{k: v for k, v in row.items() if k not in timed} for row in again] == [
        {k: v for k, v in row.items() if k not in timed} for row in first
    ]
    assert grid.finished(plan, todo) == again

    output = tmp_path / "out"
    output.mkdir()
    report.write(output, again, plan, ml_collections.ConfigDict({"size": "test"}))
    assert pq.read_table(output / "results.parquet").num_rows == len(again)
    said = json.loads((output / "verdict.json").read_text())["image"]["auroc"]["differences"]
    assert [(d["first"], d["second"]) for d in said] == [("expert", "permuted"), ("expert", "hard")]
    page, text = (output / "benchmark.html").read_text(), (output / "benchmark.md").read_text()
    assert page.count("<svg") == 4 and "src=" not in page and "`expert`" in text and "lexicon_up" in text


def test_a_condition_may_want_more_studies_than_the_others_have(plan):
    few, many = grid.counts_of(plan, "n_500"), grid.counts_of(plan, "n_20000")
    assert (few.train, many.train) == (500, 20000) and many.valid == plan.counts.valid
    assert grid.config_of(plan, "n_20000", "image", 1).split == many.shares()


def test_other_conditions_are_compared_with_the_main_one():
    root = pathlib.Path(__file__).parents[1]
    config = runpy.run_path(str(root / "configs" / "benchmark.py"))["get_config"]("size=test,conditions=noise_low")
    assert {unit.condition for unit in planning.units(config)} == {"noise_low"}
    assert {unit.condition for unit in planning.main_units(config)} == {"main"}


def test_a_grid_of_what_is_not_there(plan):
    with pytest.raises(ValueError, match=r"unknown: nowhere, nobody; conditions are main, .* arms hard, u_ones"):
        grid.units(("nowhere",), ("nobody",), (1,), 1, ("image",))
    with pytest.raises(ValueError, match="expected different ones, without the tuning seed"):
        grid.Plan(**{**plan.__dict__, "seeds": (1, 1000)})
    with pytest.raises(ValueError, match="no run of the main condition"):
        report.write(plan.root, [], plan, ml_collections.ConfigDict())
