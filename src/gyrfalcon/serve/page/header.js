// The line above: which model, which mode, what the server is doing, and what concerns the whole conversation.

import { html, useEffect, useRef } from "./vendor/preact-htm.js";
import { asJson, asMarkdown, download } from "./export.js";
import { IconButton, icon } from "./icons.js";
import { Live } from "./live.js";
import { onPressOutside } from "./outside.js";

export function Header({ store }) {
  const isOpen = store.settingsAreOpen;
  return html`<header class="top">
    <h1>${store.model.name}</h1>
    <${Modes} store=${store} />
    <${Live} isRunning=${store.running !== null} />
    <div class="top-buttons">
      <${Export} store=${store} />
      <${IconButton}
        name="new"
        label="Begin anew"
        disabled=${store.tree.isEmpty}
        onClick=${() => store.clear()}
      />
      <${IconButton}
        id="settings-button"
        name="settings"
        label="Settings"
        aria-expanded=${isOpen}
        onClick=${() => store.set({ settingsAreOpen: !isOpen })}
      />
    </div>
  </header>`;
}

function Modes({ store }) {
  const mode = (name, label, why) =>
    html`<button
      type="button"
      aria-pressed=${store.mode === name}
      disabled=${why !== undefined}
      title=${why}
      onClick=${() => store.switchTo(name)}
    >
      ${label}
    </button>`;
  const why = store.model.canChat ? undefined : `${store.model.name} has no chat template`;
  return html`<div class="modes" role="group" aria-label="Mode">
    ${mode("chat", "Chat", why)}${mode("text", "Text")}
  </div>`;
}

function Export({ store }) {
  const menu = useRef(null);
  const file = useRef(null);
  useEffect(() => onPressOutside(menu.current, () => (menu.current.open = false)), []);
  const save = (extension, type, content) => {
    menu.current.open = false;
    download(`${store.model.name.replaceAll("/", "-")}.${extension}`, type, content);
  };
  const chosen = (event) => {
    menu.current.open = false;
    const [one] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (one) store.import(one);
  };
  const close = (event) => event.key === "Escape" && (menu.current.open = false);
  return html`<details class="menu" ref=${menu} onKeyDown=${close}>
    <summary class="icon-button" title="Export and import" aria-label="Export and import">
      ${icon("export")}
    </summary>
    <div class="menu-list">
      <button type="button" onClick=${() => save("md", "text/markdown", asMarkdown(store))}>
        Markdown <small>what is shown</small>
      </button>
      <button type="button" onClick=${() => save("json", "application/json", asJson(store))}>
        JSON <small>all versions and tokens</small>
      </button>
      <button type="button" onClick=${() => file.current.click()}>
        Import <small>a JSON export</small>
      </button>
      <input
        ref=${file}
        type="file"
        accept=".json,application/json"
        aria-label="A JSON export"
        hidden
        onChange=${chosen}
      />
    </div>
  </details>`;
}
