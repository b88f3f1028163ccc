// Controls for the options of a request, made from the server's OpenAPI document.

const PATHS = { chat: "/v1/chat/completions", text: "/v1/completions" };

// The page itself sets these.
const OWN = new Set(
  [
    "model",
    "prompt",
    "messages",
    "stream",
    "stream_options",
    "n",
    "echo",
    "logprobs",
    "top_logprobs",
  ].concat([
    "prompt_logprobs",
    "return_token_ids",
    "add_special_tokens",
    "add_generation_prompt",
    "continue_final_message",
  ]),
);
const MOST_USED = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "max_tokens",
  "max_completion_tokens",
  "seed",
  "stop",
];
// How much the page asks for where a person says nothing: the server's own defaults are 16 tokens of a text, and
// all that fits of an answer.
export const USUAL_LENGTH = { chat: ["max_completion_tokens", 512], text: ["max_tokens", 256] };
const USUAL = Object.fromEntries(Object.values(USUAL_LENGTH));
const SLIDER_ENDS = { temperature: [0, 2], repetition_penalty: [0.5, 2] }; // where the bounds are far apart
const WIDEST_SLIDER = 10;

/** The controls of each mode: {name, kind, help, usual, least, most, slider, isMostUsed}. */
export function controlsOf(document) {
  return Object.fromEntries(
    Object.entries(PATHS).map(([mode, path]) => [mode, ofEndpoint(document, path)]),
  );
}

function ofEndpoint(document, path) {
  const content = document.paths[path].post.requestBody.content["application/json"];
  const { properties } = content.schema;
  const isFormer = (name) => name === "max_tokens" && "max_completion_tokens" in properties;
  return Object.entries(properties)
    .filter(
      ([name, { description }]) =>
        !OWN.has(name) && !isFormer(name) && description.endsWith("(served)"),
    )
    .map(([name, schema]) => control(name, schema))
    .sort((one, other) => rank(one) - rank(other));
}

function control(name, schema) {
  const { least, most, kind, isAbove } = valueOf(schema);
  return {
    name,
    kind,
    help: schema.description.replace(/ \(served\)$/, ""),
    usual: USUAL[name] ?? schema.default ?? null,
    least: isAbove ? undefined : least,
    most,
    slider: kind === "number" ? slider(name, least, most, isAbove) : null,
    isMostUsed: MOST_USED.includes(name),
  };
}

function valueOf(schema) {
  const kinds = flattened(schema);
  const number = kinds.find(({ type }) => type === "number" || type === "integer");
  if (number) {
    const isAbove = "exclusiveMinimum" in number;
    return {
      kind: number.type,
      least: number.minimum ?? number.exclusiveMinimum,
      most: number.maximum,
      isAbove,
    };
  }
  if (kinds.some(({ type }) => type === "boolean")) return { kind: "boolean" };
  if (kinds.some(({ type, items }) => type === "array" && items.type === "string"))
    return { kind: "lines" };
  if (kinds.every(({ type }) => type === "string")) return { kind: "text" };
  return { kind: "json" };
}

/** What a value may be, null aside. */
function flattened(schema) {
  return (schema.anyOf?.flatMap(flattened) ?? [schema]).filter(({ type }) => type !== "null");
}

function slider(name, least, most, isAbove) {
  const [from, to] = SLIDER_ENDS[name] ?? [least, most];
  if (to - from > WIDEST_SLIDER) return null;
  const step = to - from > 1 ? 0.05 : 0.01;
  return { from: isAbove && !SLIDER_ENDS[name] ? from + step : from, to, step };
}

function rank({ name, isMostUsed }) {
  return isMostUsed ? MOST_USED.indexOf(name) : MOST_USED.length;
}

/** The value that a person typed, as the server takes it; undefined for none. Throws what is wrong in words. */
export function parsed({ name, kind }, typed) {
  if (typed === "" || typed === undefined) return undefined;
  if (kind === "boolean") return typed;
  if (kind === "lines") return typed.split("\n").filter(Boolean).map(unescaped);
  if (kind === "text") return typed;
  try {
    return JSON.parse(typed);
  } catch {
    throw new Error(`wanted ${kind === "json" ? "JSON" : "a number"} for ${name}, got ${typed}`);
  }
}

/** \n and \t as people type them into one line. */
function unescaped(line) {
  return line.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

/** All options that a person set, as the server takes them. */
export function valuesOf(controls, typed) {
  const values = {};
  for (const one of controls) {
    const value = parsed(one, typed[one.name]);
    if (value !== undefined) values[one.name] = value;
  }
  return values;
}
