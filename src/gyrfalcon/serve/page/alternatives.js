// The small window under a token: what the model might have written there.

import { html, useEffect, useLayoutEffect, useRef } from "./vendor/preact-htm.js";
import { alternatives, isText, percent, probability, visible } from "./tokens.js";

const GAP = 6; // pixels between token and window

/** `anchor`: gives the token's element. */
export function Alternatives({ token, anchor, hasFocus, onChoose, onClose, onEnter }) {
  const own = useRef(null);
  useLayoutEffect(() => place(own.current, anchor()), [token]);
  useEffect(() => {
    if (hasFocus) own.current.querySelector("button:not(:disabled)")?.focus();
  }, [hasFocus]);
  const keys = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") onClose();
    else if (step) moveFocus(own.current, step);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return html`<span
    class="alternatives"
    role="group"
    aria-label="Alternatives"
    ref=${own}
    onKeyDown=${keys}
    onPointerEnter=${onEnter}
  >
    <span class="alternatives-title">Choose one to continue from there</span>
    ${alternatives(token).map((one) => html`<${Alternative} key=${one.text} one=${one} onChoose=${onChoose} />`)}
  </span>`;
}

function Alternative({ one, onChoose }) {
  const part = probability(one.logprob);
  const why = one.isTaken ? "taken" : isText(one.text) ? "" : "part of a character";
  return html`<button
    type="button"
    class="alternative"
    disabled=${why !== ""}
    onClick=${() => onChoose(one)}
  >
    <span class="bar" style=${{ width: `${100 * part}%` }}></span>
    <span class="alternative-text">${visible(one.text)}</span>
    <span class="alternative-why">${why}</span>
    <span class="alternative-percent">${percent(part)}</span>
  </button>`;
}

/** Under the token, above it where there is no room, within the width of the turn. */
function place(list, token) {
  if (!token) return;
  const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const around = list.offsetParent.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = list;
  const floor = document.querySelector(".composer")?.getBoundingClientRect().top ?? innerHeight;
  const isAbove = at.bottom + GAP + height > floor && at.top - GAP - height > 0;
  const left = Math.max(0, Math.min(at.left - around.left, around.width - width));
  list.style.left = `${left}px`;
  list.style.top = `${(isAbove ? at.top - GAP - height : at.bottom + GAP) - around.top}px`;
}

function moveFocus(list, step) {
  const buttons = [...list.querySelectorAll("button:not(:disabled)")];
  const next = buttons.indexOf(document.activeElement) + step;
  buttons[(next + buttons.length) % buttons.length]?.focus();
}
