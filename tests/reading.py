"""What tests of the pages type, and read in a browser: a table's row, what was copied, what was saved."""

from pathlib import Path
from typing import Any

TATA = "GCGCGGAGCCTATAAAAGGCAGCGGCTCAGTCGGCACTCAGTTCCGAGCTGCAGCTTGGACC"
PLAIN = "CATTGACCGATTACGGCATCGATTGCCATGACCTTAGCGATCCAATGCCGTTAGCATTCGG"


def fasta(**records: str) -> str:
    return "".join(f">{name}\n{sequence}\n" for name, sequence in records.items())


def copied(page: Any, button: str) -> str:
    from playwright.sync_api import expect

    done = page.get_by_role("button", name="Copied")
    expect(done).to_have_count(0)
    page.get_by_role("button", name=button).click()
    expect(done).to_be_visible()
    return page.evaluate("() => navigator.clipboard.readText()")


def saved(page: Any, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes().decode()


def row(page: Any, name: str):
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))
