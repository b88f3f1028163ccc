// What the server is doing, a line that is asked for again and again.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { ask } from "./server.js";

const BUSY_MS = 1000;
const IDLE_MS = 5000;

export function Live({ isRunning }) {
  const [readings, setReadings] = useState([]);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const read = async () => {
      if (document.hidden) return;
      try {
        const reading = await ask("page/live.json");
        setReadings(([, last]) => [last, reading]);
        setProblem(null);
      } catch (error) {
        setReadings([]);
        setProblem(error.title);
      }
    };
    read();
    const timer = setInterval(read, isRunning ? BUSY_MS : IDLE_MS);
    return () => clearInterval(timer);
  }, [isRunning]);
  if (problem) return html`<p class="live" role="status">${problem}</p>`;
  const facts = factsOf(...readings);
  if (!facts) return html`<p class="live"></p>`;
  return html`<p class="live">
    ${facts.map(([before, value, after, title]) => html`<span key=${title} title=${title}>${before} <b>${value}</b> ${after}</span>`)}
  </p>`;
}

/** [words before, value, words after, explanation] of each fact, from the last two readings. */
function factsOf(before, now) {
  if (!now) return null;
  const facts = [
    ["batch", now.running, "", "sequences that are being computed together"],
    ["cache", percent(now.cache_usage), "", "of the KV cache's blocks hold running sequences"],
  ];
  if (now.waiting)
    facts.splice(1, 0, ["waiting", now.waiting, "", "sequences that wait for cache"]);
  const seconds = now.seconds - (before?.seconds ?? now.seconds);
  if (seconds <= 0) return facts;
  const rate = (now.generated_tokens - before.generated_tokens) / seconds;
  facts.unshift([
    "",
    rate < 10 ? rate.toFixed(1) : Math.round(rate),
    "tokens/s",
    "of all requests together",
  ]);
  if (now.bandwidth) {
    const part =
      ((now.steps - before.steps) * Math.max(before.step_bytes, now.step_bytes)) /
      seconds /
      now.bandwidth;
    facts.push([
      "memory limit",
      percent(part),
      "",
      "bytes that decoding has to read, of what this machine's memory gives",
    ]);
  }
  return facts;
}

const percent = (part) => `${Math.round(100 * part)} %`;
