"""Render one self-contained HTML page: warnings first, what was done, tables, a picture per subject.

The page needs no network, and stays small: its pictures are JPEG.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from app.core.plain_text import printable
from app.report.plotting import figure_class

#: Entries of one list, so that a browser opens the page of a large archive.
MOST_LISTED: Final = 500
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.notice { color: #8a1c1c; font-weight: 600; }
.warnings { background: #fff4d6; border-left: 4px solid #d79b00; padding: .6rem 1rem; overflow-wrap: anywhere; }
.failed { background: #fde3e3; border-left-color: #b3261e; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
figure { margin: .6rem 0 1.6rem; } figure img { width: 100%; background: #000; }
figcaption { color: #555; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="notice">Synthetic images: research use, not for diagnosis.</p>
{% for kind, names, class in (("failed", failures, " failed"), ("warnings", warnings, "")) if names %}
<div class="warnings{{ class }}"><strong>{{ names|length }} {{ kind }}</strong><ul>
{% for w in names[:most] %}<li>{{ w }}</li>{% endfor %}</ul>
{% if names|length > most %}and {{ names|length - most }} more: the files beside this page list all{% endif %}</div>
{% endfor %}
{% if not failures and not warnings %}<p>No warnings.</p>{% endif %}
<h2>What was done</h2>
<table>{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{% for t in tables %}<h2>{{ t.title }}</h2><table><tr>{% for c in t.header %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in t.rows %}<tr>{% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</table>{% endfor %}
{% if plot %}<h2>Distribution of the scores</h2><figure><img alt="box plots of the scores per sequence"
src="data:image/png;base64,{{ plot }}"></figure>{% endif %}
{% if calibration %}<h2>Calibration of the confidence</h2><figure><img alt="observed over expected error"
style="max-width: 500px; background: none" src="data:image/png;base64,{{ calibration }}"></figure>{% endif %}
<h2>Subjects</h2>
<p>Radiological convention: the patient's right is on the left. Axial, coronal and sagittal planes.
Each synthesis is scaled by its own percentiles, and shares its window with the truth where there is one.</p>
{% for s in subjects %}<figure id="{{ s.anchor }}"><figcaption>
<strong>{{ s.name }}</strong> {{ s.caption }}
{%- if s.view %} <a href="{{ s.view }}">scroll through it</a>{% endif %}</figcaption>
{% if s.image %}<img alt="{{ s.name }}: inputs and synthesis in three planes" loading="lazy"
src="data:image/jpeg;base64,{{ s.image }}">{% endif %}</figure>{% endfor %}
{% if left_out %}<p>{{ left_out }} more without a picture: the files beside this page list all.</p>{% endif %}
</body></html>
"""


@dataclass(frozen=True)
class Table:
    """Hold a table of ready-made cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class SubjectEntry:
    """Hold one figure of the page; `jpeg` may be empty, and `view`, the place of a page to scroll through."""

    name: str
    caption: str
    jpeg: bytes = b""
    view: str = ""


@dataclass
class Page:
    """Hold what the page says; `plot` and `calibration` are PNG, or empty."""

    title: str
    facts: Mapping[str, str]
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    subjects: list[SubjectEntry] = field(default_factory=list)
    plot: bytes = b""
    calibration: bytes = b""


def render(page: Page) -> bytes:
    """Render the page as UTF-8 HTML; every text is escaped, and control characters are shown as such.

    Of more than `MOST_LISTED` failures, warnings or subjects it says how many more there are; pictures are all shown.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown)
    shown = _choose_shown(page.subjects)
    subjects = [
        {"name": s.name, "caption": s.caption, "anchor": f"s{i}", "image": _base64(s.jpeg), "view": s.view}
        for i, s in enumerate(shown)
    ]
    limits = {"most": MOST_LISTED, "left_out": len(page.subjects) - len(shown)}
    pictures = {"plot": _base64(page.plot), "calibration": _base64(page.calibration)}
    text = environment.from_string(_TEMPLATE).render(**{**vars(page), **pictures, **limits, "subjects": subjects})
    return text.encode()


def _choose_shown(subjects: Sequence[SubjectEntry]) -> list[SubjectEntry]:
    """Keep every picture, and of the rest the first ones."""
    room = MOST_LISTED - sum(bool(s.jpeg) for s in subjects)
    shown = []
    for subject in subjects:
        room -= not subject.jpeg
        if subject.jpeg or room >= 0:
            shown.append(subject)
    return shown


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def distribution_plot(values: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Draw a PNG with one panel per metric and one box per group.

    Args:
        values: per metric, per group, the scores; those that are not finite are left out.
    """
    figure = figure_class()(figsize=(3.2 * len(values), 3.0), layout="constrained")
    panels: Any = figure.subplots(1, len(values), squeeze=False)[0]
    for panel, (metric, groups) in zip(panels, values.items(), strict=True):
        data = [np.asarray([v for v in g if np.isfinite(v)]) for g in groups.values()]
        panel.boxplot(data, tick_labels=list(groups), widths=0.6)
        for place, points in enumerate(data, start=1):
            panel.plot(np.full(len(points), place), points, ".", color="0.4", alpha=0.5, markersize=4)
        panel.set_title(metric, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
