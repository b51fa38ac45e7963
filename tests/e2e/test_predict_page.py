"""The Predict page in a real browser: what a biologist does, also with two servers that share nothing."""

import json
import re
from pathlib import Path

import pytest
from pages_server import FINGERPRINT, PLAIN, TATA, Cluster, pages_served
from reading import copied, fasta, row, saved

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def test_a_biologist_pastes_fasta_and_takes_the_answers_away(visit):
    with pages_served() as url:
        page = visit(url)
        expect(page.get_by_text("Research use only.")).to_be_visible()
        expect(page.get_by_text("DNA, 20 to 200 letters")).to_be_visible()
        expect(page.get_by_text("mcc 0.618 (0.599 to 0.639), on 5,920 rows")).to_be_visible()
        records = {"=cmd|calc": TATA, "plain": PLAIN, "odd": TATA + "NNNNN"}
        page.get_by_label("DNA sequences").fill(fasta(**records))
        expect(page.get_by_text("3 sequences, 71 to 76 letters.")).to_be_visible()
        page.get_by_role("button", name="Predict").click()
        expect(row(page, "plain")).to_contain_text("no")
        expect(row(page, "=cmd|calc").get_by_text(re.compile(r"^\d\d\.\d %$")).first).to_be_visible()
        expect(row(page, "odd")).to_contain_text("12% of the letters are ambiguity codes")
        expect(page.get_by_text("Calibrated probabilities")).to_be_visible()
        expect(page.get_by_text("fitted on 500 dev rows of core_promoter")).to_be_visible()
        expect(page.locator("#provenance")).to_contain_text(f"polysome · {FINGERPRINT}")
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
        assert content["system_fingerprint"] == FINGERPRINT
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


def test_answers_are_sorted_by_what_their_column_holds(visit):
    with pages_served() as url:
        page = visit(url)
        page.get_by_label("DNA sequences").fill(fasta(b=TATA, c=PLAIN, a=PLAIN[:40]))
        page.get_by_role("button", name="Predict").click()
        heads = page.locator("#table tbody th")
        expect(heads).to_have_text(["b", "c", "a"])
        page.get_by_role("button", name="Record").click()
        expect(heads).to_have_text(["c", "b", "a"])
        page.get_by_role("button", name="Record").click()
        expect(heads).to_have_text(["a", "b", "c"])
        expect(page.get_by_role("columnheader", name="Record")).to_have_attribute("aria-sort", "ascending")


def test_many_sequences_go_in_parts_to_two_servers_that_share_nothing_and_wait_while_they_are_busy(visit):
    cluster = Cluster(busy=1)
    with pages_served(cluster=cluster, servers=2) as url:
        page = visit(url)
        page.get_by_label("DNA sequences").fill("\n".join([TATA, PLAIN] * 5))
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_text("The server is busy; going on in 1 s.")).to_be_visible()
        expect(page.locator("#table tbody tr")).to_have_count(10)
        expect(page.locator("#table tbody tr").nth(9)).to_contain_text("no")
        asked = [server for server, method, path in cluster.seen if path == "/v1/predict"]
        # Four parts of at most three, one of them twice.
        assert (len(asked), set(asked)) == (5, {0, 1})
        for path in ("/chat", "/models", "/jobs", "/"):
            page.goto(url + path)
            expect(page.locator("#serving")).to_contain_text(FINGERPRINT)
        assert {server for server, _, path in cluster.seen if path == "/v1/models"} == {0, 1}


def test_a_refusal_names_the_record_and_keeps_what_was_pasted(visit):
    with pages_served() as url:
        page = visit(url)
        area = page.get_by_label("DNA sequences")
        area.fill(fasta(r1=TATA, r2=PLAIN, r3=TATA, short="ACGT"))
        expect(page.get_by_text("4 sequences. Record short is shorter than 20.")).to_be_visible()
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("Record short: too short")
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


def test_numbers_pairs_and_files(visit, tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text(
        'protein,"RNA",id\r\n"MKTAYIAKQRQISFVKSHFS","GGCUACGUAGCUAGGCUAGC",one\r\nMKTAY,GGCUACGUAGCUAGGCUAGCAAA,\r\n'
    )
    with pages_served() as url:
        page = visit(url)
        page.get_by_label("Task", exact=True).select_option("thermostability")
        expect(page.get_by_text("Nobody has measured how good this model is")).to_be_visible()
        page.get_by_role("button", name="Use random letters").click()
        page.keyboard.press("Enter")
        expect(page.get_by_role("columnheader", name="Value")).to_be_visible()
        expect(page.locator("#table")).to_contain_text(re.compile(r"\d+\.\d+ to \d+\.\d+"))
        page.get_by_label("Task", exact=True).select_option("rna_protein_interaction")
        page.get_by_label("RNA sequences").fill(fasta(a=TATA.replace("T", "U"), b="GGCUACGUAGCUAGGCUAGC"))
        page.get_by_label("Protein sequences").fill("MKTAYIAKQRQISFVKSHFS")
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("there must be as many, and there are 2 and 1")
        page.get_by_label("Open a file").set_input_files(table)
        expect(page.get_by_label("RNA sequences")).to_have_value(re.compile(r">one\nGGCUACGUAGCUAGGCUAGC\n>2\nGG"))
        expect(page.get_by_text("Record 2 is shorter than 20.")).to_be_visible()
        page.get_by_role("button", name="Predict").click()
        expect(row(page, "one")).to_contain_text("no")
        table.write_text("rna,wrong\nA,C\n")
        page.get_by_label("Open a file").set_input_files(table)
        expect(page.get_by_role("alert")).to_contain_text("no column “protein”; it has rna, wrong")


def test_everything_can_be_done_with_the_keyboard(visit):
    with pages_served() as url:
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


def test_a_batch_is_sent_and_found_again_from_another_tab(visit, tmp_path):
    many = tmp_path / "many.fasta"
    many.write_text(fasta(**{f"r{number}": TATA for number in range(5)}))
    with pages_served(cluster=Cluster(), servers=2) as url:
        page = visit(url)
        page.get_by_text("Many sequences?").click()
        page.get_by_label("Choose a file for the task above").set_input_files(many)
        batch = page.locator('[data-batch="batch-1"]')
        expect(batch).to_contain_text("of 5 records")
        expect(batch).to_contain_text("finished", timeout=15_000)
        expect(batch).to_contain_text("1 row with errors")
        with page.expect_download() as download:
            batch.get_by_role("button", name="Download CSV").click()
        assert Path(download.value.path()).read_text() == "id,label\nr1,yes\n"
        other = page.context.new_page()
        other.goto(url)
        other.get_by_text("Many sequences?").click()
        other.get_by_label("Number of a batch").fill("batch-1")
        other.keyboard.press("Enter")
        expect(other.locator('[data-batch="batch-1"]')).to_contain_text("5 of 5 records")
        batch.get_by_role("button", name="Delete from the server").click()
        expect(batch).to_have_count(0)
        other.get_by_label("Number of a batch").fill("batch-9")
        other.keyboard.press("Enter")
        expect(other.get_by_role("alert")).to_contain_text("no batch 'batch-9'")


def test_when_the_server_is_gone_the_page_says_so_and_keeps_the_input(visit):
    with pages_served() as url:
        page = visit(url)
        page.get_by_role("button", name="Use an example").click()
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    expect(page.get_by_label("DNA sequences")).to_have_value(re.compile(TATA))
