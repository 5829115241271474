"""What the page asks for: films, what networks say of them, overlays, and marked reports. No network code in it.

Films are named by the page only by a split and a number, or by a token that it was given: no name of a file comes in.
"""

import collections
import dataclasses
import pathlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from repgls_jax import trained
from repgls_jax.data import images, shards
from repgls_jax.data.build import REPORTS, SHARDS
from repgls_jax.evidence import stored, view, view_page
from repgls_jax.models import luvit
from repgls_jax.reports import engine as engine_lib
from repgls_jax.saliency import maps, overlays, regions, scoring

SIDE, THUMB = 640, 144  # pixels of a picture, and of one in the list
MOST_LISTED = 60
_KEPT = 24  # explanations that overlays can be had of


class NotHereError(LookupError):
    """What was asked for does not exist; the message is for the page."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A network, and how the page names it."""

    name: str
    trained: trained.Trained
    explainer: scoring.Explainer

    @classmethod
    def of(cls, path: str, methods: Sequence[str] = tuple(maps.METHODS)) -> "Reader":
        """The network at ``path``, see :func:`repgls_jax.trained.load`."""
        found = trained.load(path)
        made = scoring.Explainer.of(found.model, found.params, methods, batch_size=1)
        step = found.source.get("step")
        return cls(f"{found.source['name']}" + (f", step {step}" if step is not None else ""), found, made)

    def read(self, path: pathlib.Path, max_megapixels: float) -> np.ndarray:
        """A file as this network takes films: uint8 or uint16 [h, w, 1].

        Raises:
          repgls_jax.data.images.UnusableImageError: it is no film.
        """
        bits: images.Bits = 16 if self.trained.input["dtype"] == "uint16" else 8
        fit: images.Fit = "crop" if self.trained.preprocessing.get("fit") == "crop" else "pad"
        return images.read(path, self.trained.size, max_megapixels, bits, fit)[..., None]


@dataclasses.dataclass(frozen=True)
class Explained:
    """A film as each network saw it: its pixels [h, w], maps by method [c, rows, columns], and marks [c, h, w]."""

    films: list[np.ndarray]
    maps: list[Mapping[str, np.ndarray] | None]
    masks: np.ndarray | None


