"""The main job: reports and images in, a trained and evaluated LU-ViT out.

    python launch/train.py --config=configs/luvit.py                       # the phantom, on one machine
    python launch/train.py --config=configs/luvit.py:policy=expert,seed=1
    python launch/train.py --config=configs/luvit.py:data=table,source=DIR
    python launch/train.py --config=configs/luvit.py:data=table,source=DIR,also=sets.json   # trained on more sets

Arguments are listed in :data:`ARGUMENTS`; every field of the config can also be set by a flag, such as
``--config.train.learning_rate=3e-4``. Expected of the first command: see docs/phantom.md.
"""

import dataclasses
import inspect

import ml_collections
from ml_collections import config_dict

from repgls_jax import config as config_lib
from repgls_jax import data, mixture, phantom
from repgls_jax.data import columns
from repgls_jax.methods import METHODS, SHARED

ARGUMENTS = {
    "data": "phantom",  # data set: phantom, table, mimic_cxr, chexpert, nih, openi
    "source": "",  # folder of the data set; the phantom needs none
    "table": "",  # the table's file within the source; empty takes the only one there
    "findings": "",  # vocabulary; empty for the data set's own
    "also": "",  # JSON file of further training sets, see repgls_jax/mixture.py
    "image_size": 0,  # pixels; 0 takes the run size's
    "model": "",  # SIZE/PATCH such as S/16; empty takes the run size's
    "policy": "rgn",  # method of training on labels, see repgls_jax/methods/
    "mesh": "dp",  # sharding preset
    "size": "demo",  # size of the run: test, demo, full
    "epochs": 0.0,  # 0 takes the run size's
    "seed": 0,
}

# What a run size sets. The learning rates are for AdamW at the batch size beside them.
RUN_SIZES = {
    "test": dict(
        model="tiny/16",
        dtype="float32",
        image_size=64,
        studies=240,
        epochs=2.0,
        batch=32,
        learning_rate=1e-3,
        replicates=20,
    ),
    "demo": dict(
        model="demo/16",
        dtype="float32",
        image_size=64,
        studies=6000,
        epochs=20.0,
        batch=32,
        learning_rate=1e-3,
        replicates=1000,
    ),
    "full": dict(
        model="S/16",
        dtype="bfloat16",
        image_size=224,
        studies=50000,
        epochs=30.0,
        batch=256,
        learning_rate=5e-4,
        replicates=1000,
    ),
}


# What the trainer reads for either network, besides the length of the run.
TRAINER = dict(
    mesh="dp",  # sharding preset: dp, fsdp, tp, fsdp_tp, hybrid
    model_parallel=0,  # devices that share a layer under tp and fsdp_tp; 0 leaves it to the preset
    accumulate=1,  # micro-batches a step
    ema=0.0,  # decay of the averaged weights, which are evaluated; 0 is off
    layer_decay=1.0,  # of the learning rate, from block to block towards the image
    freeze=(),  # parameters that stay as they are: regular expressions for their paths
    weight_decay=0.05,
    warmup=0.1,
    clip=1.0,
)


def rgn() -> ml_collections.ConfigDict:
    """Settings of the Rate Generation Network and of its training."""
    return ml_collections.ConfigDict(
        dict(
            length=160,  # words of a study's sentences about findings
            made=4000,  # reports made of the lexicon's cues and of general English, half of what is read; 0 for none
            rates="",  # a rates.parquet to take, such as launch/refine_rates.py's; "" trains a network
            features="",  # of a language model, see data_prep/language_features.py; "" for none
            bare_weight=0.1,  # of mentions without a cue: the expert says nothing of them, most are assertions
            delta=0.1,  # Huber threshold, in rates and in signed certainties
            ordering=1.0,  # weight of the ordering hinge
            model=dict(
                width=64,
                depth=0,  # blocks over the words; without any, each word sees two neighbours on either side
                heads=4,
                evidence=False,
                evidence_dropout=0.5,
                dropout=0.1,
                word_dropout=0.3,
                monotone=True,  # the rate is a falling function of the certainty
                features=0,  # taken from the file of features, if there is one
            ),
            train=TRAINER
            | dict(steps=1200, batch_size=32, learning_rate=2e-3, weight_decay=0.01, checkpoint_every=300, seed=0),
        )
    )


