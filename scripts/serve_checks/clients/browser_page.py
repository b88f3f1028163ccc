"""The page at / as a person uses it, through selenium and Chromium."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

WAIT_SECONDS = 60.0
WIDTHS = {"phone": (390, 844), "desktop": (1280, 800)}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars")
IMPACTS = ("serious", "critical")

Element = Any  # selenium's types are its own


class Page:
    """One tab. `shown` in the names of methods: what a person sees."""

    def __init__(self, width: str = "desktop", scheme: str = "light") -> None:
        columns, lines = WIDTHS[width]
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--window-size={columns},{lines}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.binary_location = shutil.which("chromium") or ""
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self._temporary = tempfile.TemporaryDirectory(prefix="browser-")
        self._folder = Path(self._temporary.name)
        self._downloads = self._folder / "downloads"
        self._downloads.mkdir()
        where = str(self._downloads)
        self._devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=where)
        self.driver.set_script_timeout(WAIT_SECONDS)
        is_phone = width == "phone"
        size = {"width": columns, "height": lines, "deviceScaleFactor": 1, "mobile": is_phone}
        self._devtools("Emulation.setDeviceMetricsOverride", **size)
        self._devtools("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._devtools("Emulation.setEmulatedMedia", features=features)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()
        self._temporary.cleanup()

    def open(self, url: str, ready: str = ".composer") -> None:
        """Goes to an address and waits until an element is there."""
        self.driver.get(url)
        self.wait(lambda: bool(self.all(ready)), ready)

    def all(self, selector: str) -> list[Element]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def one(self, selector: str) -> Element:
        """The element, once it is there."""
        self.wait(lambda: bool(self.all(selector)), selector)
        return self.all(selector)[0]

    def button(self, label: str) -> Element:
        """The last button of a name."""
        self.wait(lambda: bool(self.all(f'button[aria-label="{label}"]')), label)
        return self.all(f'button[aria-label="{label}"]')[-1]

    def text(self, selector: str) -> str:
        """What is shown in all such elements."""
        return "\n".join(self._of_each(selector, "innerText"))

    def content(self, selector: str) -> list[str]:
        """The text of each such element as it is in the document, blanks included."""
        return self._of_each(selector, "textContent")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until it holds; an error says `what` did not come."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"wanted {what} within {WAIT_SECONDS:g} s, got none")
            time.sleep(0.05)

    def send(self, text: str) -> None:
        """Writes into the composer and sends."""
        area = self.one(".composer textarea")
        area.send_keys(text)
        area.send_keys(Keys.ENTER)

    @property
    def is_writing(self) -> bool:
        return bool(self.all('.send[aria-label="Stop"]'))

    def wait_until_written(self) -> None:
        self.wait(lambda: bool(self.all('.send[aria-label="Send"]')), "the end of the text")

    def keys(self, *keys: str) -> None:
        """Presses keys where the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def point_at(self, element: Element) -> None:
        ActionChains(self.driver).move_to_element(element).perform()

    def set_option(self, name: str, value: str) -> None:
        """Types into a control of the settings, which are opened and closed again."""
        self.one("#settings-button").click()
        field = self.one(f"#option-{name}")
        field.clear()
        field.send_keys(value)
        self.one('.settings [aria-label="Close the settings"]').click()

    def exported(self, kind: str) -> Path:
        """The file that the page writes; `kind` is the first word of a line of its menu."""
        for old in self._downloads.iterdir():
            old.unlink()
        self._menu(kind).click()
        self.wait(lambda: bool(self._downloaded()), "a file")
        [file] = self._downloaded()
        kept = self._folder / file.name
        file.rename(kept)
        return kept

    def _downloaded(self) -> list[Path]:
        """Those that are whole."""
        return [one for one in self._downloads.iterdir() if one.suffix in (".md", ".json")]

    def import_file(self, file: Path) -> None:
        """Chooses a file of an earlier export, as the system's dialog would."""
        self.one('.menu input[type="file"]').send_keys(str(file))

    def detokenized(self, ids: list[int]) -> str:
        """Their text, as the page's own server tells it."""
        script = """const [ids, done] = arguments;
            const body = JSON.stringify({ tokens: ids });
            const headers = { "Content-Type": "application/json" };
            fetch("/detokenize", { method: "POST", headers, body })
                .then((answer) => answer.json()).then(({ prompt }) => done(prompt));"""
        return str(self.driver.execute_async_script(script, ids))

    def _menu(self, kind: str) -> Element:
        self.one(".menu summary").click()
        self.wait(lambda: bool(self.all(".menu[open] .menu-list button")), "the menu")
        return next(one for one in self.all(".menu-list button") if one.text.startswith(kind))

    def errors(self) -> list[str]:
        """What Chromium noted since the last time, answers of the server aside: faults of scripts, and what
        the content security policy stopped.
        """
        entries = self.driver.get_log("browser")
        lines = [entry["message"] for entry in entries if entry["level"] == "SEVERE"]
        return [line for line in lines if "the server responded with a status" not in line]

    def foreign_addresses(self) -> list[str]:
        """Addresses elsewhere that anything was loaded from."""
        script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        origin = self.driver.execute_script("return location.origin")
        return [name for name in self.driver.execute_script(script) if not name.startswith(origin)]

    def violations(self, axe: str) -> list[str]:
        """Serious and critical findings of axe-core, a script given as its text."""
        self.driver.execute_script(axe)
        script = (
            "axe.run(document).then(arguments[0], error => arguments[0]({error: String(error)}))"
        )
        found = self.driver.execute_async_script(script)
        return [
            f"{one['id']}: {one['nodes'][0]['html'][:120]}"
            for one in found["violations"]
            if one["impact"] in IMPACTS
        ]

    def _of_each(self, selector: str, name: str) -> list[str]:
        """A property of each element, all read at once: the page may draw itself anew in between."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one[arguments[1]])"
        return list(self.driver.execute_script(script, selector, name))

    def _devtools(self, command: str, **arguments: object) -> None:
        self.driver.execute_cdp_cmd(command, arguments)
