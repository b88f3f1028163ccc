// The model's text, token by token: how likely each was, what else it might have been.

import { Component, html, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { Alternatives } from "./alternatives.js";
import { onPressOutside } from "./outside.js";
import { offsets, percent, probability } from "./tokens.js";

const GROUP = 64; // tokens that are drawn together
const SHOW_MS = 90;
const HIDE_MS = 240;
const SHADES = [0.9, 0.6, 0.3, 0.1]; // probabilities where the next shade begins

/** A text whose tokens can be looked at with mouse, finger and keys. */
export function TokenText({ store, turn }) {
  const box = useRef(null);
  const timer = useRef(0);
  const [probe, setProbe] = useState(null); // {place, isPinned, hasFocus}
  const ends = useMemo(() => offsets(turn.text, turn.tokens), [turn, turn.version]);
  const known = (place) => place !== null && turn.tokens[place]?.logprob != null;
  const show = (next, wait = 0) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setProbe(next), wait);
  };
  useEffect(
    () => probe?.isPinned && onPressOutside(box.current, () => setProbe(null)),
    [probe?.isPinned],
  );

  const over = (event) => {
    const place = placeOf(event);
    if (event.pointerType === "mouse" && known(place) && !probe?.isPinned) show({ place }, SHOW_MS);
  };
  const out = () => probe?.isPinned || show(null, HIDE_MS);
  const click = (event) => {
    const place = placeOf(event);
    if (known(place)) show({ place, isPinned: true });
  };
  const keys = (event) => {
    const place = probe?.place ?? -1;
    if (event.key === "Escape") show(null);
    else if (event.key === "Enter" && probe) show({ ...probe, isPinned: true, hasFocus: true });
    else if (known(stepped(turn, ends, place, event.key))) {
      const next = stepped(turn, ends, place, event.key);
      store.say(`${turn.tokens[next].text}: ${percent(probability(turn.tokens[next].logprob))}`);
      show({ place: next, isPinned: true });
    } else return;
    event.preventDefault();
  };
  const choose = (alternative) => {
    setProbe(null);
    store.fork(turn, probe.place, alternative);
  };
  const close = () => {
    setProbe(null);
    box.current.querySelector(".tokens").focus();
  };
  return html`<span class="token-text" ref=${box} onPointerLeave=${out}>
    <span
      class=${`tokens ${store.shades ? "shaded" : ""}`}
      role="group"
      tabindex="0"
      aria-label=${`${store.model.name}: text. Arrow keys step through its tokens, Enter goes to the alternatives.`}
      onPointerOver=${over}
      onClick=${click}
      onKeyDown=${keys}
    >
      ${groupsOf(turn, ends, probe?.place ?? -1, store.mode === "chat")}${turn.text.slice(ends.at(-1))}
    </span>
    ${
      probe &&
      html`<${Alternatives}
        key=${probe.place}
        token=${turn.tokens[probe.place]}
        anchor=${() => box.current.querySelector(`[data-place="${probe.place}"]`)}
        hasFocus=${probe.hasFocus}
        onChoose=${choose}
        onClose=${close}
        onEnter=${() => clearTimeout(timer.current)}
      />`
    }
  </span>`;
}

/** `isApart`: the text stands alone, so that a blank before it would be seen. */
function groupsOf(turn, ends, marked, isApart) {
  const groups = [];
  for (let from = 0; from < turn.tokens.length; from += GROUP) {
    const to = Math.min(from + GROUP, turn.tokens.length);
    const isMarked = marked >= from && marked < to;
    groups.push(
      html`<${TokenGroup}
        key=${from}
        turn=${turn}
        from=${from}
        ends=${ends.slice(from, to + 1)}
        content=${turn.text.slice(ends[from], ends[to])}
        marked=${isMarked ? marked : -1}
        isApart=${isApart}
      />`,
    );
  }
  return groups;
}

/** Some tokens, drawn anew only where something of them has changed. */
class TokenGroup extends Component {
  shouldComponentUpdate(next) {
    const { content, marked, ends, turn } = this.props;
    return (
      next.turn !== turn ||
      next.content !== content ||
      next.marked !== marked ||
      next.ends.length !== ends.length
    );
  }

  render({ turn, from, ends, marked, isApart }) {
    return ends.slice(1).map((end, index) => {
      const place = from + index;
      const token = turn.tokens[place];
      const chosen = place === turn.forkedAt ? " chosen" : "";
      const current = place === marked ? " current" : "";
      const written = turn.text.slice(ends[index], end);
      const piece = place === 0 && isApart ? written.trimStart() : written;
      return html`<span
        key=${place}
        class=${`token shade-${shade(token)}${chosen}${current}`}
        data-place=${place}
        >${piece}</span
      >`;
    });
  }
}

function shade({ logprob }) {
  return logprob === null ? 0 : SHADES.filter((least) => probability(logprob) < least).length;
}

function placeOf(event) {
  const place = event.target.closest("[data-place]")?.dataset.place;
  return place === undefined ? null : Number(place);
}

/** The token that a key leads to; tokens without text are passed over. */
function stepped(turn, ends, place, key) {
  const step = { ArrowRight: 1, ArrowLeft: -1, Home: 1, End: -1 }[key];
  if (!step) return null;
  let next = key === "Home" ? 0 : key === "End" ? turn.tokens.length - 1 : place + step;
  while (turn.tokens[next] && ends[next] === ends[next + 1]) next += step;
  return turn.tokens[next] ? next : null;
}
