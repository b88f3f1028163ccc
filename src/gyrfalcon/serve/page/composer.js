// Where a person writes.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact-htm.js";
import { icon } from "./icons.js";
import { words } from "./words.js";

const HIGHEST = 220; // pixels

export function Composer({ store }) {
  const area = useRef(null);
  const [text, setText] = useState("");
  const last = store.tree.path().at(-1);
  const isOpen = last?.role === "assistant" && last.text !== "" && last.finish !== "stop";
  const goesOn = store.mode === "text" && isOpen;
  const isRunning = store.running !== null;
  useLayoutEffect(() => fit(area.current), [text]);
  useEffect(() => area.current.focus({ preventScroll: true }), [store.mode]);
  const send = () => {
    if (isRunning || !(text.trim() || goesOn)) return;
    setText("");
    store.send(text);
  };
  const keys = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return html`<form class="composer" onSubmit=${(event) => (event.preventDefault(), send())}>
    ${store.notice && html`<${Notice} store=${store} />`}
    <div class="composer-box">
      <textarea
        ref=${area}
        rows="1"
        aria-label=${label(store, goesOn)}
        placeholder=${label(store, goesOn)}
        value=${text}
        onInput=${(event) => setText(event.target.value)}
        onKeyDown=${keys}
      ></textarea>
      ${
        isRunning
          ? html`<button
              type="button"
              class="send"
              title="Stop"
              aria-label="Stop"
              onClick=${() => store.stop()}
            >
              ${icon("stop")}
            </button>`
          : html`<button
              type="submit"
              class="send"
              title="Send"
              aria-label="Send"
              disabled=${!(text.trim() || goesOn)}
            >
              ${icon("send")}
            </button>`
      }
    </div>
    <p class="hint">Enter sends, Shift+Enter begins a line</p>
  </form>`;
}

/** Why something that a person asked for cannot be had. */
function Notice({ store }) {
  const { title, message } = store.notice;
  return html`<div class="notice error" role="alert">
    <strong>${title}</strong>
    <p>${words(message)}</p>
    <button type="button" class="button" onClick=${() => store.set({ notice: null })}>Close</button>
  </div>`;
}

function label({ mode, model }, goesOn) {
  if (mode === "chat") return `Ask ${model.name}`;
  return goesOn ? "Add text, or send nothing to continue" : "Write the beginning of a text";
}

/** As high as its text. */
function fit(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, HIGHEST)}px`;
}
