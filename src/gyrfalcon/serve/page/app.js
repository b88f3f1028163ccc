// The page: draws the store, at most once a frame.

import { html, render, useLayoutEffect, useRef } from "./vendor/preact-htm.js";
import { Composer } from "./composer.js";
import { Gate } from "./gate.js";
import { Header } from "./header.js";
import { Settings } from "./settings.js";
import { Store } from "./store.js";
import { Turns } from "./turns.js";

const NEAR_END = 120; // pixels from the end of the page within which it follows the text
const STARTS = {
  chat: [
    "How does a falcon dive?",
    "Name three birds of the far north.",
    "Write a haiku about snow.",
  ],
  text: [
    "The old captain",
    "Which bird of prey nests on rocks in the far north?",
    "Once upon a time",
  ],
};

function App({ store }) {
  if (store.phase !== "ready") return html`<${Gate} store=${store} />`;
  return html`<div class=${`page ${store.settingsAreOpen ? "with-settings" : ""}`}>
    <${Header} store=${store} />
    <main>
      <${Following} store=${store} />
      ${store.tree.isEmpty && html`<${Welcome} store=${store} />`}
      <div class=${`turns in-${store.mode}`}><${Turns} store=${store} /></div>
    </main>
    <${Composer} store=${store} />
    ${store.settingsAreOpen && html`<${Settings} store=${store} />`}
    <p class="said-aloud" role="status">${store.said}</p>
  </div>`;
}

function Welcome({ store }) {
  const { name, canChat } = store.model;
  return html`<div class="welcome">
    <h2>${store.mode === "chat" ? `Ask ${name}` : `Begin a text, ${name} goes on`}</h2>
    ${!canChat && html`<p>${name} has no chat template, so this page continues texts and does not chat.</p>`}
    <div class="starts">
      ${STARTS[store.mode].map((text) => html`<button type="button" class="button" key=${text} onClick=${() => store.send(text)}>${text}</button>`)}
    </div>
  </div>`;
}

/** Keeps the end of the text in sight while it is written, unless a person scrolled away from it. */
function Following({ store }) {
  const wasRunning = useRef(false);
  const root = document.documentElement;
  const wasNearEnd = root.scrollHeight - root.scrollTop - root.clientHeight < NEAR_END;
  useLayoutEffect(() => {
    if ((store.running || wasRunning.current) && wasNearEnd) root.scrollTop = root.scrollHeight;
    wasRunning.current = store.running !== null;
  });
  return null;
}

let isAsked = false;
const root = document.getElementById("app");
const store = new Store(() => {
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => {
    isAsked = false;
    render(html`<${App} store=${store} />`, root);
  });
});
store.draw();
store.connect();
