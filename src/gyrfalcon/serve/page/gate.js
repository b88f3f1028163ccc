// What stands in place of the page while the server is not ready, or asks for a key.

import { html, useEffect, useRef } from "./vendor/preact-htm.js";
import { apiKey } from "./server.js";
import { words } from "./words.js";

export function Gate({ store }) {
  if (store.phase === "key") return html`<${Key} store=${store} />`;
  if (store.phase === "failed") return html`<${Failed} store=${store} />`;
  const words = store.phase === "loading" ? "The model is loading" : "Connecting";
  return html`<main class="gate" aria-busy="true">
    <h1>${words}</h1>
    <progress aria-label=${words}></progress>
  </main>`;
}

function Key({ store }) {
  const field = useRef(null);
  const isWrong = apiKey.get() !== "";
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    store.unlock(field.current.value);
  };
  return html`<main class="gate">
    <h1>This server asks for a key</h1>
    <form onSubmit=${submit}>
      <label for="key">API key</label>
      <input
        id="key"
        ref=${field}
        type="password"
        autocomplete="off"
        required
        aria-invalid=${isWrong}
        aria-describedby="key-help"
      />
      <button type="submit" class="button main">Open</button>
    </form>
    <p class="help" id="key-help" role=${isWrong ? "alert" : undefined}>
      ${isWrong ? "The server does not know this key. " : ""}It stays in this tab until you close
      it.
    </p>
  </main>`;
}

function Failed({ store }) {
  const { title, message } = store.problem;
  return html`<main class="gate" role="alert">
    <h1>${title}</h1>
    <p>${words(message)}</p>
    <button type="button" class="button main" onClick=${() => store.connect()}>Try again</button>
  </main>`;
}
