"""Links between the documents lead somewhere, and files that they name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = DOCS / "config_reference.md"  # by the build of the site
PAGES = [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if path != GENERATED and "_build" not in path.relative_to(DOCS).parts
]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES]
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]


def text_of(document: Path) -> str:
    """Return a document without its blocks of code, in which brackets and # mean something else."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    if document.resolve() == GENERATED:
        groups = sorted(path.name for path in (ROOT / "cfg").iterdir() if path.is_dir())
        return {*groups, *(path.stem for path in (ROOT / "cfg").glob("*.yaml"))}
    headings = re.findall(r"^#+ +(.+?) *$", text_of(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_relative_links_and_anchors_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" in link or link.startswith("_build/"):  # a picture that the build makes
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists() or target.resolve() == GENERATED, link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_files_that_are_named_exist(document):
    named = re.findall(r"`((?:src|tests|docs|benchmarks|recipes)/[\w/.]+\.\w+)", text_of(document))
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_architecture_page_names_every_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## One step")[0]
    packages = [path.parent.name for path in (ROOT / "src" / "distinf").glob("*/__init__.py")]
    assert len(packages) > 5
    assert not [name for name in packages if f"| `{name}` |" not in table]
    drawing = (DOCS / "packages.svg").read_text(encoding="utf-8")
    assert not [name for name in packages if f">{name}</tspan>" not in drawing]


def test_every_document_is_reached_from_the_readme():
    seen, new = set(), [ROOT / "README.md"]
    while new:
        document = new.pop()
        seen.add(document)
        links = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", text_of(document))
        linked = {(document.parent / link).resolve() for link in links if "://" not in link}
        new += linked - seen - {GENERATED}
    assert set(PAGES) <= seen


def test_every_page_is_in_the_site_s_contents():
    found = set()
    for index in (DOCS / "index.md", DOCS / "launchers" / "index.md"):
        trees = re.findall(r"^```\{toctree\}\n(.*?)^```", index.read_text("utf-8"), re.M | re.S)
        names = [line for tree in trees for line in tree.splitlines() if re.match(r"\w", line)]
        found |= {index.parent / f"{name}.md" for name in names}
    assert {*PAGES, GENERATED} - {DOCS / "index.md"} <= found


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
