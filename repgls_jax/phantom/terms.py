"""What findings are called, with side, place and size as drawn."""

import dataclasses

import numpy as np

from repgls_jax.phantom import lesions


@dataclasses.dataclass(frozen=True)
class Term:
    """A noun phrase: ``text`` without article; ``count`` takes "a", ``plural`` takes "are"."""

    text: str
    count: bool = False
    plural: bool = False


# Nouns of a denial; "|" parts alternatives.
DENIED = {
    "Enlarged Cardiomediastinum": "mediastinal widening|widening of the mediastinum",
    "Cardiomegaly": "cardiomegaly|cardiac enlargement",
    "Lung Opacity": "focal opacity|airspace opacity|focal airspace opacity|pulmonary opacity",
    "Lung Lesion": "pulmonary nodule|lung mass|suspicious nodule",
    "Edema": "pulmonary edema|overt edema|interstitial edema|edema",
    "Consolidation": "consolidation|focal consolidation|lobar consolidation",
    "Pneumonia": "pneumonia|focal pneumonia|acute pneumonia",
    "Atelectasis": "atelectasis|significant atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion|effusion|pleural fluid",
    "Pleural Other": "pleural thickening|pleural plaque",
    "Fracture": "acute fracture|displaced rib fracture|fracture",
    "Support Devices": "indwelling lines or tubes|support devices",
}

# The bare name.
SHORT = {
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "airspace opacity",
    "Lung Lesion": "lung nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "support device",
}

# Whole sentences that deny one finding.
DENYING = {
    "Cardiomegaly": (
        "Heart size is normal.",
        "The heart is normal in size.",
        "Heart is not enlarged.",
        "Cardiac size normal.",
    ),
    "Enlarged Cardiomediastinum": (
        "Mediastinal contours are normal.",
        "The mediastinum is not widened.",
        "Mediastinal contours are within normal limits.",
    ),
    "Pleural Effusion": ("Costophrenic angles are sharp.", "The costophrenic angles are clear."),
}
# Whole sentences that assert one finding.
ASSERTING = {
    "Cardiomegaly": (
        "The heart is {degree} enlarged.",
        "Cardiac silhouette is {degree} enlarged.",
        "{degree} enlarged cardiac silhouette.",
        "Enlarged heart.",
    ),
    "Enlarged Cardiomediastinum": (
        "The mediastinum is widened.",
        "Widened mediastinum.",
        "The cardiomediastinal silhouette is enlarged.",
    ),
}


def side_word(place: lesions.Place) -> str:
    """ "right", "left" or "bilateral"."""
    return "bilateral" if place.bilateral else "right" if place.side < 0 else "left"


def degree(contrast: float) -> str:
    """ "mildly", "moderately" or "markedly"."""
    return "mildly" if contrast < 0.45 else "moderately" if contrast < 0.9 else "markedly"


def _where(place: lesions.Place, pick: float) -> str:
    zone = ("upper", "mid", "lower")[place.zone]
    side = side_word(place)
    if place.bilateral:
        return f"both {zone} lung zones" if pick < 0.5 else f"the {zone} lungs bilaterally"
    if pick < 0.4 and place.zone != 1:
        return f"the {side} {zone} lobe"
    return f"the {side} {zone} lung zone" if pick < 0.7 else f"the {side} {zone} lung"


def term_of(name: str, place: lesions.Place, contrast: float, u: np.ndarray) -> Term:
    """A way to name finding ``name`` as it was drawn.

    Args:
      name: one of the thirteen findings.
      place: its place.
      contrast: its visibility, which gives words of size.
      u: [3] in [0, 1), picks among wordings.
    """
    side, where = side_word(place), _where(place, float(u[1]))
    small = (
        ("small ", "trace ", "tiny ")
        if contrast < 0.4
        else ("moderate ", "", "")
        if contrast < 0.9
        else ("large ",) * 3
    )
    size = small[int(u[0] * 3)] if u[2] < 0.7 else ""
    choices = _TERMS[name](place, side, where, size)
    return choices[int(u[0] * 7.3 % 1.0 * len(choices))]


