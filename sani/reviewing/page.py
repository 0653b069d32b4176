"""The page of a review: one HTML file that loads nothing and works by keyboard.

The documents go into it as JSON, in which no character can end the element that holds it. Only the
page's own script runs: the browser is told its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sani.atomic import check_new_file, write_error, write_text
from sani.corpus.documents import Corpus
from sani.errors import ScanError
from sani.reviewing.draw import distinct_documents, draw, reviewed_spans
from sani.reviewing.material import FORMAT, Material, material_of
from sani.reviewing.size import documents_planned


def write_page(
    corpus: Corpus,
    path: Path,
    *,
    documents: int | None = None,
    interval: float = 0.05,
    seed: int = 0,
) -> tuple[int, ...]:
    """Write the page of a review, of mode 0600; it holds documents and identifiers in clear.

    Args:
        corpus: The documents with the findings of the scan.
        path: A new HTML file. Its folder is made with mode 0700 if it is not there.
        documents: How many documents to draw; None for as many as the interval needs.
        interval: Wanted distance from the recall to either end of its 95 % interval.
        seed: Of the draw.

    Returns:
        The numbers of the documents that were drawn, in the order of the page.

    Raises:
        ScanError: If no document has text, or the scan marks nothing.
        WriteError: If the file is there already, or cannot be written.
    """
    make_private_folder(path.parent)
    check_new_file(path)
    if not any(document.spans for document in corpus):
        raise ScanError(
            "the documents mark nothing, so there are no findings to review: give the file that "
            "sani scan --out wrote"
        )
    drawn = draw(corpus, documents or planned(corpus, interval), seed=seed)
    write_text(path, render_page(material_of(corpus), drawn), mode=0o600)
    return drawn


def planned(corpus: Corpus, interval: float) -> int:
    """Return how many documents of a corpus to review for an interval of the wanted width."""
    numbers = distinct_documents(corpus)
    direct = sum(s.kind == "direct" for n in numbers for s in reviewed_spans(corpus[n]))
    return min(len(numbers), documents_planned(direct, len(numbers), interval))


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner can read, unless it is there.

    Raises:
        WriteError: If it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None


def render_page(material: Material, drawn: tuple[int, ...]) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader("sani.reviewing"), autoescape=True, undefined=StrictUndefined
    )
    script, style = (
        environment.get_template(f"review.{name}.jinja").render() for name in ("js", "css")
    )
    return environment.get_template("review.html.jinja").render(
        data=Markup(_as_json(material, drawn)),
        script=Markup(script),
        style=Markup(style),
        script_digest=_source_digest(script),
        style_digest=_source_digest(style),
    )


def _as_json(material: Material, drawn: tuple[int, ...]) -> str:
    """Return the data of the page; offsets count characters, as everywhere in sani."""
    documents = []
    for number in drawn:
        document = material.corpus[number]
        spans = [
            [span.start, span.end, span.label, material.value_of(span, document)]
            for span in reviewed_spans(document)
        ]
        documents.append({"number": number, "text": document.text, "spans": spans})
    rows = [[row.label, row.value, row.occurrences, row.documents] for row in material.rows]
    data = {
        "version": FORMAT,
        "digest": material.digest,
        "labels": material.labels,
        "values": material.values,
        "rows": rows,
        "documents": documents,
    }
    # All of it is ASCII then, and these three are all that could begin or end anything in HTML.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"})


def _source_digest(source: str) -> str:
    """Return the digest by which a policy of the page names the only source that may run."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
