"""The pages in a real browser: keys, chat, models, evaluations and jobs, also with two servers that share nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_pool import FakePool
from gateways import ADAPTER, FINGERPRINT, Behind, gateways
from reading import TATA, copied, row

from polysome.config import ResourceError
from polysome.serving import keys
from polysome.serving.jobs_api import JobStatus

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


@pytest.fixture
def guarded(tmp_path: Path) -> Behind:
    """Gateways that ask for a key."""
    return Behind(tmp_path, settings={"keys": str(tmp_path / "private" / "keys.json")})


def key(behind: Behind, *scopes: str) -> str:
    return keys.create(behind.settings["keys"], team="genomics", scopes=scopes, expires=None)[1]


@pytest.mark.parametrize("path", ["/", "/chat", "/models", "/evaluations", "/jobs"])
def test_every_control_has_a_name_and_the_page_is_quick(visit, path, tmp_path):
    with gateways(Behind(tmp_path)) as url:
        page = visit(url, path)
        page.wait_for_load_state("networkidle")
        nameless = page.locator("button, input, select, textarea, a, summary, progress, iframe").evaluate_all(
            """all => all.filter(one => one.checkVisibility() && !one.ariaLabel && !one.textContent.trim()
                && !(one.labels && one.labels.length)).map(one => one.outerHTML)"""
        )
        assert nameless == []
        assert page.evaluate("() => performance.getEntriesByType('resource').length") <= 16
        for width in (320, 1600):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_key_stays_in_its_tab(visit, guarded):
    ada = key(guarded, "infer", "batch", "submit")
    with gateways(guarded, servers=2) as url:
        page = visit(url)
        expect(page.get_by_role("alert")).to_contain_text("This server asks for an API key.")
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_label("Key", exact=True).fill("omk_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("the API key is not valid")
        page.get_by_role("button", name="API key", exact=False).first.click()
        page.get_by_label("Key", exact=True).fill(ada)
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_be_empty()
        page.get_by_label("Task", exact=True).select_option("core_promoter")
        page.get_by_role("button", name="Use random letters").click()
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("#table tbody tr")).to_have_count(1)
        assert "$POLYSOME_API_KEY" in copied(page, "Copy as curl")
        assert ada not in copied(page, "Copy as Python")
        assert ada not in page.content() + page.url
        page.get_by_role("link", name="Models").click()
        expect(page.get_by_role("heading", name=ADAPTER.id)).to_be_visible()
        assert page.evaluate("() => localStorage.length") == 0
        assert page.context.cookies() == []
        other = page.context.new_page()
        other.goto(url)
        expect(other.get_by_role("alert")).to_contain_text("asks for an API key")
        page.get_by_role("button", name="API key set").click()
        page.get_by_role("button", name="Forget it").click()
        expect(page.get_by_role("alert")).to_contain_text("asks for an API key")


def test_a_chat_is_written_as_it_comes_and_can_be_stopped(visit, tmp_path):
    def say(conversation: list[dict[str, str]]) -> str:
        poem = " ".join(f"word{number}" for number in range(100))
        return poem if "poem" in conversation[-1]["content"] else "Yes, a core promoter is predicted."

    with gateways(Behind(tmp_path, FakePool(say, pause=0.03)), servers=2) as url:
        page = visit(url, f"/chat?model={ADAPTER.id}")
        message = page.get_by_label("Your message")
        message.fill(f"{TATA} Is there a core promoter?")
        page.keyboard.press("Enter")
        answer = page.get_by_role("article", name=ADAPTER.id)
        expect(answer).to_have_attribute("aria-busy", "true")
        expect(answer).to_contain_text("Yes, a core promoter is predicted.")
        expect(answer).to_contain_text("35 tokens")
        expect(answer).to_contain_text(f"fp_{FINGERPRINT}-{ADAPTER.fingerprint}")
        expect(message).to_be_focused()
        page.keyboard.type("A poem, please.")
        page.keyboard.press("Enter")
        poem = answer.nth(1)
        expect(poem).to_contain_text("word3 ")
        page.get_by_role("button", name="Stop").click()
        expect(poem).to_contain_text("Stopped")
        assert "word17" not in poem.inner_text()
        python = copied(page, "Copy as Python")
        assert 'OpenAI(base_url="' in python
        assert "Yes, a core promoter is predicted." in python
        page.get_by_role("button", name="New conversation").click()
        expect(page.get_by_text("Nothing was asked yet.")).to_be_visible()


def test_a_chat_that_breaks_says_so_and_keeps_the_rest(visit, tmp_path):
    pool = FakePool("Yes, a core promoter", error=ResourceError("the replica is gone"), pieces=6)
    with gateways(Behind(tmp_path, pool)) as url:
        page = visit(url, "/chat")
        page.get_by_label("Your message").fill("break it")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert")).to_contain_text("the replica is gone")
        expect(page.get_by_role("article", name="polysome")).to_contain_text("Yes, a")
        expect(page.get_by_role("article", name="polysome")).to_contain_text("Incomplete")


def test_models_lead_to_their_use(visit, tmp_path):
    with gateways(Behind(tmp_path)) as url:
        page = visit(url, "/models")
        card = page.get_by_role("region", name=ADAPTER.id)
        expect(card).to_contain_text("On top of")
        expect(card).to_contain_text("2,048 tokens")
        card.get_by_role("link", name="Predict with it").click()
        expect(page.get_by_label("Model", exact=True)).to_have_value(ADAPTER.id)
        page.get_by_label("Task", exact=True).select_option("core_promoter")
        page.get_by_role("button", name="Use random letters").click()
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("#provenance")).to_contain_text(f"polysome with adapter {ADAPTER.id}")
        expect(page.locator("#serving")).to_contain_text(ADAPTER.id)


@pytest.fixture
def evaluated(guarded: Behind) -> Behind:
    """Gateways whose runs are a training, an evaluation of the adapter, and one of the base, the report of which tries
    what it must not."""
    from polysome.evaluation.measure import Estimate, Measurement
    from polysome.evaluation.results import Evaluation, TaskResult
    from polysome.operations.runs import start
    from polysome.storage import write_json

    def task(name: str, value: float) -> TaskResult:
        measured = Measurement("mcc", 200, Estimate(value, value - 0.1, value + 0.05), None)
        return TaskResult(name, name.title(), "dna", 1, "f" * 16, "MIT", {}, styles={"strict": measured})

    tasks = (task("promoter", 0.8), task("splicing", 0.4))
    with start(guarded.runs, "evaluate", "adapted", {}, run_id="adapted") as run:
        found = Evaluation("adapted", "models/tiny", FINGERPRINT, tasks[:1], 200, 0, 6.5, {}, adapter="adapters/2")
        found = replace(found, adapter_fingerprint=ADAPTER.adapter_fingerprint)
        write_json(f"{run.folder}/results.json", found.to_json())
    with start(guarded.runs, "evaluate", "exam", {}, run_id="exam") as run:
        found = Evaluation("exam", "models/tiny", FINGERPRINT, tasks, 400, 0, 12.5, {})
        write_json(f"{run.folder}/results.json", found.to_json())
        Path(run.folder, "report.html").write_text(
            "<!doctype html><style>h1{color:rgb(1, 2, 3)}</style><h1>Found</h1><a href='#far'>Far</a>"
            "<p style=\"width:7px\" id=narrow></p><script>parent.document.title = 'broken out'</script>"
            "<p onclick=\"parent.document.title = 'broken out'\">Click</p><div id=far>There</div>"
        )
    with start(guarded.runs, "train", "stage1", {}, run_id="stage1") as run:
        lines = [{"update": n, "updates": 9, "loss": 9 / n, "tokens_per_second": 1234.5} for n in range(1, 10)]
        Path(run.folder, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return guarded


def test_evaluations_show_their_report_in_a_frame_that_runs_nothing(visit, evaluated):
    reader = key(evaluated, "infer")
    with gateways(evaluated) as url:
        page = visit(url, "/evaluations")
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_label("Key", exact=True).fill(reader)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="exam").click()
        expect(page.get_by_role("heading", name="exam")).to_be_focused()
        expect(row(page, "Promoter")).to_contain_text("70.00 to 85.00")
        assert page.url.endswith("?id=exam")
        page.get_by_role("button", name="Open the report").click()
        frame = page.frame_locator("iframe")
        expect(frame.get_by_role("heading", name="Found")).to_have_css("color", "rgb(1, 2, 3)")
        expect(frame.locator("#narrow")).to_have_css("width", "7px")
        frame.get_by_text("Click").click()
        frame.get_by_text("Far").click()
        expect(frame.get_by_text("There")).to_be_visible()
        assert page.title() == "Evaluations · Polysome"
        assert "allow-scripts" not in page.locator("iframe").get_attribute("sandbox")
        page.get_by_label("Compare on one task").select_option(label="Splicing")
        expect(row(page, "exam")).to_contain_text("30.00 to 45.00")
        page.reload()
        expect(page.get_by_role("heading", name="exam")).to_be_visible()
        page.goto(url + "/models")
        expect(page.get_by_role("region", name="polysome", exact=True)).to_contain_text("Evaluated on 2 tasks")
        expect(page.get_by_role("region", name=ADAPTER.id)).to_contain_text("Evaluated on 1 task")


def test_a_job_is_submitted_watched_stopped_and_resumed(visit, evaluated):
    evaluated.settings.clear()
    jobs = evaluated.jobs
    jobs.put(
        JobStatus("old-1", "tiny", "failed", "genomics", "ada", "2026-11-20T12:52:08Z", message="the disk is full")
    )
    with gateways(evaluated, servers=2) as url:
        page = visit(url, "/jobs")
        expect(page.locator('[data-job="old-1"]')).to_contain_text("the disk is full")
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_label("data (needed)")).to_be_focused()
        expect(page.get_by_label("data (needed)")).to_have_attribute("aria-invalid", "true")
        page.keyboard.type("/etc")
        page.keyboard.press("Enter")
        expect(page.locator("#parameter-data-error")).to_contain_text("It must match ^(?:s3://")
        page.get_by_label("data (needed)").fill("s3://bucket/table")
        page.get_by_label("epochs").fill("21")
        page.get_by_role("button", name="Submit").click()
        expect(page.locator("#parameter-epochs-error")).to_be_visible()
        assert len(jobs.jobs) == 1
        page.get_by_label("epochs").fill("5")
        page.get_by_label("publish").uncheck()
        page.keyboard.press("Enter")
        new = page.locator('[data-job="tiny-1"]')
        expect(new).to_contain_text("queued")
        sent = {"data": "s3://bucket/table", "epochs": 5, "priority": "normal", "publish": False}
        assert jobs.given["tiny-1"] == sent
        new.get_by_role("button", name="Log").click()
        expect(page.get_by_role("log")).to_contain_text("<b>update 40</b> of 625")
        stop = new.get_by_role("button", name="Stop")
        stop.focus()
        jobs.change("tiny-1", status="running", progress=0.5)
        expect(new.get_by_role("progressbar")).to_have_attribute("value", "0.5")
        expect(stop).to_be_focused()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Let it run").click()
        assert jobs.status("tiny-1").status == "running"
        stop.click()
        page.get_by_role("button", name="Stop it").click()
        expect(new).to_contain_text("stopped")
        new.get_by_role("button", name="Resume").click()
        expect(new).to_contain_text("queued")
        page.get_by_role("button", name="Show run stage1").click()
        expect(page.get_by_role("img", name="Loss from 9 to 1 over 9 updates")).to_be_visible()
        expect(page.locator("#run")).to_contain_text("1,235 tokens/s")


def test_a_key_that_may_not_submit_still_sees_the_runs(visit, evaluated):
    reader = key(evaluated, "infer")
    with gateways(evaluated) as url:
        page = visit(url, "/jobs")
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_label("Key", exact=True).fill(reader)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("This key may not do that.")
        expect(page.get_by_role("button", name="Show run stage1")).to_be_visible()
