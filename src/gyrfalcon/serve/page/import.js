// A conversation from a file that the page wrote, checked: files come from anywhere.

import { FORMAT, VERSION } from "./export.js";

const MOST_BYTES = 64 << 20;
const ROLES = ["user", "assistant"];
const FINISHES = ["stop", "length", "aborted"];

/** What asJson() wrote: {mode, system, options, turns, path}. Throws an Error that says what is wrong. Without the
 *  model that wrote it, token ids mean nothing and are left out. */
export async function readExport(file, model) {
  if (file.size > MOST_BYTES) throw new Error(`It has more than ${MOST_BYTES >> 20} MB.`);
  const content = parsed(await file.text());
  if (content?.format !== FORMAT) throw new Error("It is no conversation that this page exported.");
  if (content.version !== VERSION)
    throw new Error(`It has version ${content.version} of the format; this page reads ${VERSION}.`);
  const { mode, system = "", options = {}, turns, path } = content;
  check(mode === "chat" || mode === "text", "mode");
  check(typeof system === "string", "system");
  check(isObject(options) && Object.values(options).every(isTyped), "options");
  check(Array.isArray(turns) && turns.length > 0, "turns");
  check(Array.isArray(path) && path.every(isText), "path");
  if (mode === "chat" && !model.canChat)
    throw new Error(`It is a chat, and ${model.name} has no chat template.`);
  const isOurs = content.model === model.name;
  const known = new Set();
  const read = turns.map((turn, place) => {
    check(isTurn(turn) && (turn.parent === null || known.has(turn.parent)), `turns.${place}`);
    check(!known.has(turn.id), `turns.${place}.id`);
    known.add(turn.id);
    return isOurs ? turn : withoutIds(turn);
  });
  check(path.every((id) => known.has(id)), "path");
  return { mode, system, options, turns: read, path };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("It is not JSON.");
  }
}

function check(holds, where) {
  if (!holds) throw new Error(`It is damaged at ${where}.`);
}

function isTurn(turn) {
  return (
    isObject(turn) &&
    isText(turn.id) &&
    (turn.parent === null || isText(turn.parent)) &&
    ROLES.includes(turn.role) &&
    isText(turn.text) &&
    Array.isArray(turn.tokens) &&
    turn.tokens.every(isToken) &&
    (turn.contextIds === null || (Array.isArray(turn.contextIds) && turn.contextIds.every(isId))) &&
    (turn.finish === null || FINISHES.includes(turn.finish)) &&
    isId(turn.numTokens) &&
    (turn.seconds === null || (isObject(turn.seconds) && isNumber(turn.seconds.all))) &&
    (turn.forkedAt === null || isId(turn.forkedAt))
  );
}

function isToken(token) {
  return (
    isObject(token) &&
    isText(token.piece) &&
    isText(token.text) &&
    (token.id === null || isId(token.id)) &&
    (token.logprob === null || isNumber(token.logprob)) &&
    Array.isArray(token.top) &&
    token.top.every((one) => isObject(one) && isText(one.text) && isNumber(one.logprob))
  );
}

function withoutIds(turn) {
  const tokens = turn.tokens.map((token) => ({ ...token, id: null }));
  return { ...turn, tokens, contextIds: null };
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value) => typeof value === "string";
const isNumber = (value) => typeof value === "number";
const isId = (value) => Number.isInteger(value) && value >= 0;
const isTyped = (value) => isText(value) || typeof value === "boolean";
