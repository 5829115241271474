"""The methods, one record each. To add one: a record here, and its oracle in tests/test_methods.py."""

from repgls_jax.methods.record import Method, Parameter
from repgls_jax.policies import POLICIES

# Of the policies that are methods as they are.
_SOURCES = {
    "u_ones": "Irvin et al., AAAI 2019, arXiv 1901.07031",
    "u_zeros": "Irvin et al., AAAI 2019, arXiv 1901.07031",
    "u_ignore": "Irvin et al., AAAI 2019, arXiv 1901.07031",
    "lsr_ones": "Pham et al., arXiv 1911.06475",
    "lsr_zeros": "Pham et al., arXiv 1911.06475",
    "hard": "binary cross entropy on the likelier side of the wording: a control of this project",
    "constant": "Wei et al., ICML 2022, arXiv 2106.04149",
    "expert": "Wei et al., ICML 2022, arXiv 2106.04149, with this project's rates of wordings",
    "rgn": "arXiv 2508.02495; layers and guidance of the RGN are this project's decision",
    "permuted": "a control of this project",
    "rgn_permuted": "a control of this project",
    "oracle": "a bound of this project",
    "clean": "a bound of this project",
}
_RATE = Parameter(0.2, -0.95, 0.95, (0.2, 0.1, 0.4, -0.2), "rate of all labels")

METHODS: dict[str, Method] = {name: Method(policy, _SOURCES[name]) for name, policy in POLICIES.items()}
METHODS["constant"] = Method(
    POLICIES["constant"], _SOURCES["constant"], hyper={"constant": _RATE}, neutral={"constant": 0.0}
)
