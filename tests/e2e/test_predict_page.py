"""The Predict page in a real browser: what a biologist does, also with two servers that share nothing."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from evaluated import right, write_evaluation
from fake_pool import FakePool
from gateways import FINGERPRINT, Behind, gateways
from reading import PLAIN, TATA, copied, fasta, row, saved

from polysome.inference.engine import Scores
from polysome.serving.calls import Overloaded
from polysome.serving.config import Limits

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
CORE = "/?task=core_promoter"


def say(conversation: list[dict[str, str]]) -> str:
    """A model that knows the TATA box, and writes markup."""
    asked = conversation[-1]["content"]
    if "melt" in asked.lower():
        return "It melts at 54 degrees."
    text = "Yes, there is." if "TATAAA" in asked else "No, there is not."
    return f"{text} <img src=x onerror=alert(1)>" if "NNNN" in asked else text


@pytest.fixture
def behind(tmp_path: Path) -> Behind:
    return Behind(tmp_path, FakePool(say))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a finished evaluation, with a calibration and an interval."""
    folder = tmp_path_factory.mktemp("exam")
    write_evaluation(folder, right(0.9), name="exam", model=FINGERPRINT, modes=["text", "scores"], baselines=[])
    return str(folder)


def test_a_biologist_pastes_fasta_and_takes_the_answers_away(visit, behind, evaluation):
    behind.settings["calibration"] = evaluation
    with gateways(behind) as url:
        page = visit(url, "/?task=planted_promoter")
        expect(page.get_by_text("Research use only.")).to_be_visible()
        expect(page.get_by_text("DNA, 1 to 64 letters")).to_be_visible()
        expect(page.get_by_text(re.compile(r"mcc 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\), on 80 rows"))).to_be_visible()
        records = {"=cmd|calc": TATA, "plain": PLAIN, "odd": TATA[:-5] + "NNNNN"}
        page.get_by_label("DNA sequences").fill(fasta(**records))
        expect(page.get_by_text("3 sequences, 61 to 62 letters.")).to_be_visible()
        page.get_by_role("button", name="Predict").click()
        expect(row(page, "plain")).to_contain_text("no")
        expect(row(page, "=cmd|calc").get_by_text(re.compile(r"^\d\d\.\d %$")).first).to_be_visible()
        expect(row(page, "odd")).to_contain_text("8% of the letters are ambiguity codes")
        expect(page.get_by_text("Calibrated probabilities")).to_be_visible()
        expect(page.get_by_text("fitted on 40 dev rows; expected calibration error")).to_be_visible()
        expect(page.locator("#provenance")).to_contain_text(f"polysome · fp_{FINGERPRINT}")
        row(page, "odd").get_by_text("Show").click()
        # What a model says is text, whatever it looks like.
        expect(row(page, "odd").get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
        lines = saved(page, "Download CSV").splitlines()
        assert lines[0].startswith(
            "id,label,probability,value,interval_low,interval_high,calibrated,warnings,text,p_yes"
        )
        assert lines[1].startswith("'=cmd|calc,yes,0.")
        assert lines[2].startswith("plain,no,0.")
        assert len(lines) == 4
        content = json.loads(saved(page, "Download JSON"))
        assert [one["id"] for one in content["predictions"]] == list(records)
        assert content["system_fingerprint"] == f"fp_{FINGERPRINT}"
        assert copied(page, "Copy as curl").startswith(f"curl '{url}/v1/predict' \\\n")
        python = copied(page, "Copy as Python")
        assert "API_KEY" not in python
        sent: dict[str, object] = {}
        fake = type("Answer", (), {"raise_for_status": lambda self: None, "json": lambda self: None})
        program = python.replace("import httpx\n", "").replace("httpx.post(", "post(")
        exec(
            program,
            {"post": lambda address, **rest: sent.update(rest, url=address) or fake(), "print": lambda *_: None},
        )
        assert sent["url"] == f"{url}/v1/predict"
        assert sent["json"]["sequences"] == list(records.values())


def test_answers_are_sorted_by_what_their_column_holds(visit, behind):
    with gateways(behind) as url:
        page = visit(url, CORE)
        page.get_by_label("DNA sequences").fill(fasta(b=TATA, c=PLAIN, a=PLAIN[:40]))
        page.get_by_role("button", name="Predict").click()
        heads = page.locator("#table tbody th")
        expect(heads).to_have_text(["b", "c", "a"])
        page.get_by_role("button", name="Record").click()
        expect(heads).to_have_text(["c", "b", "a"])
        page.get_by_role("button", name="Record").click()
        expect(heads).to_have_text(["a", "b", "c"])
        expect(page.get_by_role("columnheader", name="Record")).to_have_attribute("aria-sort", "ascending")


class BusyOnce(FakePool):
    """It refuses the first question."""

    async def score(self, *arguments: Any) -> Scores:
        self.error, before = None, self.error
        if before is not None:
            raise before
        return await super().score(*arguments)


def test_many_sequences_go_in_parts_to_two_servers_that_share_nothing_and_wait_while_they_are_busy(visit, behind):
    behind.pool = BusyOnce(say, error=Overloaded("too many requests wait"), pieces=1)
    behind.settings["limits"] = Limits(records=3)
    with gateways(behind, servers=2) as url:
        page = visit(url, CORE)
        page.get_by_label("DNA sequences").fill("\n".join([TATA, PLAIN] * 5))
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_text("The server is busy; going on in 2 s.")).to_be_visible()
        expect(page.locator("#table tbody tr")).to_have_count(10)
        expect(page.locator("#table tbody tr").nth(9)).to_contain_text("no")
        asked = [server for server, method, path in behind.seen if path == "/v1/predict"]
        # Four parts of at most three, one of them twice.
        assert (len(asked), set(asked)) == (5, {0, 1})
        for path in ("/chat", "/models", "/jobs", "/"):
            page.goto(url + path)
            expect(page.locator("#serving")).to_contain_text(FINGERPRINT)
        assert {server for server, _, path in behind.seen if path == "/v1/models"} == {0, 1}


