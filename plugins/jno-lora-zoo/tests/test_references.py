"""The papers that the first party's adapters cite are those of their documentation."""

import re

import pytest

from jno.lora import registered

FIELD = re.compile(r"^\s*(\w+) = \{(.*?)\},$", re.MULTILINE | re.DOTALL)


# One adapter for each text: the adapters of a method have its entries and documentation.
CLASSES = {
    (wrapper.cls.about.bibtex, wrapper.cls.__doc__): wrapper.cls
    for record in registered()
    if record.distribution.startswith("jno-lora-")
    for wrapper in record.wrappers
    if wrapper.name != "AdapterSum"  # which has the papers of its members
}


def plain(text):
    text = text.replace(r"{\"u}", "ü").replace(r"{\l}", "ł")
    return " ".join(re.sub(r"[{}\\\"]", "", text).split())


@pytest.mark.parametrize("cls", CLASSES.values(), ids=lambda cls: cls.__name__)
def test_the_entries_are_whole_and_agree_with_the_documentation(cls):
    documentation = " ".join(cls.__doc__.split())
    for entry in re.split(r"^[ ]*(?=@)", cls.about.bibtex, flags=re.MULTILINE)[1:]:
        assert re.match(r"@misc\{[a-z]+\d{4}[a-z0-9]+,\n", entry)
        assert entry.count("{") == entry.count("}")
        fields = dict(FIELD.findall(entry))
        assert fields.keys() == {"title", "author", "year", "eprint", "archivePrefix"}
        if fields["archivePrefix"] == "arXiv":  # whose numbers begin with the year and month
            assert fields["year"] == f"20{fields['eprint'][:2]}"
        number = f"{fields['archivePrefix']}:{fields['eprint']}"
        title = re.search(rf'"([^"]*)", {number}', documentation)
        assert title is not None and plain(fields["title"]).startswith(title[1])
        assert plain(fields["author"]).split(",")[0].split()[-1] in documentation
    assert f"eprint = {{{cls.about.paper}}}" in cls.about.bibtex
