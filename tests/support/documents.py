"""Documents for tests of retrieval: small PDF files, and facts that questions are asked about."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PLACES = ("harbour", "library", "workshop", "greenhouse", "archive", "kitchen", "garage", "office", "museum", "bakery")
_THINGS = ("boxes", "tickets", "lamps", "tools", "maps", "tables", "papers", "seeds", "wheels", "bottles")
_VERBS = ("stores", "sorts", "repairs", "counts", "lends", "cleans", "orders", "labels", "weighs", "paints")


@dataclass(frozen=True)
class Fact:
    """Something that one document says.

    Attributes:
        title: What it is about.
        text: The document.
        question: What it answers.
    """

    title: str
    text: str
    question: str


FACTS = tuple(
    Fact(title, text, question)
    for title, text, question in (
        ("france", "Paris is the capital of France.", "What is the capital of France?"),
        ("cells", "Mitochondria produce most of the energy of a cell.", "Which part of a cell makes its energy?"),
        ("leave", "To take a day off, send the form to your team lead.", "How do I ask for vacation?"),
        ("laptop", "Purchases of laptops are approved by the IT department.", "Who has to agree to a new computer?"),
        ("bees", "Honey bees dance to tell each other where flowers are.", "How do bees share the place of food?"),
        ("tides", "The moon's gravity causes the tides of the ocean.", "Why does the sea rise and fall?"),
        ("everest", "Mount Everest is 8849 metres high.", "How tall is the highest mountain?"),
        ("penicillin", "Alexander Fleming discovered penicillin in 1928.", "Who found the first antibiotic?"),
        ("gutenberg", "Johannes Gutenberg built a printing press around 1450.", "Who invented printing with letters?"),
        ("blood", "The heart pumps blood through the body.", "Which organ moves blood around?"),
        ("volcano", "A volcano erupts when magma rises to the surface.", "What happens when molten rock comes up?"),
        ("chess", "In chess, the knight jumps in the shape of an L.", "How does the horse move on the board?"),
        ("bread", "Yeast makes bread rise by producing gas.", "What makes dough grow?"),
        ("speed", "Light travels about 300,000 kilometres in a second.", "How fast is light?"),
        ("amazon", "The Amazon carries more water than any other river.", "Which river is the largest by volume?"),
        ("violin", "A violin has four strings, tuned in fifths.", "How many strings are on a fiddle?"),
        ("titanic", "The Titanic sank in 1912 after hitting an iceberg.", "Which ship was sunk by ice?"),
        ("vaccine", "Edward Jenner tested a vaccine against smallpox in 1796.", "Who first vaccinated people?"),
        ("sahara", "The Sahara is the largest hot desert on Earth.", "Where is the biggest sandy desert?"),
        ("password", "Passwords of staff expire every ninety days.", "How often must I change my login secret?"),
    )
)


def write_documents(folder: Path, total: int, seed: int = 0) -> None:
    """Write `total` Markdown files: the facts, and made-up notes that answer none of the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(seed)
    for fact in FACTS:
        (folder / f"{fact.title}.md").write_text(f"# {fact.title.title()}\n\n{fact.text}\n")
    for number in range(total - len(FACTS)):
        lines = [
            f"The {chosen.choice(_PLACES)} {chosen.choice(_VERBS)} {chosen.randint(2, 900)} {chosen.choice(_THINGS)}."
            for _ in range(4)
        ]
        (folder / f"note{number:05}.md").write_text(f"# Note {number}\n\n{' '.join(lines)}\n")


def pdf_of(pages: list[str]) -> bytes:
    """Return a PDF with one line of text on each page; empty text makes an empty page."""
    return pdf_with([f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("latin-1") if text else b"" for text in pages])


def pdf_with(pages: list[bytes], entries: str = "") -> bytes:
    """Return a PDF whose pages have these contents; `entries` say how they are packed."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, packed in enumerate(pages):
        stream = packed.decode("latin-1")
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} {entries} >>\nstream\n{stream}\nendstream",
        ]
    whole, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(whole))
        whole += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    start = len(whole)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return whole + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()