def test_a_refusal_names_the_record_and_keeps_what_was_pasted(visit, behind):
    behind.settings["limits"] = Limits(records=3)
    with gateways(behind) as url:
        page = visit(url, CORE)
        area = page.get_by_label("DNA sequences")
        area.fill(fasta(r1=TATA, r2=PLAIN, r3=TATA, short="ACGT"))
        expect(page.get_by_text("4 sequences. Record short is shorter than 20.")).to_be_visible()
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("Record short: sequence length 4 is outside [20, 200]")
        # What was answered before is not thrown away.
        expect(page.locator("#table tbody tr")).to_have_count(3)
        expect(page.locator("#summary")).to_contain_text("1 not answered")
        expect(area).to_have_value(re.compile(">short\nACGT"))
        area.fill("")
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("Paste a sequence first")
        expect(area).to_be_focused()
        area.fill("stray\n>late\nACGT")
        expect(page.get_by_text("“stray” stands before the first header line")).to_be_visible()
        area.fill("ACGT!QQ")
        expect(page.get_by_text("has letters that no DNA has")).to_be_visible()


def test_numbers_pairs_and_files(visit, behind, evaluation, tmp_path):
    behind.settings["calibration"] = evaluation
    table = tmp_path / "pairs.csv"
    table.write_text(
        'protein,"RNA",id\r\n"MKTAYIAKQRQISFVKSHFS","GGCUACGUAGCUAGGCUAGC",one\r\nMKTAY,GGCUACGUAGCUAGGCUAGCAAA,\r\n'
    )
    with gateways(behind) as url:
        page = visit(url)
        page.get_by_label("Task", exact=True).select_option("thermostability")
        expect(page.get_by_text("Nobody has measured how good this model is")).to_be_visible()
        page.get_by_role("button", name="Use random letters").click()
        page.keyboard.press("Enter")
        expect(page.get_by_role("columnheader", name="Value")).to_be_visible()
        expect(page.locator("#table")).to_contain_text("unknown")
        page.get_by_label("Task", exact=True).select_option("planted_thermostability")
        page.get_by_role("button", name="Use an example").click()
        page.keyboard.press("Enter")
        expect(page.locator("#table")).to_contain_text(re.compile(r"\d+\.\d+ to \d+\.\d+"))
        page.get_by_label("Task", exact=True).select_option("rna_protein_interaction")
        page.get_by_label("RNA sequences").fill(fasta(a=TATA.replace("T", "U"), b="GGCUACGUAGCUAGGCUAGC"))
        page.get_by_label("Protein sequences").fill("MKTAYIAKQRQISFVKSHFS")
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("there must be as many, and there are 2 and 1")
        page.get_by_label("Open a file").set_input_files(table)
        expect(page.get_by_label("RNA sequences")).to_have_value(re.compile(r">one\nGGCUACGUAGCUAGGCUAGC\n>2\nGG"))
        expect(page.get_by_text("Record 2 is shorter than 10.")).to_be_visible()
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("Record 2: protein length 5 is outside [10, 10000]")
        page.get_by_label("Protein sequences").fill(fasta(one="MKTAYIAKQRQISFVKSHFS", two="MKTAYIAKQRQ"))
        page.get_by_role("button", name="Predict").click()
        expect(row(page, "one")).to_contain_text("no")
        table.write_text("rna,wrong\nA,C\n")
        page.get_by_label("Open a file").set_input_files(table)
        expect(page.get_by_role("alert")).to_contain_text("no column “protein”; it has rna, wrong")


