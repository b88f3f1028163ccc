// Sampling and what the page shows. The controls are made from the server's own table of options.

import { html, useEffect, useRef } from "./vendor/preact-htm.js";
import { IconButton } from "./icons.js";
import { words } from "./words.js";

export function Settings({ store }) {
  const panel = useRef(null);
  const controls = store.controls[store.mode];
  const used = controls.filter((one) => one.isMostUsed);
  const others = controls.filter((one) => !one.isMostUsed);
  const draw = (one) =>
    html`<${Control} key=${`${store.mode} ${one.name}`} store=${store} control=${one} />`;
  const close = () => {
    store.set({ settingsAreOpen: false });
    document.getElementById("settings-button").focus();
  };
  useEffect(() => panel.current.querySelector("button").focus(), []);
  return html`<aside
    class="settings"
    aria-label="Settings"
    ref=${panel}
    onKeyDown=${(event) => event.key === "Escape" && close()}
  >
    <header>
      <h2>Settings</h2>
      <${IconButton} name="close" label="Close the settings" onClick=${close} />
    </header>
    ${store.mode === "chat" && html`<${System} store=${store} />`}
    <section aria-label="Sampling">
      <h3>Sampling</h3>
      ${used.map(draw)}
    </section>
    <details open=${others.some(({ name }) => name === wrongOption(store))}>
      <summary>More options</summary>
      ${others.map(draw)}
    </details>
    <section aria-label="Tokens">
      <h3>Tokens</h3>
      <${Switch}
        label="Ask for probabilities"
        help="Point at a token to see what else it might have been. On a GPU, writing is a little faster without."
        value=${store.wantsTokens}
        onChange=${(wantsTokens) => store.set({ wantsTokens })}
      />
      <${Switch}
        label="Shade unlikely tokens"
        help="The less likely the model found a token, the stronger."
        value=${store.shades}
        onChange=${(shades) => store.set({ shades })}
      />
    </section>
  </aside>`;
}

function System({ store }) {
  return html`<section aria-label="System message">
    <h3><label for="system">System message</label></h3>
    <textarea
      id="system"
      rows="3"
      value=${store.system}
      onInput=${(event) => store.set({ system: event.target.value })}
    ></textarea>
  </section>`;
}

function Control({ store, control }) {
  const { name, help, kind } = control;
  const typed = store.typed[store.mode];
  const set = (value) =>
    store.set({ typed: { ...store.typed, [store.mode]: { ...typed, [name]: value } } });
  const isWrong = wrongOption(store) === name;
  const value = typed[name] ?? "";
  if (kind === "boolean")
    return html`<${Switch}
      label=${name}
      help=${help}
      value=${value === "" ? control.usual === true : value}
      onChange=${set}
    />`;
  const id = `option-${name}`;
  const common = {
    id,
    "aria-describedby": `${id}-help`,
    "aria-invalid": isWrong,
    value,
    onInput: (event) => set(event.target.value),
  };
  return html`<div class=${`control ${isWrong ? "wrong" : ""}`}>
    <div class="control-head">
      <label for=${id}>${name}</label>
      ${value !== "" && html`<button type="button" class="link" aria-label=${`Reset ${name}`} onClick=${() => set("")}>reset</button>`}
      ${isNumber(control) && html`<${NumberField} control=${control} common=${common} />`}
    </div>
    ${control.slider && html`<${Slider} control=${control} value=${value} set=${set} />`}
    ${!isNumber(control) && html`<textarea rows=${kind === "text" ? 1 : 2} spellcheck="false" placeholder=${PLACEHOLDERS[kind]} ...${common}></textarea>`}
    <p class="help" id=${`${id}-help`}>${words(help)}</p>
  </div>`;
}

const PLACEHOLDERS = { lines: "one a line; \\n is a line end", json: "JSON", text: "" };

function NumberField({ control, common }) {
  const { least, most, kind, usual, slider } = control;
  const bounds = most < 1e6 ? { min: least, max: most } : {};
  const step = kind === "integer" ? 1 : "any";
  return html`<input
    type="number"
    inputmode="decimal"
    step=${slider?.step ?? step}
    placeholder=${usual ?? ""}
    ...${bounds}
    ...${common}
  />`;
}

function Slider({ control, value, set }) {
  const { from, to, step } = control.slider;
  return html`<input
    type="range"
    aria-label=${control.name}
    min=${from}
    max=${to}
    step=${step}
    value=${value === "" ? control.usual : value}
    onInput=${(event) => set(event.target.value)}
  />`;
}

function Switch({ label, help, value, onChange }) {
  return html`<label class="switch">
    <input
      type="checkbox"
      role="switch"
      checked=${value}
      onChange=${(event) => onChange(event.target.checked)}
    />
    <span>${label}<small>${words(help)}</small></span>
  </label>`;
}

const isNumber = ({ kind }) => kind === "number" || kind === "integer";

/** The option that the server refused last. */
function wrongOption(store) {
  return store.tree.path().at(-1)?.error?.param?.split(".")[0] ?? null;
}
