"""Run by the check `browser` in an environment with selenium: uses the page, prints what held as JSON.

python -m serve_checks.clients.browser_steps TEXT_URL CHAT_URL KEYED_URL SLOW_URL KEY AXE SCREENSHOTS
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from selenium.webdriver.common.keys import Keys

from serve_checks.clients.browser_page import WIDTHS, Page
from serve_checks.clients.cable import Cable

PROMPT, QUESTION = "The old captain", "Name a bird."
PROMPT_WORDS = 1_900
PLACE = 5  # of the token that is looked at
OUTSIDE = """return [...document.querySelectorAll(".control-head")].filter((row) =>
    [...row.children].some((one) => one.getBoundingClientRect().right
        > row.getBoundingClientRect().right + 1)).map((row) => row.innerText)"""
GREEDY = (("temperature", "0"), ("max_tokens", "48"))


class Steps:
    """All steps, and what they found."""

    def __init__(self, urls: list[str], key: str, axe: Path, screenshots: Path) -> None:
        self._text_url, self._chat_url, self._keyed_url, self._slow_url = urls
        self._key, self._axe, self._screenshots = key, axe.read_text("utf-8"), screenshots
        self.claims: list[tuple[str, bool, str]] = []
        self.figures: dict[str, object] = {}

    def run(self) -> None:
        with Page() as page:
            self._text(page)
            self._tokens(page)
            self._keyboard(page)
            self._versions(page)
            self._errors(page)
            self._kept(page)
            self._files(page)
            self._clean(page, "in text mode")
        with Page() as page:
            self._chat(page)
            self._system(page)
            self._clean(page, "in a chat")
        with Page() as page:
            self._server_gone(page)
        with Page() as page:
            self._locked(page)
        with Page() as page:
            self._progress(page)
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                with Page(width, scheme) as page:
                    self._look(page, f"{width}-{scheme}")

    def claim(self, text: str, holds: bool, got: object = "") -> None:
        self.claims.append((text, bool(holds), str(got)))

    def _text(self, page: Page) -> None:
        page.open(self._text_url)
        shown = page.text("main")
        self.claim(
            "without a chat template it says so", "has no chat template" in shown, shown[:80]
        )
        chat = page.one(".modes button")
        self.claim("and has no chat mode", not chat.is_enabled())
        begin = time.monotonic()
        page.send(PROMPT)
        lengths = set()
        page.wait(lambda: bool(page.all(".token")), "a token")
        self.figures["seconds_to_first_token_shown"] = round(time.monotonic() - begin, 2)
        while page.is_writing:
            lengths.add(len(page.text(".said")))
        text = page.text(".said")
        self.claim("a text grows while it is written", len(lengths) > 3, sorted(lengths)[:8])
        self.claim("it begins with the prompt", text.startswith(PROMPT), text[:60])
        page.button("Write another text").click()
        page.wait(lambda: page.is_writing and len(page.all(".token")) > 3, "tokens")
        page.button("Stop").click()
        page.wait_until_written()
        facts = page.text(".facts")
        self.claim("Stop ends a text", "stopped" in facts, facts)
        num_tokens = len(page.all(".token"))
        page.button("Continue the text").click()
        page.wait(lambda: len(page.all(".token")) > num_tokens, "more tokens")
        page.wait_until_written()
        self.claim("a stopped text can be continued", len(page.all(".token")) > num_tokens)

    def _tokens(self, page: Page) -> None:
        for name, value in GREEDY:
            page.set_option(name, value)
        page.button("Begin anew").click()
        page.send(PROMPT)
        page.wait(lambda: bool(page.all(".token")), "a token")
        page.wait_until_written()
        tokens = page.all(".token")
        before = PROMPT + "".join(page.content(".token")[:PLACE])
        page.point_at(tokens[PLACE])
        rows = page.one(".alternatives").text.split("\n")
        self.claim("pointing at a token shows probabilities", rows[-1].endswith("%"), rows)
        taken, *_ = page.all(".alternative")
        self.claim("greedy takes the most likely one", "taken" in taken.text, taken.text)
        other = page.all(".alternative:not(:disabled)")[0]
        wanted = before + _typed(other.text.split("\n")[0])
        other.click()
        page.wait(lambda: "2/2" in page.text(".versions"), "a second version")
        page.wait_until_written()
        text = "".join(page.content(".own, .tokens"))
        self.claim("choosing one continues from there", text.startswith(wanted), text[:80])
        self.claim("and the text goes on", len(text) > len(wanted) + 20, len(text))
        page.button("Previous text").click()
        page.wait(lambda: "1/2" in page.text(".versions"), "the first version")
        first = page.text(".said")
        self.claim("the first version is still there", not first.startswith(wanted), first[:80])

    def _keyboard(self, page: Page) -> None:
        page.driver.execute_script("document.querySelector('.tokens').focus()")
        page.keys(*[Keys.ARROW_RIGHT] * 3)
        page.wait(lambda: bool(page.all(".alternatives")), "alternatives")
        page.keys(Keys.ENTER)
        page.wait(lambda: page.driver.switch_to.active_element.tag_name == "button", "the focus")
        page.keys(Keys.ARROW_DOWN, Keys.ENTER)
        page.wait(lambda: "3/3" in page.text(".versions"), "a third version")
        page.wait_until_written()
        self.claim("the keyboard alone continues from another token", True)

    def _versions(self, page: Page) -> None:
        page.button("Edit the prompt").click()
        area = page.one(".editor textarea")
        area.send_keys(Keys.CONTROL, "a")
        area.send_keys("The young captain")
        page.one(".editor .main").click()
        page.wait(lambda: "2/2" in page.text(".versions"), "a second prompt")
        page.wait_until_written()
        shown = page.text(".said")
        self.claim(
            "an edited prompt is written anew", shown.startswith("The young captain"), shown[:60]
        )
        page.button("Previous prompt").click()
        page.wait(lambda: page.text(".said").startswith(PROMPT), "the first prompt")
        shown = page.text(".versions")
        self.claim("its earlier version has its texts still", "3/3" in shown, shown)

    def _errors(self, page: Page) -> None:
        page.set_option("max_tokens", "5000")
        page.button("Write another text").click()
        shown = page.one(".error").text
        holds = "too long" in shown and "5000" in shown
        self.claim("an error of the server is shown in words", holds, shown)
        page.one("#settings-button").click()
        wrong = page.one(".control.wrong").text
        self.claim("the option at fault is marked", wrong.startswith("max_tokens"), wrong[:40])
        page.button("Reset max_tokens").click()
        page.one('.settings [aria-label="Close the settings"]').click()
        page.one(".error .button").click()
        page.wait(lambda: not page.all(".error") and not page.is_writing, "a text")
        self.claim("then it can be tried again", len(page.all(".token")) > 10)

    def _kept(self, page: Page) -> None:
        before = page.content(".own, .tokens")
        page.driver.refresh()
        page.wait(lambda: bool(page.all(".token")), "the text again")
        after = page.content(".own, .tokens")
        self.claim("a reload keeps the conversation", after == before, "".join(after)[:60])
        live = page.text(".live")
        self.claim("it shows what the server is doing", "tokens/s" in live or "batch" in live, live)

    def _files(self, page: Page) -> None:
        """Export, and import of what was exported."""
        text = page.content(".own, .tokens")
        markdown = page.exported("Markdown").read_text("utf-8")
        self.claim("Markdown has what is shown", markdown == "".join(text) + "\n", markdown[:60])
        file = page.exported("JSON")
        content = json.loads(file.read_text("utf-8"))
        versions = [turn for turn in content["turns"] if turn["role"] == "user"]
        self.claim("JSON has all versions", len(versions) == 2, len(versions))
        page.import_file(file)
        page.wait(lambda: "3/4" in page.text(".versions"), "another version")
        shown = page.content(".own, .tokens")
        self.claim("an export can be imported beside what is there", shown == text, shown[:1])
        page.button("Begin anew").click()
        page.import_file(file)
        page.wait(lambda: page.content(".own, .tokens") == text, "the imported text")
        again = json.loads(page.exported("JSON").read_text("utf-8"))
        same = _without_names(again) == _without_names(content)
        self.claim("what is imported is what was exported", same)
        before = page.text(".versions")
        page.point_at(page.all(".token")[PLACE])
        page.one(".alternatives .alternative:not(:disabled)").click()
        page.wait(lambda: page.text(".versions") != before, "a version of an imported text")
        page.wait_until_written()
        self.claim("an imported text can be continued from another token", True)
        damaged = file.with_name("damaged.json")
        for wrong, words in (
            ("{", "It is not JSON"),
            ("{}", "no conversation"),
            (json.dumps(content | {"version": 2}), "version 2"),
            (json.dumps(content | {"turns": [{}]}), "damaged at turns.0"),
            (json.dumps(content | {"mode": "chat"}), "no chat template"),
        ):
            damaged.write_text(wrong, "utf-8")
            page.import_file(damaged)
            page.wait(lambda words=words: words in page.text(".notice"), words)  # type: ignore[misc]
        self.claim("a file that cannot be imported is told so", True)
        page.one(".notice .button").click()

    def _system(self, page: Page) -> None:
        page.button("Begin anew").click()
        page.one("#settings-button").click()
        page.one("#system").send_keys("Answer as a captain.")
        page.one('.settings [aria-label="Close the settings"]').click()
        page.send(QUESTION)
        page.wait(lambda: bool(page.all(".token")), "a token")
        page.wait_until_written()
        content = json.loads(page.exported("JSON").read_text("utf-8"))
        prompt = page.detokenized(content["turns"][-1]["contextIds"])
        wanted = f"System: Answer as a captain.\nUser: {QUESTION}\nAssistant:"
        self.claim("the system message comes first", prompt == wanted, prompt)
        self.claim("an export has it", content["system"] == "Answer as a captain.")
        markdown = page.exported("Markdown").read_text("utf-8")
        begins = markdown.startswith("**System**\n\nAnswer as a captain.\n\n**You**\n")
        self.claim("Markdown of a chat says who speaks", begins, markdown[:60])

    def _server_gone(self, page: Page) -> None:
        """While a text is written, and before the next one."""
        cable = Cable(int(self._text_url.rpartition(":")[2]))
        page.open(f"http://127.0.0.1:{cable.port}")
        page.set_option("max_tokens", "700")
        page.send(PROMPT)
        page.wait(lambda: len(page.all(".token")) > PLACE, "tokens")
        cable.cut()
        page.wait(lambda: bool(page.all(".error")), "an error")
        shown, kept = page.text(".error"), len(page.all(".token"))
        self.claim("a connection that breaks is told", "broke" in shown, shown)
        page.wait(lambda: "cannot be reached" in page.text(".live"), "the line above")
        self.claim("the line above says that nothing answers", True)
        page.one(".error .button").click()
        page.wait(lambda: "Nothing answers at" in page.text(".error"), "another error")
        self.claim("what was written stays", len(page.all(".token")) == kept, kept)
        cable.mend()
        page.one(".error .button").click()
        page.wait(lambda: len(page.all(".token")) > kept, "more tokens")
        page.button("Stop").click()
        page.wait_until_written()
        self.claim("the text goes on when the server is back", not page.all(".error"))
        page.wait(lambda: "batch" in page.text(".live"), "figures")
        cable.cut()

    def _chat(self, page: Page) -> None:
        page.open(self._chat_url)
        page.set_option("max_completion_tokens", "48")
        page.send(QUESTION)
        page.wait(lambda: bool(page.all(".token")), "a token")
        page.wait_until_written()
        turns = page.all(".turn")
        self.claim("a chat answers", len(turns) == 2, len(turns))
        tokens = page.all(".token")
        before = "".join(page.content(".token")[:PLACE])
        page.point_at(tokens[PLACE])
        other = page.all(".alternative:not(:disabled)") or [page.one(".alternative:not(:disabled)")]
        wanted = before + _typed(other[0].text.split("\n")[0])
        other[0].click()
        page.wait(lambda: "2/2" in page.text(".versions"), "a second version")
        page.wait_until_written()
        [text] = page.content(".of-assistant .tokens")
        self.claim("an answer continues from another token", text.startswith(wanted), text[:80])
        page.send("And another?")
        page.wait(lambda: len(page.all(".turn")) == 4, "a second answer")
        page.wait_until_written()
        page.button("Write another text").click()
        page.wait(lambda: "2/2" in page.text(".turn:last-child .versions"), "a second version")
        page.wait_until_written()
        self.claim("the last answer can be written again", True)

    def _locked(self, page: Page) -> None:
        page.open(self._keyed_url, "#key")
        page.one("#key").send_keys("wrong", Keys.ENTER)
        page.wait(lambda: "does not know" in page.text(".gate"), "a refusal")
        page.one("#key").clear()
        page.one("#key").send_keys(self._key, Keys.ENTER)
        page.one(".composer")
        kept = page.driver.execute_script(
            "return [sessionStorage['gyrfalcon.key'], localStorage.length]"
        )
        self.claim("the page asks for a key and keeps it in its tab", kept == [self._key, 0])
        page.wait(lambda: "batch" in page.text(".live"), "the figures")
        self.claim("its figures come with the key", True)
        self._clean(page, "behind a key")

    def _progress(self, page: Page) -> None:
        """While a long prompt is read."""
        page.open(self._slow_url)
        page.set_option("max_tokens", "1")
        page.send("the " * PROMPT_WORDS)
        shown: list[tuple[int, int]] = []
        while page.is_writing or not shown:
            found = re.search(r"(\d+) of (\d+) tokens", page.text(".waiting"))
            if found is not None:
                shown.append((int(found[1]), int(found[2])))
            elif not page.is_writing and page.all(".token"):
                break
        counts = sorted({done for done, _ in shown})
        holds = len(counts) > 1 and [done for done, _ in shown] == sorted(done for done, _ in shown)
        self.claim("the tokens of a prompt that are read grow", holds, counts[:5])
        totals = {total for _, total in shown}
        holds = len(totals) == 1 and min(totals) >= PROMPT_WORDS and max(counts) <= min(totals)
        self.claim("beside how many it has", holds, sorted(totals))

    def _clean(self, page: Page, where: str) -> None:
        errors, foreign = page.errors(), page.foreign_addresses()
        self.claim(f"no error of a script or the policy {where}", not errors, errors[:2] or "")
        self.claim(f"nothing was loaded from elsewhere {where}", not foreign, foreign[:2] or "")

    def _look(self, page: Page, name: str) -> None:
        """Looks at each view in one width and colour scheme."""
        page.open(self._keyed_url, "#key")
        self._seen(page, f"{name}-key")
        page.open(self._chat_url)
        self._seen(page, f"{name}-begin")
        page.set_option("max_completion_tokens", "64")
        page.send(QUESTION)
        page.wait(lambda: len(page.all(".token")) > PLACE, "tokens")
        page.wait_until_written()
        page.send("Another one, which lives on the rocks of the far north?")
        page.wait_until_written()
        page.wait(lambda: not page.is_writing and len(page.all(".turn")) == 4, "two answers")
        self._seen(page, f"{name}-chat")
        page.all(".turn:last-child .token")[PLACE].click()
        page.one(".alternatives")
        self._seen(page, f"{name}-alternatives")
        page.keys(Keys.ESCAPE)
        page.one("#settings-button").click()
        page.one(".settings")
        self._seen(page, f"{name}-settings")
        outside = page.driver.execute_script(OUTSIDE)
        self.claim(f"no control sticks out of its row: {name}-settings", not outside, outside[:2])
        page.one('.settings [aria-label="Close the settings"]').click()
        page.set_option("top_k", "-7")
        page.send("Once more")
        page.one(".error")
        self._seen(page, f"{name}-error")
        page.open(self._text_url)
        page.set_option("max_tokens", "160")
        page.send(PROMPT)
        page.wait(lambda: len(page.all(".token")) > PLACE, "tokens")
        page.wait_until_written()
        self._seen(page, f"{name}-text")

    def _seen(self, page: Page, name: str) -> None:
        """A screenshot, and what axe-core says."""
        time.sleep(0.3)  # until what moves has come to rest
        page.driver.save_screenshot(str(self._screenshots / f"{name}.png"))
        found = page.violations(self._axe)
        self.claim(f"axe-core finds nothing serious: {name}", not found, found[:3] or "")


def _without_names(content: dict[str, Any]) -> list[object]:
    """The turns of an export in their order, each with the place of the one before it."""
    places = {turn["id"]: place for place, turn in enumerate(content["turns"])}
    turns = [turn | {"id": 0, "parent": places.get(turn["parent"])} for turn in content["turns"]]
    return [*turns, [places[one] for one in content["path"]], content["options"]]


def _typed(shown: str) -> str:
    """The text of a token as the page shows it."""
    return shown.replace("·", " ").replace("↵", "\n").replace("⇥", "\t")


def main(*arguments: str) -> None:
    """Takes all steps; a step that cannot be taken is a claim that does not hold."""
    *urls, key, axe, screenshots = arguments
    steps = Steps(urls, key, Path(axe), Path(screenshots))
    try:
        steps.run()
    except Exception as error:  # whatever the browser or the page makes of it
        steps.claim("every step can be taken", False, f"{type(error).__name__}: {error}"[:400])
    print(json.dumps({"claims": steps.claims, "figures": steps.figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