def test_everything_can_be_done_with_the_keyboard(visit, behind):
    with gateways(behind) as url:
        page = visit(url)
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Task", exact=True)).to_be_focused()
        page.keyboard.type("Core")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(page.get_by_label("DNA sequences")).to_be_focused()
        page.keyboard.type(f">typed\n{TATA}")
        page.keyboard.press("Control+Enter")
        expect(row(page, "typed")).to_contain_text("yes")
        expect(page.get_by_role("heading", name="Answers")).to_be_focused()
        expect(page.get_by_role("status").filter(has_text="1 answer below")).to_have_count(1)


def test_a_batch_is_sent_and_found_again_from_another_tab(visit, behind, tmp_path):
    many = tmp_path / "many.fasta"
    many.write_text(fasta(**{f"r{number}": TATA for number in range(4)}, wrong="ACGT!"))
    with gateways(behind, servers=2) as url:
        page = visit(url, CORE)
        page.get_by_text("Many sequences?").click()
        page.get_by_label("Choose a file for the task above").set_input_files(many)
        batch = page.locator("[data-batch]")
        expect(batch).to_contain_text("of 5 records")
        expect(batch).to_contain_text("finished", timeout=15_000)
        expect(batch).to_contain_text("1 row with errors")
        with page.expect_download() as download:
            batch.get_by_role("button", name="Download CSV").click()
        with open(download.value.path(), newline="") as table:
            answers = list(csv.DictReader(table))
        assert [(answer["id"], answer["label"]) for answer in answers[:4]] == [(f"r{n}", "yes") for n in range(4)]
        assert (answers[4]["id"], answers[4]["label"], bool(answers[4]["error"])) == ("wrong", "", True)
        batch_id = batch.get_attribute("data-batch")
        other = page.context.new_page()
        other.goto(url)
        other.get_by_text("Many sequences?").click()
        other.get_by_label("Number of a batch").fill(batch_id)
        other.keyboard.press("Enter")
        expect(other.locator(f'[data-batch="{batch_id}"]')).to_contain_text("5 of 5 records")
        batch.get_by_role("button", name="Delete from the server").click()
        expect(batch).to_have_count(0)
        other.get_by_label("Number of a batch").fill("batch-9")
        other.keyboard.press("Enter")
        expect(other.get_by_role("alert")).to_contain_text("no batch 'batch-9'")


def test_when_the_server_is_gone_the_page_says_so_and_keeps_the_input(visit, behind):
    with gateways(behind) as url:
        page = visit(url, CORE)
        page.get_by_label("DNA sequences").fill(TATA)
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    expect(page.get_by_label("DNA sequences")).to_have_value(re.compile(TATA))
