"""What the codes of Open-i's reports say of findings.

A code is a heading and what narrows it down, as "Opacity/lung/base/left/mild". People gave them to whole reports,
hedged statements included; "borderline" is the one doubt that they wrote down. A finding that is not coded may be
denied or not spoken of, which codes do not tell apart, so that it counts as not mentioned.
"""

from collections.abc import Sequence

import numpy as np

from repgls_jax import findings as findings_lib

# Heading of a code -> (part that must follow it somewhere, or ""; findings).
CODES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "normal": (("", (findings_lib.NO_FINDING,)),),
    "Cardiomegaly": (("", ("Cardiomegaly",)),),
    "Cardiac Shadow": (("enlarged", ("Cardiomegaly",)),),
    "Mediastinum": (("enlarged", ("Enlarged Cardiomediastinum",)),),
    "Opacity": (("lung", ("Lung Opacity",)),),
    "Density": (("lung", ("Lung Opacity",)),),
    "Airspace Disease": (("", ("Lung Opacity",)),),
    "Infiltrate": (("", ("Infiltrate", "Lung Opacity")),),
    "Nodule": (("", ("Nodule",)), ("lung", ("Lung Lesion",))),
    "Mass": (("", ("Mass",)), ("lung", ("Lung Lesion",))),
    "Granuloma": (("lung", ("Nodule", "Lung Lesion")),),
    "Calcified Granuloma": (("lung", ("Nodule", "Lung Lesion")),),
    "Pulmonary Congestion": (("", ("Edema",)),),
    "Pulmonary Edema": (("", ("Edema",)),),
    "Consolidation": (("", ("Consolidation",)),),
    "Pneumonia": (("", ("Pneumonia",)),),
    "Pulmonary Atelectasis": (("", ("Atelectasis",)),),
    "Volume Loss": (("lung", ("Atelectasis",)),),
    "Pneumothorax": (("", ("Pneumothorax",)),),
    "Hydropneumothorax": (("", ("Pneumothorax", "Pleural Effusion")),),
    "Pleural Effusion": (("", ("Pleural Effusion",)),),
    "Thickening": (("pleura", ("Pleural Thickening", "Pleural Other")),),
    "Cicatrix": (("pleura", ("Pleural Other",)),),
    "Emphysema": (("", ("Emphysema",)),),
    "Pulmonary Emphysema": (("", ("Emphysema",)),),
    "Bullous Emphysema": (("", ("Emphysema",)),),
    "Pulmonary Disease, Chronic Obstructive": (("", ("Emphysema",)),),
    "Fibrosis": (("", ("Fibrosis",)),),
    "Pulmonary Fibrosis": (("", ("Fibrosis",)),),
    "Hernia, Hiatal": (("", ("Hernia",)),),
    "Hernia, Diaphragmatic": (("", ("Hernia",)),),
    "Fractures, Bone": (("", ("Fracture",)),),
    **dict.fromkeys(
        ("Catheters, Indwelling", "Implanted Medical Device", "Medical Device", "Tube, Inserted", "Stents",
         "Surgical Instruments", "Sutures", "Spinal Fusion"),
        (("", ("Support Devices",)),),
    ),
}  # fmt: skip
# Headings that only hint at their findings: uncertain.
HINTS = {"Pulmonary Congestion"}
_DOUBT = "borderline"


def labels(codes: Sequence[Sequence[str]], vocabulary: findings_lib.Vocabulary) -> np.ndarray:
    """Labels of reports.

    Args:
      codes: of each of n reports.
      vocabulary: order of the axis c.

    Returns:
      int8 [n, c] label states: 1, -1 or -2. A finding that is coded both plainly and with a doubt is positive.
    """
    states = np.full((len(codes), len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    for row, listed in zip(states, codes, strict=True):
        for code in listed:
            heading, *parts = code.split("/")
            certain = findings_lib.UNCERTAIN if _DOUBT in parts or heading in HINTS else findings_lib.POSITIVE
            rules = CODES.get(heading, ())
            for finding in [f for part, found in rules if not part or part in parts for f in found]:
                if finding in vocabulary.findings:
                    k = vocabulary.index(finding)
                    row[k] = max(row[k], certain)
    return states