def options_of(name: str, args: ml_collections.ConfigDict, image_size: int) -> ml_collections.ConfigDict:
    """Every option of a data set, with its default where the arguments say nothing."""
    parameters = inspect.signature(data.DATASETS[name]).parameters.values()
    given = dict(source=args.source, image_size=image_size) | (dict(findings=args.findings) if args.findings else {})
    return ml_collections.ConfigDict({p.name: p.default for p in parameters} | given)


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
    """The config, with ``arguments`` ("name=value,...") applied."""
    args = config_lib.parse_arguments(arguments, ARGUMENTS)
    size = config_lib.choose("size", args.size, RUN_SIZES)
    config = ml_collections.ConfigDict()
    config.task = "luvit"
    config.seed = args.seed
    unused = [name for name in ("source", "table", "findings") if args[name] and args.data == "phantom"]
    if unused:
        raise ValueError(f"config arguments {', '.join(unused)} are not for data=phantom; did you mean data=table?")
    image_size = args.image_size or size["image_size"]
    # The seed of the data (of the phantom, and of splits that a table does not give) is not the run's: runs share data.
    table = options_of("table", args, image_size)
    table.table = args.table
    # Role -> column, where a column's name does not say its role; "" for none.
    table.columns = ml_collections.ConfigDict({role: config_dict.placeholder(str) for role in columns.SPELLINGS})
    datasets = {
        "phantom": dataclasses.asdict(phantom.PhantomConfig(image_size=image_size)) | {"count": size["studies"]},
        "table": table,
    }
    datasets |= {name: options_of(name, args, image_size) for name in data.DATASETS if name not in datasets}
    options = config_lib.choose("data", args.data, datasets)
    config.data = dict(dataset=args.data, options=options, also=mixture.read(args.also))
    config.extract = dict(
        backend="lexicon",  # reads the reports here
        evidence="",  # evidence.parquet made beforehand (a language model's, a calibrated lexicon's) in its place
    )
    config.rgn = rgn()
    config.rgn.train.seed = args.seed
    config.model = dict(
        name=args.model or size["model"],
        pretrained="",  # folder of a Hugging Face model whose weights and shape the encoder takes
        dropout=0.1,
        drop_path=0.0,  # share of samples for which the last block is left out; rises linearly up to it
        dtype=size["dtype"],  # of the computation; parameters are float32
        remat="none",  # what the backward pass computes again: none, dots (all but matrix products), full
        scan=False,  # one compiled block for all: compiles faster, runs a little slower
        attention="auto",  # xla, cudnn, or auto: cudnn where it can
        uncertainty_weight=0.1,
    )
    method = config_lib.choose("policy", args.policy, METHODS)
    config.policy = dict(
        name=args.policy,
        constant=0.2,
        rho=0.0,
        r_blank=0.0,
        blank="negative",
        margin_cap=4.0,
        warmup=0.3,
        ramp=0.2,
        # The method's own: --config.policy.hyper.q=0.5
        hyper={name: p.default for name, p in method.hyper.items() if name not in SHARED},
    )
    config.train = TRAINER | dict(
        epochs=args.epochs or size["epochs"],
        batch_size=size["batch"],
        learning_rate=size["learning_rate"],
        checkpoint_every=500,
        mesh=args.mesh,
        augment=True,
        mixup=0.0,  # films are mixed in pairs by shares drawn from Beta(mixup, mixup); 0 is off
    )
    config.evaluate = dict(batch_size=128, replicates=size["replicates"], gallery=8)
    if args.size == "test":
        config.rgn.train.steps, config.rgn.length, config.rgn.model.width, config.rgn.made = 20, 64, 16, 100
    return config