class Desk:
    """Answers the page. Can be asked from several threads; networks compute for one at a time."""

    def __init__(
        self,
        readers: Sequence[Reader],
        build: pathlib.Path | None = None,
        evidence: pathlib.Path | None = None,
        max_megapixels: float = images.PIL_MEGAPIXELS,
    ):
        """Opens the set, if there is one.

        Args:
          readers: networks, one or two.
          build: folder of the set to browse.
          evidence: file of evidence to show reports with; None reads them anew with the rules.
          max_megapixels: of a film.

        Raises:
          FileNotFoundError, ValueError: the build cannot be read, or there is nothing to show.
        """
        if not readers:
            raise ValueError("the page needs a network; name one by --model=PATH")
        self.readers, self._build, self._evidence = list(readers), build, evidence
        self._max_megapixels = max_megapixels
        self._busy, self._guard = threading.Lock(), threading.Lock()
        self._kept: collections.OrderedDict[str, Explained] = collections.OrderedDict()
        self._set: dict[str, _Split] = {}
        if build is not None:
            self.vocabulary = shards.vocabulary(build / SHARDS)
            self._set = {name: _Split(build, name) for name in _splits(build)}
            self._engine = engine_lib.Engine(self.vocabulary)

    def about(self) -> dict[str, Any]:
        """What there is to see: networks, methods, and the set's splits."""
        networks = [
            {
                "name": reader.name,
                "findings": list(reader.trained.vocabulary.findings),
                "size": reader.trained.size,
                "trained_under": (reader.trained.source.get("policy") or {}).get("name"),
            }
            for reader in self.readers
        ]
        return {
            "networks": networks,
            "methods": {name: maps.title(name) for name in self.readers[0].explainer.methods},
            "splits": {name: len(split.images) for name, split in self._set.items()},
            "findings": list(self.vocabulary.findings) if self._set else [],
            "reports": bool(self._build and (self._build / REPORTS).exists()),
        }

    def upload(self, path: pathlib.Path) -> dict[str, Any]:
        """What the networks say of the film in a file.

        Raises:
          repgls_jax.data.images.UnusableImageError: it is no film.
        """
        films = [reader.read(path, self._max_megapixels) for reader in self.readers]
        return self._explain(films, [None] * len(films), None)

    def film(self, split: str, number: int) -> dict[str, Any]:
        """What the networks say of a film of the set, and what the set says of it.

        Raises:
          NotHereError: there is no such film.
        """
        chosen = self._at(split, number)
        film = chosen.images.read([number])[0]
        problems: list[str | None] = []
        for reader in self.readers:
            try:
                luvit.require_input(reader.trained.input, film.dtype, film.shape[0], reader.name)
                problems.append(None)
            except ValueError as error:
                problems.append(str(error))
        masks = chosen.regions.read([number])[0] if chosen.regions is not None else None
        record = chosen.records[number]
        names = np.array(self.vocabulary.findings)
        shown = {"view": record["view"], "age": int(record["age"]), "sex": record["sex"]}
        if "truth" in record:
            shown["present"] = names[record["truth"] == 1].tolist()
        if record["observed"].any():
            shown["labelled"] = names[record["observed"] & (record["labels"] == 1)].tolist()
        report = bool(record["has_report"])
        return self._explain([film] * len(self.readers), problems, masks) | {"about": shown, "report": report}

    def _explain(
        self, films: list[np.ndarray], problems: Sequence[str | None], masks: np.ndarray | None
    ) -> dict[str, Any]:
        said: list[dict[str, Any]] = []
        kept: list[Mapping[str, np.ndarray] | None] = []
        for reader, film, problem in zip(self.readers, films, problems, strict=True):
            if problem is not None:
                said.append({"error": problem})
                kept.append(None)
                continue
            with self._busy:
                found = reader.explainer.explain(film[None])
            kept.append({name: values[0] for name, values in found["maps"].items()})
            numbers = {name: [round(float(x), 4) for x in found[name][0]] for name in ("probability", "rate")}
            said.append({"findings": list(reader.trained.vocabulary.findings), **numbers})
        token = secrets.token_urlsafe(12)
        with self._guard:
            self._kept[token] = Explained([film[..., 0] for film in films], kept, masks)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return {"token": token, "networks": said}

    def overlay(self, token: str, network: int, method: str, finding: str) -> bytes:
        """A PNG: the film with a map over it, or bare where ``method`` is "film".

        Raises:
          NotHereError: there is no such film, network, method or finding.
        """
        with self._guard:
            kept = self._kept.get(token)
        if kept is None:
            raise NotHereError("this film is no longer kept; open it again")
        if not 0 <= network < len(kept.films):
            raise NotHereError(f"there is no network {network}")
        findings = self.readers[network].trained.vocabulary.findings
        if finding not in findings:
            raise NotHereError("there is no such finding")
        values = None
        if method != "film":
            of = kept.maps[network]
            if of is None or method not in of:
                raise NotHereError("there is no such map")
            values = of[method][findings.index(finding)]
        mask = None
        if kept.masks is not None and finding in self.vocabulary.findings:
            mask = kept.masks[self.vocabulary.findings.index(finding)]
        return overlays.png(overlays.picture(kept.films[network], values, SIDE, mask))

    def thumb(self, split: str, number: int) -> bytes:
        """A small PNG of a film of the set.

        Raises:
          NotHereError: there is no such film.
        """
        film = images.eight_bits(self._at(split, number).images.read([number])[0, ..., 0])
        return overlays.png(Image.fromarray(film).resize((THUMB, THUMB), Image.Resampling.BICUBIC))

    def listed(self, split: str, start: int, finding: str) -> dict[str, Any]:
        """Numbers of films of a split from ``start`` on, of those with a finding or all ("").

        Raises:
          NotHereError: there is no such split or finding.
        """
        if split not in self._set:
            raise NotHereError("there is no such split")
        chosen = self._set[split]
        numbers = np.arange(len(chosen.images))
        if finding:
            if finding not in self.vocabulary.findings:
                raise NotHereError("there is no such finding")
            numbers = np.flatnonzero(chosen.positive()[:, self.vocabulary.findings.index(finding)])
        start = max(0, min(start, len(numbers)))
        return {"count": len(numbers), "start": start, "numbers": numbers[start : start + MOST_LISTED].tolist()}

    def report(self, split: str, number: int) -> str:
        """The report of a film's study as a page, its evidence marked.

        Raises:
          NotHereError: there is none.
          ValueError: the evidence file does not belong to it.
        """
        record = self._at(split, number).records[number]
        if self._build is None or not record["has_report"]:
            raise NotHereError("this film has no report")
        found = pq.read_table(self._build / REPORTS, filters=[("study_id", "==", record["study_id"])]).to_pylist()
        if not found:
            raise NotHereError("the report is not in the build")
        text = {name: found[0][name] or "" for name in engine_lib.FIELDS}
        report = {"study_id": record["study_id"], **text}
        if self._evidence is None:
            return view_page.render([view.live(report, self._engine)])
        rows = stored.rows_of(self._evidence, [record["study_id"]])[record["study_id"]]
        return view_page.render([view.stored(report, rows, f"evidence file {self._evidence.name}")])

    def _at(self, split: str, number: int) -> "_Split":
        if split not in self._set or not 0 <= number < len(self._set[split].images):
            raise NotHereError("there is no such film")
        return self._set[split]


class _Split:
    """One split of the set."""

    def __init__(self, build: pathlib.Path, name: str):
        self.images = shards.Images(build / SHARDS, name)
        small = ["study_id", "view", "sex", "age", "has_report", "labels", "observed"]
        every = shards.Records(build / SHARDS, name).fields
        self.records = shards.Records(build / SHARDS, name, small + [field for field in ("truth",) if field in every])
        found = regions.Regions(build, name)
        self.regions = found if len(found.films) else None
        self._lock = threading.Lock()
        self._positive: np.ndarray | None = None

    def positive(self) -> np.ndarray:
        """Whether a film shows a finding: its truth where that is known, else its label; bool [n, c]. Read once."""
        with self._lock:
            if self._positive is None:
                field = "truth" if "truth" in self.records.fields else "labels"
                self._positive = np.array([self.records[i][field] == 1 for i in range(len(self.records))])
            return self._positive


def _splits(build: pathlib.Path) -> list[str]:
    """The splits of a build."""
    import tensorflow_datasets as tfds

    return list(tfds.builder_from_directory(build / SHARDS).info.splits)
