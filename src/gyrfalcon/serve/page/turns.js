// Turns on the page: what was said, and what can be done with it.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { IconButton } from "./icons.js";
import { ask } from "./server.js";
import { TokenText } from "./text.js";
import { words } from "./words.js";

const PROGRESS_MS = 400;
const ENDS = { length: "length limit", aborted: "stopped" };

/** All turns that are shown: one by one in a chat, as one running text otherwise. */
export function Turns({ store }) {
  const path = store.tree.path();
  if (store.mode === "chat")
    return path.map((turn) => html`<${ChatTurn} key=${turn.id} store=${store} turn=${turn} />`);
  return steps(path).map(
    (turns) => html`<${TextStep} key=${turns[0].id} store=${store} turns=${turns} />`,
  );
}

function ChatTurn({ store, turn }) {
  const who = turn.role === "user" ? "You" : store.model.name;
  return html`<article class=${`turn of-${turn.role}`} aria-label=${who} aria-busy=${isLive(turn)}>
    ${
      store.editing === turn.id
        ? html`<${Editor} store=${store} turn=${turn} />`
        : html`<div class="said"><${Said} store=${store} turn=${turn} /></div>`
    }
    <${State} store=${store} turn=${turn} />
    <div class="actions"><${Actions} store=${store} turn=${turn} /><${Facts} turn=${turn} /></div>
  </article>`;
}

/** What a person wrote and how the model went on, in one paragraph. */
function TextStep({ store, turns }) {
  const edited = turns.find((turn) => store.editing === turn.id);
  const last = turns.at(-1);
  return html`<article class="turn of-text" aria-label="Text" aria-busy=${isLive(last)}>
    <div class="said">
      ${turns.map((turn) => turn !== edited && html`<${Said} key=${turn.id} store=${store} turn=${turn} />`)}
    </div>
    ${edited && html`<${Editor} key=${edited.id} store=${store} turn=${edited} />`}
    <${State} store=${store} turn=${last} />
    <div class="actions">
      ${turns.map((turn) => html`<${Actions} key=${turn.id} store=${store} turn=${turn} />`)}<${Facts}
        turn=${last}
      />
    </div>
  </article>`;
}

function Said({ store, turn }) {
  if (turn.role === "assistant") return html`<${TokenText} store=${store} turn=${turn} />`;
  return html`<span class="own">${turn.text.replace(/^\n/, "")}</span>`;
}

/** What a turn waits for, or why it failed. */
function State({ store, turn }) {
  if (turn.error) {
    return html`<div class="error" role="alert">
      <strong>${turn.error.title}</strong>
      <p>${words(turn.error.message)}</p>
      <button type="button" class="button" onClick=${() => store.resume(turn)}>Try again</button>
    </div>`;
  }
  return turn.state === "waiting" ? html`<${Waiting} turn=${turn} />` : null;
}

function Waiting({ turn }) {
  const seconds = useSeconds();
  const { total, request } = turn.prompt ?? {};
  const done = useProgress(request);
  const count = total ? `: ${done === null ? "" : `${done} of `}${total} tokens` : "";
  const elapsed = seconds > 1 ? `, ${seconds} s` : "";
  return html`<div class="waiting">
    <progress max=${total ?? 1} value=${done ?? undefined} aria-label="Prompt"></progress>
    <span>Reading the prompt${count}${elapsed}</span>
  </div>`;
}

