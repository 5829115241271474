"""The methods, one record each. To add one: a record here, and its oracle in tests/test_methods.py.

Targets of methods with a loss of their own are those of ``hard``, the likelier side of the wording, if nothing is said.
"""

from collections.abc import Mapping

from jax import Array

from repgls_jax import findings
from repgls_jax.methods import dependence, flips, likelihood, pointwise, remembered, selection, wording
from repgls_jax.methods.record import Hook, Method, Parameter
from repgls_jax.policies import POLICIES, Labels, Policy, PolicyConfig, Targets

_CHEXPERT = "Irvin et al., AAAI 2019, arXiv 1901.07031"
_GLS = "Wei et al., ICML 2022, arXiv 2106.04149"
_OURS = "this project"
# Policies that are methods as they are.
_POLICIES = {
    "u_ones": _CHEXPERT,
    "u_zeros": _CHEXPERT,
    "u_ignore": _CHEXPERT,
    "lsr_ones": "Pham et al., arXiv 1911.06475",
    "lsr_zeros": "Pham et al., arXiv 1911.06475",
    "hard": f"{_OURS}: a control",
    "expert": f"{_GLS}; rates of wordings: {_OURS}",
    "rgn": f"arXiv 2508.02495; layers and guidance of the RGN: {_OURS}",
    "permuted": f"{_OURS}: a control",
    "rgn_permuted": f"{_OURS}: a control",
    "oracle": f"{_OURS}: a bound",
    "clean": f"{_OURS}: a bound",
}


def _mentioned(labels: Labels, key: Array, config: PolicyConfig) -> Targets:
    t = _HARD.targets(labels, key, config)
    return t._replace(mask=t.mask & (labels["state"] != findings.NOT_MENTIONED))


_HARD = POLICIES["hard"]
_RANKED = Policy(_HARD.targets, "hard labels; the expert rate is read beside them", rates="expert")
_SHARE = Parameter(1.0, 0.0, 1.0, (1.0, 0.5, 0.75, 0.25), "of the loss, the rest being cross entropy")
_BETA = "of the label in the target"
_UP = Parameter(0.0, 0.0, 0.45, (0.0,), "P(label 1 | truth 0), added to the estimate")
_DOWN = Parameter(0.0, 0.0, 0.45, (0.0,), "P(label 0 | truth 1), added to the estimate")
_FLIPS = {"scale": Parameter(1.0, 0.0, 2.0, (1.0, 0.5, 0.25, 1.5), "of the estimate"), "up": _UP, "down": _DOWN}
_WORDING = {
    "silence": Parameter(0.02, 1e-6, 0.5, (0.02, 0.005, 0.05), "p of a finding that is not mentioned"),
    "clip": Parameter(0.02, 0.0, 0.4, (0.02, 0.005, 0.05), "least p of a wording"),
}
_LAMBDA = Parameter(1.0, 0.01, 100.0, (1.0, 0.5, 2.0), "weight of the report's evidence")
_PLAIN = {"silence": 1e-6, "clip": 1e-6}

