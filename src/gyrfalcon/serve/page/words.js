// Sentences of the server on the page.

import { html } from "./vendor/preact-htm.js";

/** A sentence in which `names` are set as code. */
export function words(sentence) {
  return sentence
    .split("`")
    .map((part, place) => (place % 2 ? html`<code key=${place}>${part}</code>` : part));
}