function Actions({ store, turn }) {
  const versions = store.tree.versions(turn);
  const place = versions.indexOf(turn);
  const isWritten = turn.role === "assistant";
  const what = isWritten ? "text" : "prompt";
  const isLast = store.tree.path().at(-1) === turn;
  if (isLive(turn) || (turn.error && !turn.text)) return null;
  return html`<span class="action-group">
    ${store.mode === "text" && html`<span class="action-what">${isWritten ? "Text" : "Prompt"}</span>`}
    ${
      versions.length > 1 &&
      html`<span class="versions">
        <${IconButton}
          name="back"
          label=${`Previous ${what}`}
          disabled=${place === 0}
          onClick=${() => store.choose(versions[place - 1])}
        />
        <span aria-label=${`${what} ${place + 1} of ${versions.length}`} role="img"
          >${place + 1}/${versions.length}</span
        >
        <${IconButton}
          name="next"
          label=${`Next ${what}`}
          disabled=${!versions[place + 1]}
          onClick=${() => store.choose(versions[place + 1])}
        />
      </span>`
    }
    <${IconButton}
      name="edit"
      label=${`Edit the ${what}`}
      onClick=${() => store.set({ editing: turn.id })}
    />
    ${
      isWritten &&
      html`<${IconButton} name="copy" label="Copy the text" onClick=${() => copy(store, turn)} />
        <${IconButton}
          name="again"
          label="Write another text"
          onClick=${() => store.regenerate(turn)}
        />`
    }
    ${isWritten && isLast && turn.text && !turn.error && turn.finish !== "stop" && html`<${IconButton} name="go" label="Continue the text" onClick=${() => store.resume(turn)} />`}
  </span>`;
}

function Facts({ turn }) {
  if (!turn.numTokens || !turn.seconds) return null;
  const { first, all } = turn.seconds;
  const facts = [`${turn.numTokens} tokens`];
  if (first !== null && all > first) {
    facts.push(`${rounded((turn.numTokens - 1) / (all - first))}/s`, `first ${rounded(first)} s`);
  }
  if (ENDS[turn.finish]) facts.push(ENDS[turn.finish]);
  const title = "Tokens written, tokens per second after the first, seconds until the first";
  return html`<span class="facts" title=${title}>${facts.join(" · ")}</span>`;
}

function Editor({ store, turn }) {
  const area = useRef(null);
  const [text, setText] = useState(turn.text);
  useEffect(() => area.current.focus(), []);
  const save = () => store.edit(turn, text);
  const cancel = () => store.set({ editing: null });
  const keys = (event) => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  };
  return html`<div class="editor">
    <textarea
      ref=${area}
      rows=${Math.min(12, 2 + text.split("\n").length)}
      aria-label="Edited text"
      value=${text}
      onInput=${(event) => setText(event.target.value)}
      onKeyDown=${keys}
    ></textarea>
    <div class="editor-buttons">
      <button type="button" class="button main" disabled=${!text} onClick=${save}>
        ${turn.role === "user" ? "Save and write" : "Save"}
      </button>
      <button type="button" class="button" onClick=${cancel}>Cancel</button>
      <span class="hint">The earlier version stays</span>
    </div>
  </div>`;
}

/** A person's turn and the model's after it, together. */
function steps(path) {
  const found = [];
  for (const turn of path) {
    if (turn.role === "assistant" && found.at(-1)?.length === 1) found.at(-1).push(turn);
    else found.push([turn]);
  }
  return found;
}

async function copy(store, turn) {
  await navigator.clipboard?.writeText(turn.text);
  store.say(
    navigator.clipboard ? "Copied" : "This browser copies only over https or from this machine",
  );
}

/** How many of the tokens of a request's prompt are read; null where that is not known. */
function useProgress(request) {
  const [done, setDone] = useState(null);
  useEffect(() => {
    const look = async () => {
      const path = `page/live.json?request=${request}`;
      const { prompts } = await ask(path).catch(() => ({ prompts: [] }));
      setDone(prompts.length ? prompts[0][0] : null);
    };
    const timer = request && setInterval(look, PROGRESS_MS);
    return () => clearInterval(timer);
  }, [request]);
  return done;
}

function useSeconds() {
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const begun = performance.now();
    const timer = setInterval(
      () => setSeconds(Math.floor((performance.now() - begun) / 1000)),
      500,
    );
    return () => clearInterval(timer);
  }, []);
  return seconds;
}

const isLive = (turn) => turn.state !== "done";
const rounded = (number) => (number < 10 ? number.toFixed(number < 1 ? 2 : 1) : Math.round(number));
