// Icons, drawn with the colour of the text around them.

import { html } from "./vendor/preact-htm.js";

const PATHS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8zM9 10h6M9 12h6M9 14h6", // a filled square
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 4v7h-7",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  go: "M5 12h14M13 6l6 6-6 6",
  back: "M15 5l-7 7 7 7",
  next: "M9 5l7 7-7 7",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 4.5v5M10 14.5v5",
  export: "M12 4v11M7 10l5 5 5-5M5 20h14",
  new: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
};

export const icon = (name) =>
  html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** A button that shows an icon and says its name. */
export const IconButton = ({ name, label, ...rest }) =>
  html`<button type="button" class="icon-button" title=${label} aria-label=${label} ...${rest}>
    ${icon(name)}
  </button>`;
