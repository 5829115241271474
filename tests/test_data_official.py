"""Tables of published data sets, read as columns; and every file of every data set, mutated."""

import gzip
import inspect
import pathlib
import random
import runpy
import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import test_data_chexpert
import test_data_mimic_cxr
import test_data_nih
import test_data_openi

from repgls_jax import config as config_lib
from repgls_jax import data, findings
from repgls_jax.data import films, images, official
from repgls_jax.data.chexpert import ChexpertSource
from repgls_jax.data.mimic import MimicSource
from repgls_jax.data.nih import NihSource
from repgls_jax.data.openi import OpeniSource
from repgls_jax.data.source import Quarantined

pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")


def write(path, text, packed=False):
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_columns_are_text_without_blanks(tmp_path, packed, newline):
    text = newline.join(["\ufeffid,a b, c,id2", '007, x ,"p, ""q""",1', "", "8,,é,2"])
    path = write(tmp_path / f"t.csv{'.gz' * packed}", text, packed)
    table = official.read(path, ("id", "a b"), {" c"}.__contains__)
    assert table.to_pydict() == {"id": ["007", "8"], "a b": ["x", ""], " c": ['p, "q"', "é"]}
    assert official.find(tmp_path, "none.csv", "t.csv") == path


def test_names_that_stand_twice_matter_only_where_they_are_wanted(tmp_path):
    path = write(tmp_path / "t.csv", "a,b,b,,\n1,2,3,4,5\n")
    assert official.read(path, ("a",)).to_pydict() == {"a": ["1"]}
    for columns in (("b",), ("nothing",)):
        with pytest.raises(ValueError, match=f"not exactly one column {columns[0]}; its header has 5"):
            official.read(path, columns)


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "MAX_TABLE_BYTES", 2**20)
    path = write(tmp_path / "t.csv.gz", "a\n" + "1\n" * 2**25, packed=True)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        official.read(path, ("a",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26  # a block of 2**25, and not the 2**26 of the whole


def test_positions_are_those_of_a_dictionary():
    rng = random.Random(0)
    among = [str(rng.randrange(50)) for _ in range(80)]
    values = [str(rng.randrange(70)) for _ in range(300)]
    first = {value: i for i, value in reversed(list(enumerate(among)))}
    found = official.positions(pa.chunked_array([values[:100], values[100:]]), pa.array(among))
    assert found.tolist() == [first.get(value, -1) for value in values]


def test_all_faults_of_a_table_are_told_at_once(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n" + "\n".join(f"{i % 9},x" for i in range(20)))
    checks = official.Checks(path, official.read(path, ("a", "b")))
    checks.matches("a", "[0-7]", "a digit below 8")
    checks.unique("b")
    with pytest.raises(ValueError, match=r"'a', 2 values \(row 9: '8', row 18: '8'\).*'b', 19 values") as caught:
        checks.done()
    assert "a digit below 8" in str(caught.value) and "no value twice" in str(caught.value)


def test_states_of_every_spelling(tmp_path):
    cells = {"": -2, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-0.0": 0, "-1": -1, "-1.0": -1, "-2": -2, "-2.0": -2}
    path = write(
        tmp_path / "t.csv", "id,Airspace Opacity,Edema\n" + "\n".join(f"{i},{c},1" for i, c in enumerate(cells))
    )
    table = official.read(path, ("id",), official.names_finding(findings.CHEXPERT))
    states = official.states(path, table, findings.CHEXPERT)
    assert states[:, findings.CHEXPERT.index("Lung Opacity")].tolist() == list(cells.values())
    assert (states[:, findings.CHEXPERT.index("Edema")] == 1).all()
    assert (np.delete(states, [findings.CHEXPERT.index(f) for f in ("Lung Opacity", "Edema")], 1) == -2).all()


def test_options_out_of_range_are_refused():
    largest = images.PIL_MEGAPIXELS
    for options in ((7, 64, "pad"), (5000, 64, "pad"), (224, 0, "pad"), (224, largest + 1, "pad"), (224, 64, "fill")):
        with pytest.raises(ValueError, match="expected"):
            films.Form(*options)
    assert films.Form(224, largest, "crop").parameters() == {"max_megapixels": largest, "fit": "crop"}


def mutated(content, rng):
    """Cut off, with bits turned over, with a piece left out or doubled, or replaced by what bytes like to be."""
    data = bytearray(content)
    at = rng.randrange(len(data) + 1)
    match rng.randrange(5):
        case 0:
            return bytes(data[:at])
        case 1:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(data)
        case 2:
            return bytes(data[:at] + data[at + rng.randint(1, 60) :])
        case 3:
            return bytes(data[:at] + data[max(0, at - rng.randint(1, 200)) :])
        case _:
            what = rng.choice([b"\0", b'"', b"\n", b",", b"\xff", b"../../../etc/passwd", b"9" * 400, b"<!DOCTYPE x>"])
            return bytes(data[:at] + what + data[at:])


SETS = {
    "mimic": (MimicSource, lambda root: test_data_mimic_cxr.make(root, ".dcm", archive=True, packed=True)),
    "mimic folder": (MimicSource, test_data_mimic_cxr.make),
    "chexpert": (ChexpertSource, test_data_chexpert.make),
    "nih": (NihSource, test_data_nih.make),
    "openi": (OpeniSource, test_data_openi.make),
    "openi folder": (OpeniSource, lambda root: test_data_openi.make(root, unpacked=True)),
}


def attack(source, root, files, rng):
    """One file mutated: how many films were kept, or the error told."""
    path = rng.choice(files)
    good = path.read_bytes()
    path.write_bytes(mutated(good, rng))
    try:
        made = source(source=root, image_size=64)
        found = [made.record(split, i) for split, n in made.splits().items() for i in range(n)]
        return sum(not isinstance(record, Quarantined) for record in found)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    finally:
        path.write_bytes(good)
        if (root / "NLMCXR_png.tgz").exists():  # to be unpacked anew
            shutil.rmtree(root / "NLMCXR_png", ignore_errors=True)


@pytest.mark.parametrize("name", SETS)
def test_mutated_files_are_refused_or_set_aside(tmp_path, name, n=25):
    source, make = SETS[name]
    root = make(tmp_path / "data")
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    # A table decides over all films, a film over itself: half of the blows go to the tables and archives.
    heads = [path for path in files if path.parent == root]
    rng = random.Random(name)
    outcomes = [attack(source, root, heads if k % 2 else files, rng) for k in range(n)]
    assert all("Quibblewort" not in outcome for outcome in outcomes if isinstance(outcome, str))
    assert any(isinstance(outcome, int) and outcome > 0 for outcome in outcomes)


def test_every_data_set_is_an_argument_of_the_main_job():
    get_config = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs/luvit.py"))["get_config"]
    for name, maker in data.DATASETS.items():
        source = "" if name == "phantom" else "source=/somewhere,"
        options = config_lib.plain(get_config(f"data={name},{source}image_size=64").data.options)
        inspect.signature(maker).bind(**options)
        assert options["image_size"] == 64
        assert options.get("source", "/somewhere") == "/somewhere"
    assert get_config("data=nih,source=x,findings=union").data.options.findings == "union"
    assert get_config("data=nih,source=x").data.options.findings == "nih"