METHODS: Mapping[str, Method] = {
    **{name: Method(POLICIES[name], source) for name, source in _POLICIES.items()},
    "constant": Method(
        POLICIES["constant"],
        _GLS,
        hyper={"constant": Parameter(0.2, -0.95, 0.95, (0.2, 0.1, 0.4, -0.2), "rate of all labels")},
        neutral={"constant": 0.0},
    ),
    "mentions": Method(Policy(_mentioned, "findings that are not mentioned are left out"), f"{_OURS}: a control"),
    "u_multiclass": Method(
        POLICIES["u_zeros"],
        _CHEXPERT,
        "uncertain is a class of its own",
        loss=selection.three_classes,
        hyper={"share": _SHARE},
        neutral={"share": 0.0},
        third=True,
    ),
    "u_selftrained": Method(
        POLICIES["u_zeros"],
        f"{_CHEXPERT}; in one run: {_OURS}",
        "uncertain is left out for half of the run, then gets the network's own predictions",
        loss=remembered.self_trained,
        hyper={"weight": Parameter(1.0, 0.0, 1.0, (1.0, 0.5), "of uncertain entries")},
        weigh=remembered.self_trained_weight,
        memory=remembered.unlabelled,
        hook=Hook((0.5,), remembered.relabel),
    ),
    "mae": Method(
        _HARD,
        "Ghosh et al., AAAI 2017, arXiv 1712.09482",
        "mean absolute error",
        loss=pointwise.mae,
        hyper={"share": _SHARE},
        neutral={"share": 0.0},
    ),
    "imae": Method(
        _HARD,
        f"Wang et al., arXiv 1903.12141; as a weight of the loss: {_OURS}",
        "mean absolute error that counts doubtful entries more",
        loss=pointwise.imae,
        hyper={"share": _SHARE, "temperature": Parameter(8.0, 0.0, 32.0, (8.0, 4.0, 16.0), "T of the weights")},
        neutral={"share": 0.0},
    ),
    "gce": Method(
        _HARD,
        "Zhang and Sabuncu, NeurIPS 2018, arXiv 1805.07836",
        "generalized cross entropy, between cross entropy and mean absolute error",
        loss=pointwise.gce,
        hyper={"q": Parameter(0.7, 0.0, 1.0, (0.7, 0.3, 0.1, 0.5), "0 is cross entropy, 1 mean absolute error")},
        neutral={"q": 0.0},
    ),
    "sce": Method(
        _HARD,
        "Wang et al., ICCV 2019, arXiv 1908.06112",
        "symmetric cross entropy",
        loss=pointwise.sce,
        hyper={
            "ce": Parameter(1.0, 0.0, 10.0, (1.0, 0.1), "weight of cross entropy"),
            "reverse": Parameter(0.5, 0.0, 10.0, (0.5, 1.0, 0.1), "weight of the reverse term"),
        },
        neutral={"ce": 1.0, "reverse": 0.0},
    ),
    "bootstrap_soft": Method(
        _HARD,
        "Reed et al., arXiv 1412.6596",
        "the label blended with the network's probability",
        loss=pointwise.bootstrap_soft,
        hyper={"beta": Parameter(0.95, 0.0, 1.0, (0.95, 0.8, 0.6), _BETA)},
        neutral={"beta": 1.0},
    ),
    "bootstrap_hard": Method(
        _HARD,
        "Reed et al., arXiv 1412.6596",
        "the label blended with the network's answer",
        loss=pointwise.bootstrap_hard,
        hyper={"beta": Parameter(0.8, 0.0, 1.0, (0.8, 0.95, 0.6), _BETA)},
        neutral={"beta": 1.0},
    ),
    "forward": Method(
        _HARD,
        f"Patrini et al., CVPR 2017, arXiv 1609.03683; anchors by label: {_OURS}",
        "the loss corrected by flip rates of each finding",
        loss=flips.forward,
        hyper=_FLIPS,
        neutral={"scale": 0.0, "up": 0.0, "down": 0.0},
        memory=flips.unflipped,
        hook=Hook((0.3,), flips.learn_flips),
    ),
    "importance": Method(
        _HARD,
        f"Liu and Tao, TPAMI 2016, arXiv 1411.7718; clipped weights: {_OURS}",
        "entries weighed by how likely their label is to be true, by flip rates",
        loss=pointwise.cross_entropy,
        hyper=_FLIPS,
        neutral={"scale": 0.0, "up": 0.0, "down": 0.0},
        weigh=flips.importance,
        memory=flips.unweighted,
        hook=Hook((0.3,), flips.learn_posterior),
    ),
    "weighted": Method(
        _RANKED,
        f"{_OURS}: a control",
        "entries weighed by the certainty of their wording",
        loss=pointwise.cross_entropy,
        hyper={"power": Parameter(1.0, 0.0, 8.0, (1.0, 0.5, 2.0), "of the certainty 1 - r")},
        neutral={"power": 0.0},
        weigh=selection.certainty,
    ),
    "elr": Method(
        _HARD,
        f"Liu et al., NeurIPS 2020, arXiv 2007.00151; start of the targets: {_OURS}",
        "early-learning regularisation",
        loss=remembered.elr,
        hyper={
            "weight": Parameter(1.0, 0.0, 20.0, (1.0, 3.0, 0.3), "of the regularisation"),
            "beta": Parameter(0.7, 0.0, 1.0, (0.7, 0.9), "momentum of the remembered predictions"),
        },
        neutral={"weight": 0.0},
        memory=remembered.even,
        update=remembered.elr_update,
    ),
    "mixup": Method(
        _HARD,
        "Zhang et al., ICLR 2018, arXiv 1710.09412",
        "films mixed in pairs",
        hyper={"alpha": Parameter(0.2, 0.0, 8.0, (0.2, 0.4, 1.0), "of the Beta distribution of shares")},
        neutral={"alpha": 0.0},
        mixes=True,
    ),
    "coteaching": Method(
        _HARD,
        f"Han et al., NeurIPS 2018, arXiv 1804.06872; by finding and label: {_OURS}",
        "two networks, each taught what has a small loss under the other",
        loss=pointwise.cross_entropy,
        hyper={
            "forget": Parameter(0.1, 0.0, 0.9, (0.1, 0.05, 0.2), "share that is left out"),
            "ramp": Parameter(0.3, 0.0, 1.0, (0.3, 0.1), "share of the run until so much is"),
        },
        neutral={"forget": 0.0},
        exchange=selection.coteach,
    ),
    "confident": Method(
        _HARD,
        f"Northcutt et al., JAIR 2021, arXiv 1911.00068; the network's own predictions: {_OURS}",
        "labels that the network is confident are wrong lose their weight",
        loss=pointwise.cross_entropy,
        hyper={"share": Parameter(1.0, 0.0, 1.0, (1.0, 0.5), "of the weight that they lose")},
        neutral={"share": 0.0},
        weigh=remembered.trusted,
        memory=remembered.unsuspected,
        hook=Hook((0.3, 0.5, 0.7), remembered.suspect),
    ),
    "curriculum": Method(
        _RANKED,
        f"after Ju et al., TMI 2022, arXiv 2103.00528; by the report's rate: {_OURS}",
        "plain wording first, hedged later",
        loss=pointwise.cross_entropy,
        hyper={"until": Parameter(0.5, 0.0, 1.0, (0.5, 0.25, 0.75), "share of the run until all count")},
        neutral={"until": 0.0},
        weigh=selection.certain_first,
    ),
    "report_likelihood": Method(
        _HARD,
        _OURS,
        "the report as evidence on a hidden truth",
        loss=likelihood.report_likelihood,
        hyper={"lam": _LAMBDA, **_WORDING},
        neutral={"lam": 100.0, **_PLAIN},
        memory=likelihood.prevalences,
    ),
    "relearned": Method(
        _HARD,
        _OURS,
        "report likelihood, with what each reader's wordings mean estimated from the films",
        loss=wording.relearned,
        hyper={
            "share": Parameter(1.0, 0.0, 1.0, (1.0, 0.5), "of the estimate, the rest being the lexicon's"),
            "shrink": Parameter(30.0, 1.0, 1e4, (30.0, 100.0), "entries that the lexicon is worth"),
            "lam": _LAMBDA,
            **_WORDING,
        },
        neutral={"share": 0.0, "lam": 100.0, **_PLAIN},
        groups=True,
        memory=wording.nominal,
        hook=Hook((0.3, 0.6), wording.relearn),
    ),
    "bridge": Method(
        _HARD,
        _OURS,
        "between expert rates (0) and report likelihood (1), by choice",
        loss=likelihood.given,
        hyper={
            "independence": Parameter(0.5, 0.0, 1.0, (0.5, 0.0, 1.0), "of reader and film given the truth"),
            **_WORDING,
        },
        neutral={"independence": 0.0, **_PLAIN},
        memory=likelihood.prevalences,
    ),
    "fitted": Method(
        _HARD,
        _OURS,
        "between expert rates and report likelihood, where the validation split's noisy labels say",
        loss=likelihood.fitted,
        hyper={
            "tolerance": Parameter(0.005, 1e-4, 1.0, (0.005, 0.002, 0.02), "nats of dependence that halve it, about"),
            "most": Parameter(1.0, 0.0, 1.0, (1.0,), "independence where the data shows no dependence"),
            **_WORDING,
        },
        neutral={"most": 0.0, **_PLAIN},
        memory=likelihood.independent,
        hook=Hook((0.3, 0.6), dependence.fit),
    ),
}
