// Tokens of a text: what came of each, where it stands, how likely it was.

/** The tokens of one event. `decoder` puts characters together whose bytes are spread over several tokens. */
export function tokensOf(choice, decoder) {
  const ids = choice.token_ids ?? [];
  const entries = choice.logprobs?.content?.map(ofChat) ?? completionEntries(choice.logprobs);
  if (!entries) {
    const piece = choice.text ?? choice.delta?.content ?? "";
    return ids.map((id, place) => ({
      piece: place ? "" : piece,
      text: piece,
      id,
      logprob: null,
      top: [],
    }));
  }
  return entries.map(({ bytes, ...entry }, place) => ({
    piece: decoder.decode(bytes, { stream: true }),
    id: ids[place] ?? null,
    ...entry,
  }));
}

/** Where the text of each token begins, and one more: where that of the last ends. A token whose text is not
 *  shown, such as an end of text, is empty. */
export function offsets(text, tokens) {
  const found = [0];
  let at = 0;
  for (const { piece } of tokens) {
    if (text.startsWith(piece, at)) at += piece.length;
    else if (piece.startsWith(text.slice(at))) at = text.length;
    found.push(at);
  }
  return found;
}

/** The alternatives at one place, the most likely first, the token that was taken among them. */
export function alternatives(token) {
  const own = { text: token.text, logprob: token.logprob };
  const others = token.top.some((one) => one.text === own.text) ? token.top : [...token.top, own];
  return others
    .map((one) => ({ ...one, isTaken: one.text === own.text }))
    .sort((one, other) => other.logprob - one.logprob);
}

export const probability = (logprob) => Math.exp(logprob);

/** 4.2 %, < 0.1 % */
export function percent(part) {
  const value = 100 * part;
  if (value < 0.1) return "< 0.1 %";
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} %`;
}

/** A token as a person can see it: blanks and line ends have signs. */
export function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

/** Whether a token is whole characters, which can be written into a text. */
export const isText = (text) => !text.startsWith("bytes:");

function ofChat({ token, bytes, logprob, top_logprobs: top }) {
  return {
    bytes: Uint8Array.from(bytes),
    logprob,
    top: top.map((one) => ({ text: one.token, logprob: one.logprob })),
    text: token,
  };
}

function completionEntries(logprobs) {
  return logprobs?.tokens?.map((name, place) => ({
    bytes: bytesOf(name),
    logprob: logprobs.token_logprobs[place],
    top: Object.entries(logprobs.top_logprobs?.[place] ?? {}).map(([text, logprob]) => ({
      text,
      logprob,
    })),
    text: name,
  }));
}

/** The bytes of a token's name: its text, or bytes:\xe2\x80 where it is no whole characters. */
function bytesOf(name) {
  if (isText(name)) return new TextEncoder().encode(name);
  return Uint8Array.from(name.matchAll(/\\x([0-9a-f]{2})/g), ([, digits]) => parseInt(digits, 16));
}
