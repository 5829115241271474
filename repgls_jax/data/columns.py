"""Which column of a table plays which role."""

import dataclasses
from collections.abc import Mapping, Sequence

from repgls_jax import findings as findings_lib
from repgls_jax.data import cells

# role -> the spellings by which a column is recognised, lower-cased and without " ", "_", "-".
SPELLINGS: dict[str, tuple[str, ...]] = {
    "image": ("image", "imagepath", "imagefile", "imagefilename", "imageindex", "path", "filepath", "file", "filename"),
    "patient": ("patient", "patientid", "subject", "subjectid"),
    "study": ("study", "studyid", "accession", "accessionnumber"),
    "report": ("report", "reporttext", "text", "note", "notes"),
    "findings": ("findings",),
    "impression": ("impression",),
    "labels": ("labels", "findinglabels", "findingslabels"),
    "split": ("split", "subset", "partition"),
    "view": ("view", "viewposition", "projection"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
}
REQUIRED = {
    "image": "each row needs its image",
    "patient": "splits must not share patients; where a study is a patient, say patient=<the study column>",
}

_SHARED = ("patient", "study")  # one column may be both


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    Attributes:
      roles: role -> column; roles without a column are absent.
      labels: finding -> column, for tables with one column per finding.
      unused: the other columns.
    """

    roles: dict[str, str]
    labels: dict[str, str]
    unused: tuple[str, ...]


def resolve(names: Sequence[str], given: Mapping[str, str], vocabulary: findings_lib.Vocabulary) -> Columns:
    """Gives each role its column: the one named in ``given``, else the one whose name is recognised.

    Args:
      names: columns of the table.
      given: role or finding -> column; an empty column switches the role off.
      vocabulary: findings that label columns may be named after.

    Raises:
      ValueError: a role or column is unknown, a required role has no column, or several columns fit one role. The
        message lists the columns of the table.
    """
    found = f"the table's columns are: {cells.names(names)}"
    repeated = sorted({n for n in names if list(names).count(n) > 1})
    if repeated:
        raise ValueError(f"columns named twice: {cells.names(repeated)}; {found}")
    roles: dict[str, str] = {}
    labels: dict[str, str] = {}
    for role, column in given.items():
        finding = findings_lib.canonical(role)
        if role not in SPELLINGS and finding not in vocabulary.findings:
            raise ValueError(
                f"role {role!r} is unknown; expected one of {', '.join(SPELLINGS)}, or a finding of {vocabulary.name!r}"
            )
        if column and column not in names:
            raise ValueError(f"role {role!r} is mapped to the column {column!r}, which is not there; {found}")
        if role in SPELLINGS:
            roles[role] = column
        else:
            labels[finding] = column
    taken = {*roles.values(), *labels.values()}
    shareable = {roles.get(role, "") for role in _SHARED}
    for role, spellings in SPELLINGS.items():
        if role not in roles:
            free = [n for n in names if n not in taken or (role in _SHARED and n in shareable)]
            roles[role] = _one([n for n in free if _plain(n) in spellings], role, found)
    taken |= set(roles.values())
    if not given.get("labels"):
        for finding in vocabulary.findings:
            if finding not in labels:
                fits = [n for n in names if n not in taken and findings_lib.canonical(n) == finding]
                labels[finding] = _one(fits, finding, found)
    _check(roles, labels, found)
    used = {name for name in (*roles.values(), *labels.values()) if name}
    return Columns(
        roles={role: name for role, name in roles.items() if name},
        labels={finding: name for finding, name in labels.items() if name},
        unused=tuple(name for name in names if name not in used),
    )


def _check(roles: Mapping[str, str], labels: Mapping[str, str], found: str) -> None:
    for role, why in REQUIRED.items():
        if not roles[role]:
            raise ValueError(
                f"no column for the role {role!r} ({why}); {_how(role)}, or use one of the names "
                f"{', '.join(SPELLINGS[role])}; {found}"
            )
    if roles["report"] and (roles["findings"] or roles["impression"]):
        raise ValueError(
            f"both a whole report ({roles['report']!r}) and its sections ({roles['findings']!r}, "
            f"{roles['impression']!r}) were found; switch one off by an empty column: {_how('report')}"
        )
    if roles["labels"] and any(labels.values()):
        raise ValueError(
            f"labels are mapped both to the list column {roles['labels']!r} and to columns per finding "
            f"({', '.join(n for n in labels.values() if n)}); switch one off "
            f"by an empty column, {_how('labels')}, or drop the others"
        )


def _how(role: str) -> str:
    return (
        f"say which with --columns={role}=<column> (data_prep/build.py) "
        f"or --config.data.options.columns.{role}=<column> (launch/train.py)"
    )


def _plain(name: str) -> str:
    return "".join(ch for ch in name.lower() if ch not in " _-")


def _one(fits: Sequence[str], role: str, found: str) -> str:
    if len(fits) > 1:
        raise ValueError(f"several columns fit {role!r}: {', '.join(fits)}; {_how(role)} (empty for none); {found}")
    return fits[0] if fits else ""
