// Turns become requests, and what comes back becomes text and tokens of a turn.

import { USUAL_LENGTH } from "./options.js";
import { ask, events } from "./server.js";
import { tokensOf } from "./tokens.js";
import { newId } from "./tree.js";

const NUM_TOP = 5; // alternatives of each token

/** Writes `turn`, which may have a beginning, to its end. `changed()` is called after each event. Throws
 *  ServerError, or what `signal` aborted it with.
 *
 *  setup: {model, maxLen, mode, system, options, wantsTokens}
 */
export async function generate(tree, turn, setup, signal, changed) {
  const begun = performance.now();
  const chat = setup.mode === "chat";
  const asked = chat ? conversation(tree, turn, setup.system) : text(tree, turn);
  Object.assign(turn, { state: "waiting", error: null, finish: null, prompt: null });
  changed();
  const ids =
    asked.prompt instanceof Array ? asked.prompt : await idsOf(asked, setup.model, signal);
  const request = newId();
  turn.prompt = { total: ids.length, request };
  changed();
  const prompt = chat ? asked : { prompt: ids };
  const body = {
    ...prompt,
    ...tokenOptions(setup),
    ...lengthOf(setup, ids.length),
    ...setup.options,
  };
  await follow(
    turn,
    events(chat ? "v1/chat/completions" : "v1/completions", body, signal, request),
    begun,
    changed,
  );
}

/** The options that a turn is asked for as text, from its beginning. */
function text(tree, turn) {
  const ids = turn.contextIds && turn.tokens.every(({ id }) => id !== null);
  if (ids) return { prompt: [...turn.contextIds, ...turn.tokens.map(({ id }) => id)] };
  return { prompt: [...tree.before(turn), turn].map((one) => one.text).join("") };
}

/** The same in a chat. */
function conversation(tree, turn, system) {
  const messages = tree
    .before(turn)
    .filter((one) => one.text)
    .map(({ role, text: content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  if (!turn.text) return { messages };
  messages.push({ role: "assistant", content: turn.text });
  return { messages, continue_final_message: true, add_generation_prompt: false };
}

async function idsOf(asked, model, signal) {
  const { tokens } = await ask("tokenize", { model, ...asked }, signal);
  return tokens;
}

function tokenOptions({ model, mode, wantsTokens }) {
  const common = {
    model,
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
  };
  if (!wantsTokens) return common;
  return mode === "chat"
    ? { ...common, logprobs: true, top_logprobs: NUM_TOP }
    : { ...common, logprobs: NUM_TOP };
}

function lengthOf({ mode, maxLen }, promptLen) {
  const room = maxLen - promptLen;
  const [name, usual] = USUAL_LENGTH[mode];
  return room > 0 ? { [name]: Math.min(usual, room) } : {};
}

async function follow(turn, stream, begun, changed) {
  const decoder = new TextDecoder();
  const before = turn.seconds?.all ?? 0;
  const counted = turn.numTokens;
  turn.seconds = { first: null, all: before };
  for await (const event of stream) {
    const [choice] = event.choices ?? [];
    const ids = choice?.prompt_token_ids ?? event.prompt_token_ids;
    if (ids && !turn.text) turn.contextIds = ids; // else they are of its beginning, too
    if (choice) take(turn, choice, decoder);
    if (event.usage) turn.numTokens = counted + event.usage.completion_tokens;
    const seconds = (performance.now() - begun) / 1000;
    if (turn.state === "running") turn.seconds.first ??= seconds;
    turn.seconds.all = before + seconds;
    changed();
  }
}

function take(turn, choice, decoder) {
  const tokens = tokensOf(choice, decoder);
  turn.tokens.push(...tokens);
  turn.text += choice.text ?? choice.delta?.content ?? "";
  turn.numTokens += tokens.length;
  if (tokens.length) Object.assign(turn, { state: "running", prompt: null });
  turn.finish = choice.finish_reason ?? turn.finish;
}

/** The id of a token by its text; null where the text is not one token. */
export async function tokenId(model, text) {
  const ids = await idsOf({ prompt: text, add_special_tokens: false }, model);
  return ids.length === 1 ? ids[0] : null;
}