def _opacity(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    if place.bilateral:
        return [Term(f"hazy opacities in {where}", plural=True), Term("bilateral airspace opacities", plural=True)]
    return [
        Term(f"hazy opacity in {where}", True),
        Term(f"ill-defined density in {where}", True),
        Term(f"opacity in {where}", True),
    ]


def _lesion(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    radius = lesions.lesion_radius(place)
    word = "mass" if radius > 0.1 else "nodule"
    millimetres = round(radius * 240)
    return [
        Term(f"{word} in {where}", True),
        Term(f"{millimetres} mm {word} in {where}", True),
        Term(f"rounded {side} lung {word}", True),
    ]


def _effusion(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    if place.bilateral:
        return [
            Term(f"{size}bilateral pleural effusions", plural=True),
            Term(f"{size}bilateral effusions", plural=True),
        ]
    return [
        Term(f"{size}{side} pleural effusion", True),
        Term(f"{size}{side} effusion", True),
        Term(f"{size}{side} pleural fluid"),
    ]


def _thickening(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    at = "apical" if lesions.thickening_is_apical(place) else "lateral"
    return [
        Term(f"{side} {at} pleural thickening"),
        Term(f"{side} {at} pleural scarring"),
        Term(f"{side} pleural plaque", True),
    ]


def _fracture(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    if lesions.fractures_are_many(place):
        return [Term(f"{side} rib fractures", plural=True), Term(f"displaced {side} rib fractures", plural=True)]
    return [
        Term(f"{side} rib fracture", True),
        Term(f"fracture of {'an upper' if place.zone == 0 else 'a lower'} {side} rib", True),
    ]


def _devices(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    names = {
        "central line": Term(f"{'right' if place.side < 0 else 'left'} central venous catheter", True),
        "endotracheal tube": Term("endotracheal tube", True),
        "enteric tube": Term("enteric tube", True),
        "pacemaker": Term(f"{'right' if place.side < 0 else 'left'} chest wall pacemaker", True),
        "sternal wires": Term("median sternotomy wires", plural=True),
        "chest tube": Term(f"{'right' if place.side < 0 else 'left'} chest tube", True),
    }
    terms = [names[kind] for kind in lesions.devices_of(place)]
    return terms[:1] if len(terms) == 1 else [Term(f"{terms[0].text} and {terms[1].text}", plural=True)]


def _atelectasis(place: lesions.Place, side: str, where: str, size: str) -> list[Term]:
    base = "bibasilar" if place.bilateral else f"{side} basilar"
    return [
        Term(f"{base} atelectasis"),
        Term(f"{base} plate-like atelectasis"),
        Term(f"linear atelectasis at the {'bases' if place.bilateral else side + ' base'}"),
        Term(f"{base} volume loss"),
    ]


_TERMS = {
    "Enlarged Cardiomediastinum": lambda p, s, w, z: [Term("mediastinal widening"), Term("widened mediastinum", True)],
    "Cardiomegaly": lambda p, s, w, z: [
        Term("cardiomegaly"),
        Term("cardiac enlargement"),
        Term("enlarged heart", True),
    ],
    "Lung Opacity": _opacity,
    "Lung Lesion": _lesion,
    "Edema": lambda p, s, w, z: [Term("pulmonary edema"), Term("interstitial edema"), Term("perihilar edema")],
    "Consolidation": lambda p, s, w, z: [Term(f"consolidation in {w}"), Term(f"focal consolidation in {w}", True)],
    "Pneumonia": lambda p, s, w, z: [
        Term(f"pneumonia in {w}"),
        Term("multifocal pneumonia" if p.bilateral else f"{s} lung pneumonia"),
    ],
    "Atelectasis": _atelectasis,
    "Pneumothorax": lambda p, s, w, z: [Term(f"{z}{s} pneumothorax", True), Term(f"{z}{s} apical pneumothorax", True)],
    "Pleural Effusion": _effusion,
    "Pleural Other": _thickening,
    "Fracture": _fracture,
    "Support Devices": _devices,
}

# The cause of a sign, without side: "Hazy opacity in the left lower lobe, likely pneumonia."
CAUSES = {
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
}
